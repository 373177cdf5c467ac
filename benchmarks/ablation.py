"""The paper's ablation (Table 4) at the size of scenes64: the gain of each component.

  python benchmarks/ablation.py --seeds=3 --json=out/ablation.json

For every seed: a small Co-Mod-GAN (scenes64:teacher), MI-GAN with one kernel and no
teacher (baseline), with nine kernels (reparam), and distilled from that teacher
(reparam_kd), all for --kimg. The metric is the held-out hole PSNR of the EMA at the
end, in dB, over the same 64 scenes and masks for all runs of a seed; `mean colour` is
that of filling holes with the mean of the known pixels. `over before` is the gain over
the row before, per seed: mean and standard deviation.

The paper reports FID after 30 million images. A few thousand images at 64 pixels can
show the direction of an effect, not its size. Runs are kept in --folder; complete ones
are not repeated.
"""

import statistics
from pathlib import Path
from typing import Any

from timing import print_table, save_json
from training_runs import runs_parser, train

from migan_jax.training.curves import read_metrics

STUDENTS = ("baseline", "reparam", "reparam_kd")


def main() -> None:
    parser = runs_parser(__doc__, "runs/ablation")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kimg", type=float, default=12.0, help="of every run")
    arguments = parser.parse_args()
    table: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        for variant in ("teacher", *STUDENTS):
            last = train_and_measure(arguments.folder, variant, seed, arguments.kimg)
            table.setdefault(variant, []).append(last["eval/hole_psnr"])
        table.setdefault("mean colour", []).append(last["eval/mean_colour_psnr"])
    rows = list(make_rows(table))
    print_table(rows)
    save_json(arguments.json, rows)


def train_and_measure(folder: Path, variant: str, seed: int, kimg: float) -> Any:
    """Train one variant, and return its last metrics."""
    workdir = folder / f"{variant}-{seed}"
    settings = [f"seed={seed}", f"total_kimg={kimg}"]
    if variant == STUDENTS[-1]:
        settings.append(f"teacher={folder / f'teacher-{seed}'}")
    train(f"scenes64:{variant}", workdir, settings)
    return read_metrics(workdir)[-1]


def make_rows(table: dict[str, list[float]]) -> Any:
    before = None
    for name in ("mean colour", *STUDENTS, "teacher"):
        values = table[name]
        row = {"": name, "mean dB": statistics.mean(values), "sd": sample_stdev(values)}
        if name in STUDENTS and before is not None:
            gains = [b - a for a, b in zip(before, values, strict=True)]
            row |= {
                "over before": statistics.mean(gains),
                "its sd": sample_stdev(gains),
            }
        else:
            row |= {"over before": "-", "its sd": "-"}
        before = values if name in STUDENTS else None
        yield row | {f"seed {seed}": value for seed, value in enumerate(values)}


def sample_stdev(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
