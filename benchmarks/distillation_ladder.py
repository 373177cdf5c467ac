"""Rows of distillation-guided inpainting, and a guided MI-GAN, in small runs.

  python benchmarks/distillation_ladder.py --seeds=2 --minutes=4

`distillation`: rows of distillation_scenes64. `baseline` has plain convolutions instead
of the parts; net1 has cross-distillation, net3 self-distillation, too; net4 adds
completion blocks, net7 attention and its transfer, net8 adaptive convolutions.
`migan`: migan_distilled_scenes64 beside the same recipe without guidance.

All runs take as long: as many steps as fit into --minutes on this machine, and those of
the auxiliary network are among them. Pre-training and the steps with constant meta
networks are as long as in the recipe, but at most a third and a tenth of the time. The
numbers of steps follow from the fastest ones, timed in turn once, so that other load
does not change results. Compiling, loading and evaluations do not count.

The metric is the held-out hole PSNR of the EMA at the end, in dB, over the same 64
scenes and masks for all runs of a seed. The EMA's half-life is a 20th of the run. `mean
colour` is the PSNR of filling holes with the mean of the known pixels. `over` is the
gain over the first row, per seed. For MI-GAN, `kernel` is a thousand times the VGG-16
kernel distance of completed scenes from true ones: the unbiased squared maximum mean
discrepancy, with KID's kernel, of VGG-16's averaged features. It needs VGG-16's public
weights.

Such short runs show how networks start to learn, not how good they become. Each
finished run is added to --json, and not repeated; an interrupted one resumes. Grids of
completions are written into --folder.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imputation_ladder import describe, rounded, save
from stage_steps import compile_steps
from timing import minimum_ms, print_table, use_cores
from training_runs import runs_parser, train

JSON = Path(__file__).parent / "distillation_ladder.json"
ROWS = "baseline", "net1", "net3", "net4", "net7", "net8"
TABLES = {  # recipes by row
    "distillation": {row: f"distillation_scenes64:{row}" for row in ROWS},
    "migan": {
        "plain": "migan_distilled_scenes64:plain",
        "guided": "migan_distilled_scenes64",
    },
}
WITH_KERNEL = ("migan",)
PARTS = {  # of a run's time, at most; and the settings of the stages' lengths
    "pre-training": (1 / 3, "pretraining_kimg"),
    "constant meta networks": (1 / 10, "meta_delay_kimg"),
}
SCENES = 6  # in a grid


def main() -> None:
    parser = runs_parser(__doc__, "runs/distillation_ladder")
    parser.set_defaults(json=JSON)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--minutes", type=float, default=4.0, help="of each run")
    parser.add_argument("--repeats", type=int, default=5, help="of timed steps")
    arguments = parser.parse_args()
    saved = load(arguments)
    for table in arguments.tables:
        runs, rows = saved[table], TABLES[table]
        names = [(row, seed) for seed in range(arguments.seeds) for row in rows]
        for number, (row, seed) in enumerate(names, 1):
            if (key := f"{row}-{seed}") in runs:
                continue
            print(f"{table}: run {number} of {len(names)}, {key}", flush=True)
            lengths = plan(
                rows[row], saved["ms per step"][table][row], saved["minutes"]
            )
            workdir = arguments.folder / table / key
            runs[key] = run(workdir, rows[row], seed, lengths)
            save(arguments.json, saved)
    for table in arguments.tables:
        folder = arguments.folder / table
        if table in WITH_KERNEL:
            add_distances(saved[table], table, folder)
            save(arguments.json, saved)
        print()
        print_table(list(make_rows(table, saved[table])))
        if all((folder / f"{row}-0").is_dir() for row in TABLES[table]):
            path = arguments.folder / f"{table}.png"
            draw_grid(table, folder).save(path)
            print(f"completions: {path}")


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the saved runs, with the times of steps; compare their lengths."""
    path = arguments.json
    saved = json.loads(path.read_text()) if path.is_file() else {}
    if saved.setdefault("minutes", arguments.minutes) != arguments.minutes:
        raise SystemExit(f"error: {path} has runs of {saved['minutes']} minutes.")
    times = saved.setdefault("ms per step", {})
    for table in TABLES:
        saved.setdefault(table, {})
        if table in arguments.tables and table not in times:
            print(f"{table}: timing steps; compiling takes minutes", flush=True)
            times[table] = time_steps(TABLES[table], arguments.repeats)
            save(path, saved)
    return saved


def time_steps(rows: dict[str, str], repeats: int) -> dict[str, dict[str, float]]:
    """Return the fastest step of each row and stage, with its lazy turns."""
    use_cores(2)
    alternatives = {
        (row, *key): step.run
        for row, recipe in rows.items()
        for key, step in compile_steps(recipe, []).items()
    }
    times: dict[str, dict[str, float]] = {row: {} for row in rows}
    for (row, stage, every), ms in minimum_ms(alternatives, repeats).items():
        times[row][stage] = times[row].get(stage, 0.0) + ms / every
    return times


def plan(recipe: str, ms: dict[str, float], minutes: float) -> dict[str, int]:
    """Return the steps of each stage that fit into the time."""
    from migan_jax.config import load_config

    config = load_config(recipe, [], tiny=False)
    total = left = 60_000 * minutes
    steps = {}
    for stage, (part, setting) in PARTS.items():
        if stage in ms:
            wanted = 1000 * config.distillation[setting] / config.batch_size
            steps[stage] = round(min(wanted, part * total / ms[stage]))
            left -= steps[stage] * ms[stage]
    return {**steps, "main": max(round(left / ms["main"]), 1)}


def run(workdir: Path, recipe: str, seed: int, steps: dict[str, int]) -> dict[str, Any]:
    """Train for these steps; return the last held-out metrics."""
    from migan_jax.config import load_config
    from migan_jax.training.curves import read_metrics

    kimg = load_config(recipe, [], tiny=False).batch_size / 1000
    total = sum(steps.values())
    settings = [f"seed={seed}", f"total_kimg={total * kimg}"]
    settings += [f"log_every_steps={max(total // 40, 1)}"]
    settings += [f"save_every_steps={max(total // 4, 1)}"]
    # The recipes' would average over most of such a short run.
    settings += [f"optimizer.ema_halflife_kimg={total * kimg / 20}"]
    for stage, (_, setting) in PARTS.items():
        if stage in steps:
            settings.append(f"distillation.{setting}={steps[stage] * kimg}")
    train(recipe, workdir, settings)
    points = [point for point in read_metrics(workdir) if "eval/hole_psnr" in point]
    last = points[-1]
    if last["step"] != total:
        raise SystemExit(f"error: {workdir} ended at step {last['step']} of {total}.")
    names = "hole_psnr", "mean_colour_psnr"
    return {"steps": steps, **{name: rounded(last[f"eval/{name}"]) for name in names}}


# Completions of held-out scenes.


def complete(workdir: Path, recipe: str, seed: int) -> tuple[Any, Any, Any]:
    """Return the held-out scenes, their holes, and a run's completions."""
    import migan_jax
    from migan_jax.config import load_config
    from migan_jax.data.splits import load_held_out, open_splits
    from migan_jax.metrics.fills import network_fill

    size = migan_jax.load(workdir).network.resolution
    settings = [f"seed={seed}", f"resolution={size}"]
    config = load_config(recipe, settings, tiny=False)
    held_out = load_held_out(open_splits(config)[1], config)
    holes = held_out.masks[..., 0] == 0
    fill = network_fill(migan_jax.load(workdir).predict)
    return held_out.images, holes, fill(held_out.images, holes)


def add_distances(runs: dict[str, Any], table: str, folder: Path) -> None:
    """Add the kernel distance of runs that lack it, if VGG-16 is found."""
    from migan_jax.errors import UserError
    from migan_jax.metrics.kid import kid
    from migan_jax.weights.feature_networks import find, load_features

    lacking = [key for key, run in runs.items() if run.get("kernel") is None]
    lacking = [key for key in lacking if (folder / key).is_dir()]
    if not lacking:
        return
    try:
        variables = load_features("vgg", find("vgg"))
    except UserError as error:
        print(f"The VGG-16 kernel distance is left out: {error}")
        return
    for key in lacking:
        row, _, seed = key.rpartition("-")
        truths, _, completions = complete(folder / key, TABLES[table][row], int(seed))
        features = (mean_features(variables, x) for x in (truths, completions))
        runs[key]["kernel"] = rounded(1000 * kid(*features))


def mean_features(variables: Any, images: Any) -> Any:
    """Return VGG-16's last ReLU features before each pooling, averaged: [N, 1472]."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from migan_jax.models.vgg import DEVIATION, MEAN, NETWORKS

    @jax.jit
    def compute(batch: Any) -> Any:
        x = (batch / 255 - jnp.array(MEAN)) / jnp.array(DEVIATION)
        taps = NETWORKS["vgg"].apply(variables, x)
        return jnp.concatenate([tap.mean(axis=(1, 2)) for tap in taps], axis=-1)

    batches = np.split(images.astype(np.float32), range(16, len(images), 16))
    return np.concatenate([np.asarray(compute(batch)) for batch in batches])


def draw_grid(table: str, folder: Path) -> Any:
    """Draw completions of some held-out scenes by the rows' runs of seed 0."""
    from migan_jax.data.sheets import contact_sheet, paint_hole

    columns: dict[str, Any] = {}
    for row, recipe in TABLES[table].items():
        truths, holes, columns[row] = complete(folder / f"{row}-0", recipe, 0)
    shown = range(min(SCENES, len(truths)))
    columns = {"input": list(map(paint_hole, truths, holes)), **columns}
    columns["truth"] = truths
    images = [column[scene] for scene in shown for column in columns.values()]
    labels = [*columns, *[""] * (len(images) - len(columns))]
    return contact_sheet(images, 128, len(columns), labels)


# Tables.


def make_rows(table: str, runs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a table's rows, of the seeds that all rows have."""
    rows = list(TABLES[table])
    seeds = [s for s in range(len(runs)) if all(f"{row}-{s}" in runs for row in rows)]
    base = [runs[f"{rows[0]}-{seed}"]["hole_psnr"] for seed in seeds]
    for name in ("mean colour", *rows):
        is_baseline = name == "mean colour"
        found = [runs[f"{rows[0] if is_baseline else name}-{seed}"] for seed in seeds]
        metric = "mean_colour_psnr" if is_baseline else "hole_psnr"
        values = [run[metric] for run in found]
        row = {"": name, "steps": "-", **describe("", values)}
        if found and not is_baseline:
            row["steps"] = "+".join(map(str, found[0]["steps"].values()))
        compares = not is_baseline and name != rows[0] and None not in base + values
        gains = [b - a for a, b in zip(base, values, strict=True)] if compares else []
        row |= describe("over", gains)
        if table in WITH_KERNEL:
            distances = [] if is_baseline else [run.get("kernel") for run in found]
            mean, spread = describe("kernel", distances).values()
            row |= {"kernel": mean, "kernel's sd": spread}
        shown = ["-" if value is None else value for value in values]
        yield row | {f"seed {s}": v for s, v in zip(seeds, shown, strict=True)}


if __name__ == "__main__":
    main()
