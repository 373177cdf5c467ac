"""Learnable feature imputation's penalties and architecture, in small runs.

  python benchmarks/imputation_ladder.py --seeds=3 --steps=1200 --minutes=2 \\
      --plot=docs/penalties.jpg

`penalties`: purely adversarial training of row e at 32 pixels, with the paper's masks,
for --steps. `everywhere` is the standard penalty of row a, where known pixels are not
pasted, and `everywhere, pasted` the same with pasting, as the other rows have it:
`two_sided`, in holes (equation 9), and `one_sided`, the paper's (equations 10 and 11).
A run counts as diverged if its numbers are not finite, or its last PSNR is 3 dB below
the mean colour's. --plot draws the curves.

`architecture`: row e at the size of imputation_scenes64 and with its losses, `e_conv`
with plain convolutions, and `no sums` with the highest level's image as output, for as
many steps as fit into --minutes on this machine. They follow from the fastest steps,
timed in turn once, so that other load does not change results.

The metric is the held-out hole PSNR of the EMA at the end, in dB, over the same 64
scenes and masks for all runs of a seed; `mean colour` is that of filling holes with the
mean of the known pixels. `over e` is the gain over row e, per seed.

Such short runs show how networks start to learn, not how good they become. Each
finished run is added to --json, and not repeated; an interrupted one resumes.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timing import minimum_ms, print_table, use_cores
from training_runs import runs_parser, train

from migan_jax.files import write_whole

RECIPE = "imputation_scenes64"
JSON = Path(__file__).parent / "imputation_ladder.json"
TABLES = {  # settings by row
    "penalties": {
        "everywhere": ["imputation.penalty=everywhere", "imputation.pastes=false"],
        "everywhere, pasted": ["imputation.penalty=everywhere"],
        "two_sided": ["imputation.penalty=two_sided"],
        "one_sided": ["imputation.penalty=one_sided"],
    },
    "architecture": {
        "e": [],
        "e_conv": ["imputation.imputes=false"],
        "no sums": ["imputation.sums=false"],
    },
}
ADVERSARIAL = [  # the settings of all runs of penalties
    "resolution=32",
    "batch_size=8",
    "networks.channel_base=512",
    "networks.channel_max=32",
    "losses.l1=0",
    "optimizer.learning_rate=0.001",
    "optimizer.ema_halflife_kimg=0.5",
    "data.mask_kind=half_box_and_brush",
]
POINTS, EVALUATIONS = 40, 20  # of a run's curves
DIFFERENCE = "d/real - d/fake"
CURVES = ("eval/hole_psnr", "g/hole_psnr", "d/gradient_norm", DIFFERENCE)
MARGIN = 3.0  # dB below the mean colour from which a run has diverged


def main() -> None:
    parser = runs_parser(__doc__, "runs/imputation_ladder")
    parser.set_defaults(json=JSON)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--steps", type=int, default=1200, help="of penalties")
    parser.add_argument("--minutes", type=float, default=2.0, help="of architecture")
    parser.add_argument("--plot", type=Path, help="draw the curves of penalties here")
    arguments = parser.parse_args()
    saved = load(arguments)
    for table in arguments.tables:
        runs, rows = saved[table], TABLES[table]
        names = [(row, seed) for seed in range(arguments.seeds) for row in rows]
        for number, (row, seed) in enumerate(names, 1):
            key = f"{row}-{seed}"
            if key in runs:
                continue
            print(f"{table}: run {number} of {len(names)}, {key}", flush=True)
            workdir = arguments.folder / table / re.sub(r"\W+", "_", key)
            runs[key] = run(workdir, table, row, seed, steps_of(saved, table, row))
            save(arguments.json, saved)
    for table in arguments.tables:
        print()
        print_table(list(make_rows(table, saved[table])))
    if arguments.plot:
        draw(saved["penalties"]).savefig(arguments.plot, dpi=90)


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the saved runs, after comparing their lengths with the arguments."""
    path = arguments.json
    saved = json.loads(path.read_text()) if path.is_file() else {}
    for table, length in (("penalties", "steps"), ("architecture", "minutes")):
        saved.setdefault(table, {})
        if table not in arguments.tables:
            continue
        if saved.setdefault(length, getattr(arguments, length)) != getattr(
            arguments, length
        ):
            raise SystemExit(f"error: {path} has runs of {saved[length]} {length}.")
    if "architecture" in arguments.tables and "ms per step" not in saved:
        print("architecture: timing steps", flush=True)
        saved["ms per step"] = time_steps()
        save(path, saved)
    return saved


def save(path: Path, saved: dict[str, Any]) -> None:
    """Write the runs atomically, each list of numbers on one line."""
    text = json.dumps(saved, indent=1) + "\n"
    text = re.sub(
        r"\[([^][]*)\]", lambda match: f"[{' '.join(match[1].split())}]", text
    )
    write_whole(path, lambda partial: partial.write_text(text))


def settings(table: str, row: str) -> list[str]:
    shared = ADVERSARIAL if table == "penalties" else []
    return [*shared, *TABLES[table][row]]


def steps_of(saved: dict[str, Any], table: str, row: str) -> int:
    if table == "penalties":
        return saved["steps"]
    return round(60_000 * saved["minutes"] / saved["ms per step"][row])


def time_steps() -> dict[str, float]:
    """Return the fastest step of each row of `architecture`, with its lazy turns."""
    use_cores(2)
    import jax
    import numpy as np

    from migan_jax.config import load_config
    from migan_jax.training.programs import (
        build_system,
        initial_state,
        make_timeline,
    )
    from migan_jax.training.step import make_step

    alternatives = {}
    for row in TABLES["architecture"]:
        config = load_config(RECIPE, settings("architecture", row), tiny=False)
        system = build_system(config, {})
        span = make_timeline(config, system).at(0)
        state = jax.jit(lambda c=config, s=system: initial_state(c, s))()
        shape = config.batch_size, config.resolution, config.resolution
        batch = {
            "image": np.zeros((*shape, 3), np.uint8),
            "mask": np.zeros((*shape, 1), np.uint8),
        }
        inputs = state, {}, batch, jax.random.key(0)
        for every in (1, *span.stage.lazy):
            step = make_step(
                system,
                span,
                ema_halflife_kimg=config.optimizer.ema_halflife_kimg,
                every=every,
            )
            program = jax.jit(step).lower(*inputs).compile()
            alternatives[row, every] = lambda run=program, x=inputs: (
                jax.block_until_ready(run(*x))
            )
    times = minimum_ms(alternatives, repeats=15)
    return {
        row: sum(ms / every for (name, every), ms in times.items() if name == row)
        for row in TABLES["architecture"]
    }


def run(workdir: Path, table: str, row: str, seed: int, steps: int) -> dict[str, Any]:
    """Train for some steps; return the last held-out metrics and the curves."""
    from migan_jax.config import load_config
    from migan_jax.training.curves import read_metrics

    chosen = settings(table, row)
    batch = load_config(RECIPE, chosen, tiny=False).batch_size
    length = [
        f"total_kimg={steps * batch / 1000}",
        f"log_every_steps={max(steps // POINTS, 1)}",
        f"save_every_steps={max(steps // EVALUATIONS, 1)}",
    ]
    failed = False
    try:
        train(RECIPE, workdir, [*chosen, f"seed={seed}", *length])
    except subprocess.CalledProcessError:
        failed = True
    points = read_metrics(workdir)
    is_finite = all(math.isfinite(x) for point in points[-2:] for x in point.values())
    last = points[-1]["step"]
    if is_finite and (failed or last != steps):
        raise SystemExit(f"error: {workdir} ended at step {last} of {steps}.")
    final = [point for point in points if "eval/hole_psnr" in point][-1]
    names = "hole_psnr", "mean_colour_psnr"
    psnr = {name: rounded(final[f"eval/{name}"]) for name in names}
    found = {"steps": last, **psnr}
    if table == "penalties":
        above = final["eval/hole_psnr"] - final["eval/mean_colour_psnr"]
        found["diverged"] = not (is_finite and above >= -MARGIN)
        found["curves"] = {name: curve(points, name) for name in CURVES}
    return found


def curve(points: Any, name: str) -> list[list[Any]]:
    """Return the steps at which there is a metric, and its values."""
    steps, values = [], []
    for point in points:
        if "d/real" in point and name == DIFFERENCE:
            point = {**point, name: point["d/real"] - point["d/fake"]}
        if name in point:
            steps.append(point["step"])
            values.append(rounded(point[name]))
    return [steps, values]


def rounded(value: float) -> float | None:
    """Round to five digits; JSON has no NaN, which becomes None."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def make_rows(table: str, runs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a table's rows, of the seeds that all rows have."""
    rows = list(TABLES[table])
    seeds = [s for s in range(len(runs)) if all(f"{row}-{s}" in runs for row in rows)]
    first = rows[0]
    for name in ("mean colour", *rows):
        is_baseline = name == "mean colour"
        found = [runs[f"{first if is_baseline else name}-{seed}"] for seed in seeds]
        metric = "mean_colour_psnr" if is_baseline else "hole_psnr"
        values = [run[metric] for run in found]
        row = {"": name, "steps": "-", **describe("", values)}
        if not is_baseline:
            row["steps"] = max(run["steps"] for run in found)
        if table == "penalties":
            row["diverged"] = row["norm"] = row["real - fake"] = "-"
            if not is_baseline:
                row["diverged"] = sum(run["diverged"] for run in found)
                row["norm"] = last_of(found, "d/gradient_norm")
                row["real - fake"] = last_of(found, DIFFERENCE)
        else:
            base = [runs[f"{first}-{seed}"]["hole_psnr"] for seed in seeds]
            gains = [b - a for a, b in zip(base, values, strict=True)]
            compares = not is_baseline and name != first
            row |= describe("over e", gains if compares else [])
        shown = ["-" if value is None else value for value in values]
        yield row | {f"seed {s}": v for s, v in zip(seeds, shown, strict=True)}


def describe(name: str, values: list[float | None]) -> dict[str, Any]:
    """Return the mean and standard deviation of the values, if all are finite."""
    titles = (name, "its sd") if name else ("mean dB", "sd")
    if not values or None in values:
        return dict.fromkeys(titles, "-")
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return dict(zip(titles, (statistics.mean(values), spread), strict=True))


def last_of(found: list[dict[str, Any]], name: str) -> Any:
    """Return the median, over runs, of a metric at their ends."""
    values = [run["curves"][name][1] for run in found]
    last = [each[-1] for each in values if each and each[-1] is not None]
    return statistics.median(last) if last else "-"


def draw(runs: dict[str, Any]) -> Any:
    """Draw the curves of penalties: a colour for each row, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    titles = (
        "held-out hole PSNR of the EMA, dB",
        "hole PSNR in training, dB",
        "norm of the discriminator's gradient",
        "score of real minus that of completed images",
    )
    axes = figure.subplots(2, 2).flat
    for plot, title, metric in zip(axes, titles, CURVES, strict=True):
        plot.set_title(title)
        plot.set_xlabel("step")
        plot.grid(alpha=0.3)
        for index, row in enumerate(TABLES["penalties"]):
            found = [run for key, run in runs.items() if key.startswith(f"{row}-")]
            for number, one in enumerate(found):
                steps, values = one["curves"][metric]
                numbers = [math.nan if value is None else value for value in values]
                label = None if number else row
                plot.plot(steps, numbers, color=f"C{index}", lw=1, label=label)
        if metric == "eval/hole_psnr":
            for number, one in enumerate(found):
                label = None if number else "mean colour"
                level = one["mean_colour_psnr"]
                plot.axhline(level, color="grey", ls=":", lw=1, label=label)
            plot.legend(fontsize="small")
    plot.set_yscale("symlog", linthresh=1)
    figure.axes[2].set_yscale("log")
    return figure


if __name__ == "__main__":
    main()
