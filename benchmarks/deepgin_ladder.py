"""DeepGIN's ladder (Table 1) at the size of deepgin_scenes64, in equal training time.

  python benchmarks/deepgin_ladder.py --seeds=3 --minutes=2

For every seed and row: L1 training alone (the warm-up stage), for as many steps as fit
into --minutes on this machine. They follow from the rows' fastest steps, timed in turn
once, so that other load does not change results. The metric is the held-out hole PSNR
of the EMA at the end, in dB, over the same 64 scenes and masks for all runs of a seed;
`mean colour` is that of filling holes with the mean of the known pixels. `over before`
is the gain over the row before, per seed: mean and standard deviation.

The paper's rows were trained for days at 256 pixels. A few minutes at 64 pixels show
how fast the networks learn, not how good they become. Each finished run is added to
--json, and not repeated.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from timing import minimum_ms, print_table, use_cores
from training_runs import runs_parser, train

from migan_jax.files import write_json

RECIPE = "deepgin_scenes64"
ROWS = ("coarse_only", "std", "std_mssa", "spd_mssa", "full")
JSON = Path(__file__).parent / "deepgin_ladder.json"


def main() -> None:
    parser = runs_parser(__doc__, "runs/deepgin_ladder")
    parser.set_defaults(json=JSON)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=2.0, help="of every run")
    arguments = parser.parse_args()
    path, minutes = arguments.json, arguments.minutes
    saved = json.loads(path.read_text()) if path.is_file() else {"runs": {}}
    if saved.setdefault("minutes", minutes) != minutes:
        raise SystemExit(f"error: {path} has runs of {saved['minutes']} minutes.")
    if "ms per step" not in saved:
        saved["ms per step"] = time_steps()
        write_json(path, saved)
    for seed in range(arguments.seeds):
        for row in ROWS:
            name = f"{row}-{seed}"
            if name not in saved["runs"]:
                steps = round(60_000 * minutes / saved["ms per step"][row])
                workdir = arguments.folder / name
                saved["runs"][name] = train_and_measure(workdir, row, seed, steps)
                write_json(path, saved)
    print_table(list(make_rows(saved)))


def settings(row: str) -> list[str]:
    return [
        f"deepgin.variant={row}",
        "optimizer.ema_halflife_kimg=0.5",
        "deepgin.warmup_kimg=1000000",  # longer than any run
    ]


def time_steps() -> dict[str, float]:
    """Return the fastest step of each row in milliseconds, timed in turn."""
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
    for row in ROWS:
        config = load_config(RECIPE, settings(row), tiny=False)
        system = build_system(config, {})
        step = make_step(
            system, make_timeline(config, system).at(0), ema_halflife_kimg=0.5
        )
        state = jax.jit(lambda c=config, s=system: initial_state(c, s))()
        shape = config.batch_size, config.resolution, config.resolution, 3
        batch = {"image": np.zeros(shape, np.uint8)}
        inputs = state, {}, batch, jax.random.key(0)
        program = jax.jit(step).lower(*inputs).compile()
        alternatives[row] = lambda run=program, x=inputs: jax.block_until_ready(run(*x))
    return minimum_ms(alternatives, repeats=15)


def train_and_measure(workdir: Path, row: str, seed: int, steps: int) -> dict:
    """Train one row for some steps, and return its last held-out metrics."""
    from migan_jax.config import load_config
    from migan_jax.training.curves import read_metrics

    batch = load_config(RECIPE, [], tiny=False).batch_size
    length = [f"total_kimg={steps * batch / 1000}", f"save_every_steps={steps}"]
    train(RECIPE, workdir, [*settings(row), f"seed={seed}", *length])
    last = read_metrics(workdir)[-1]
    names = "hole_psnr", "mean_colour_psnr"
    return {"steps": steps, **{name: last[f"eval/{name}"] for name in names}}


def make_rows(saved: dict[str, Any]) -> Any:
    """Yield the table's rows, of the seeds that all rows have."""
    runs = saved["runs"]
    seeds = [s for s in range(len(runs)) if all(f"{row}-{s}" in runs for row in ROWS)]
    baseline = [runs[f"{ROWS[0]}-{s}"]["mean_colour_psnr"] for s in seeds]
    yield describe("mean colour", "-", baseline, None)
    before = None
    for row in ROWS:
        values = [runs[f"{row}-{s}"]["hole_psnr"] for s in seeds]
        yield describe(row, runs[f"{row}-{seeds[0]}"]["steps"], values, before)
        before = values


def describe(
    name: str, steps: Any, values: list[float], before: list[float] | None
) -> dict[str, Any]:
    gains = (
        [] if before is None else [b - a for a, b in zip(before, values, strict=True)]
    )
    return {
        "": name,
        "steps": steps,
        "mean dB": statistics.mean(values),
        "sd": deviation(values),
        "over before": statistics.mean(gains) if gains else "-",
        "its sd": deviation(gains) if gains else "-",
        **{f"seed {seed}": value for seed, value in enumerate(values)},
    }


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
