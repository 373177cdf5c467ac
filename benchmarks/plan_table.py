"""The paper's recipes on TPUs and GPUs, planned ahead of time: docs/plans.md.

  python benchmarks/plan_table.py            # compile the missing rows
  python benchmarks/plan_table.py --again    # all rows, as after a change of the step
  python benchmarks/plan_table.py --only="places512 v5e:16x16"

A TPU's row takes 13 to 20 minutes of one core, and up to 10 GB of memory. It is saved
when it is done, so the script can be stopped and started again. TPU rows need the extra
tpu and GPU rows the extra cuda12; rows of a compiler that is not installed are left as
they are.
"""

import argparse
import datetime
import json
import logging
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from migan_jax.config import load_config
from migan_jax.errors import UserError
from migan_jax.files import write_json, write_whole
from migan_jax.planning.plans import make_plan, outline_plan
from migan_jax.planning.report import row, table

DOCS = Path(__file__).parent.parent / "docs"
ROWS_FILE, PAGE = DOCS / "plans.json", DOCS / "plans.md"
# Recipe, topology, and devices per image.
ROWS = [
    *(("places256", "v5e:4x4", space) for space in ("auto", 2, 4, 8)),
    ("places256", "v6e:4x4", "auto"),
    ("places256", "h200", "auto"),
    ("places256", "a100", "auto"),
    ("places256", "l4", "auto"),
    ("places512", "v5e:4x4", "auto"),
    *(("places512", "v5e:16x16", space) for space in ("auto", 16, 32)),
    ("places512", "v5p:4x4x4", "auto"),
    ("places512", "v6e:16x16", "auto"),
    ("places512", "h100", "auto"),
]
START = "<!-- The table is written by benchmarks/plan_table.py. -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--again", action="store_true", help="also rows that exist")
    parser.add_argument("--only", default="", help="rows with this in their names")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    done = json.loads(ROWS_FILE.read_text()) if ROWS_FILE.exists() else {}
    for recipe, topology, space in ROWS:
        key = f"{recipe} {topology} {space}"
        if arguments.only not in key or (key in done and not arguments.again):
            continue
        settings = (f"mesh.space={space}",)
        config = load_config(recipe, settings, False)
        try:
            plan = make_plan(outline_plan(recipe, settings, config, topology))
        except UserError as error:
            print(f"{key}: {error}")
            continue
        versions = ", ".join(f"{n} {v}" for n, v in plan.versions.items())
        done[key] = row(plan) | {
            "date": datetime.date.today().isoformat(),
            "compiler": versions,
        }
        print(f"{key}: {done[key]}", flush=True)
        save(done)


def save(done: dict[str, dict[str, str]]) -> None:
    """Write the rows, and the table into its page."""
    write_json(ROWS_FILE, done)
    keys = [f"{recipe} {topology} {space}" for recipe, topology, space in ROWS]
    text = table([done[key] for key in keys if key in done])
    before = PAGE.read_text().partition(START)[0]
    write_whole(PAGE, lambda part: part.write_text(f"{before}{START}\n{text}"))


if __name__ == "__main__":
    main()
