"""Plan a run before paying for it: does it fit, and how long does it take?

  # The paper's recipe on a slice of a TPU pod:
  python -m migan_jax.plan --config=places512 --topology=v5e:16x16
  # Several topologies and batch sizes, with the price of a chip for an hour:
  python -m migan_jax.plan --config=places256 --topology=v5e:4x4,v6e:4x4 \\
      --batch-size=32,64 --price=1.2
  # One GPU; settings as for train:
  python -m migan_jax.plan --config=finetune256 --topology=l4 --config.batch_size=8

Compiles the programs that train would run, for chips that this machine need not have,
and reads in them what they cost on each device: memory, FLOPs, traffic, collectives,
time by part. Needs no data. A teacher's file that does not exist is taken to be the
authors'. TPUs (v4, v5e, v5p, v6e, tpu7x) need the extra tpu and Linux, GPUs (h100,
h200, a100, l4, t4) the extra cuda12. Compilation takes minutes. Results are kept in
~/.cache/migan_jax/plans, by a hash of the program and of the compiler.

Times of TPU programs are the compiler's own estimate for each operation, summed up.
They leave out latencies, overlap and the host, and were never compared with a real chip
here: compare them with each other. There is no such estimate for GPUs. Their times are
the floor, from memory traffic and FLOPs; a real GPU takes several times as long. They
are compiled without autotuning, for which a GPU is needed.

OUTPUT/plan.json has everything, OUTPUT/plan.md the table, OUTPUT/plan.png a picture.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from migan_jax.config import (
    RANGES,
    add_config_arguments,
    load_config,
    run_verb,
    split_settings,
    verb_parser,
    whole_number,
)
from migan_jax.files import write_json, write_whole

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from migan_jax.planning.plans import Outline, Plan

logger = logging.getLogger("migan_jax.plan")  # __name__ may be "__main__"

JSON_FILE, TABLE_FILE, PICTURE_FILE = "plan.json", "plan.md", "plan.png"


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("plan", __doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--topology",
        metavar="NAME[,NAME]",
        type=lambda text: text.split(","),
        required=True,
        help="a TPU with the shape of the slice, such as v5e:4x4 or v5p:4x4x4, or one "
        "GPU, such as h100",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N[,N]",
        type=lambda text: [_batch_size(one) for one in text.split(",")],
        help="over all chips (default: the recipe's)",
    )
    parser.add_argument(
        "--price",
        metavar="PRICE",
        type=_price,
        help="of one chip for one hour, in any currency",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder for table, picture and JSON (default: plans/RECIPE[-VARIANT])",
    )
    parser.add_argument(
        "--dump-hlo",
        metavar="DIR",
        type=Path,
        help="also write the compiled programs (.hlo.gz)",
    )
    settings, others = split_settings(sys.argv[1:])
    arguments = parser.parse_args(others)
    arguments.settings = tuple(settings)
    if arguments.output is None:
        recipe, _, variant = arguments.config.partition(":")
        name = "-".join(filter(None, (Path(recipe).stem, variant)))
        arguments.output = Path("plans") / name
    return arguments


_batch_size = whole_number(*RANGES["batch_size"])


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = 0.0
    if not 0 < price < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a price above 0")
    return price


def main() -> None:
    arguments = parse_arguments()
    # Programs are compiled for other devices; this one only traces them.
    os.environ["JAX_PLATFORMS"] = "cpu"
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("migan_jax").setLevel(logging.INFO)
    config = load_config(arguments.config, arguments.settings, False)
    sizes = arguments.batch_size or [config.batch_size]
    configs = []
    for size in sizes:
        configs.append(config.copy_and_resolve_references())
        configs[-1].batch_size = size
    outlines = _outline(arguments, configs)

    from migan_jax.planning.plans import make_plan
    from migan_jax.planning.report import describe

    plans: list[Plan] = []
    for outline in outlines:
        plans.append(make_plan(outline, arguments.dump_hlo))
        lines = describe(plans[-1], arguments.price)
        print("\n".join(lines), end="\n\n", flush=True)
        _save(plans, arguments.output, arguments.price)
    print(f"saved {arguments.output}/: {JSON_FILE}, {TABLE_FILE}, {PICTURE_FILE}")


def _outline(
    arguments: argparse.Namespace, configs: list["ConfigDict"]
) -> list["Outline"]:
    """Outline all plans; raise UserError for mistakes before anything is compiled."""
    from migan_jax.planning.compilation import PLANS
    from migan_jax.planning.plans import outline_plan
    from migan_jax.training.setup import check_settings

    for config in configs:
        check_settings(config)
    recipe, settings = arguments.config, arguments.settings
    outlines = [
        outline_plan(recipe, settings, config, topology)
        for topology in arguments.topology
        for config in configs
    ]
    for folder in filter(None, (arguments.output, arguments.dump_hlo, PLANS)):
        probe = folder / ".writable"
        write_whole(probe, lambda part: part.touch())
        probe.unlink()
    return outlines


def _save(plans: list["Plan"], output: Path, price: float | None) -> None:
    from migan_jax.planning.report import draw, row, table

    write_json(output / JSON_FILE, {"plans": [plan.to_json(price) for plan in plans]})
    text = table([row(plan, price) for plan in plans])
    write_whole(output / TABLE_FILE, lambda part: part.write_text(text))
    figure = draw(plans)
    write_whole(output / PICTURE_FILE, lambda part: figure.savefig(part, format="png"))


if __name__ == "__main__":
    run_verb(main)
