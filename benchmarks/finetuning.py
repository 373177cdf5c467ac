"""Fine-tune a small network on other scenes: the gain there, and the loss elsewhere.

  python benchmarks/finetuning.py --json=out/finetuning.json

scenes64 is trained on one family of scenes. Then it is fine-tuned on another one with
finetune256's settings at 64 pixels, in several ways:

  generator      from its fused generator alone, like a released file: the recipe
  no warm-up     the same without the discriminator's warm-up
  both           from the run, so with its discriminator, without a warm-up
  frozen levels  the same, with the discriminator's two largest levels frozen

The metric is the held-out hole PSNR of the EMA in dB, on 64 scenes of either family
with fixed masks: before fine-tuning, and at every checkpoint. `mean colour` is that of
filling holes with the mean of the known pixels. Runs are kept in --folder; complete
ones are not repeated.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from timing import print_table, save_json
from training_runs import runs_parser, train

import migan_jax
from migan_jax.config import flat, load_config
from migan_jax.data.splits import HeldOut, load_held_out, open_splits
from migan_jax.families import load_checkpoint, save_checkpoint
from migan_jax.metrics.evaluator import Fill
from migan_jax.metrics.fills import mean_colour, network_fill
from migan_jax.metrics.image import image_metrics

# Settings taken from scenes64; all others are finetune256's.
FROM_SCENES64 = (
    *("resolution", "batch_size", "networks.channel_base", "networks.channel_max"),
    *("networks.dtype", "optimizer.ema_halflife_kimg", "data.mask_kind"),
    *("data.draw_masks_on", "data.held_out"),
)
EVERY_STEPS = 50
NO_WARM_UP = "optimizer.warmup_kimg=0"
WAYS: dict[str, tuple[str, ...]] = {  # name: settings
    "generator": ("optimizer.warmup_kimg=0.8",),
    "no warm-up": (NO_WARM_UP,),
    "both": (NO_WARM_UP,),
    "frozen levels": (NO_WARM_UP, "optimizer.frozen_levels=2"),
}


def main() -> None:
    parser = runs_parser(__doc__, "runs/finetuning")
    parser.add_argument("--first", default="scenes:leaves", help="scenes to train on")
    parser.add_argument("--second", default="scenes:grids", help="to fine-tune on")
    parser.add_argument("--kimg", type=float, default=4.0, help="of fine-tuning")
    arguments = parser.parse_args()
    folder, families = arguments.folder, (arguments.first, arguments.second)
    train("scenes64", folder / "before", [f"data.source={arguments.first}"])
    fused = folder / "fused.safetensors"
    save_checkpoint(load_checkpoint(folder / "before"), fused, "fused")

    recipe = flat(load_config("scenes64", [], tiny=False))
    shared = [f"{key}={recipe[key]}" for key in FROM_SCENES64]
    shared += [
        *(f"data.source={arguments.second}", f"total_kimg={arguments.kimg}"),
        *(f"save_every_steps={EVERY_STEPS}", "keep_last=1000"),
    ]
    held_out = {family: load_scenes(family) for family in families}
    rows = [{"way": "mean colour", "step": "-", **hole_psnrs(mean_colour, held_out)}]
    before = hole_psnrs(load_fill(folder / "before"), held_out)
    rows.append({"way": "before", "step": 0, **before})
    for way, settings in WAYS.items():
        workdir = folder / way.replace(" ", "_")
        source = folder / "before" if way in ("both", "frozen levels") else fused
        train("finetune256", workdir, [*shared, *settings], f"--init-from={source}")
        for step, path in checkpoints(workdir):
            psnrs = hole_psnrs(load_fill(path), held_out)
            rows.append({"way": way, "step": step, **psnrs})
    print_table(rows)
    save_json(arguments.json, rows)


def load_scenes(family: str) -> HeldOut:
    config = load_config("scenes64", [f"data.source={family}"], tiny=False)
    return load_held_out(open_splits(config)[1], config)


def checkpoints(workdir: Path) -> Iterator[tuple[int, Path]]:
    folder = workdir / "checkpoints"
    for step in sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal()):
        yield step, folder / str(step)


def hole_psnrs(fill: Fill, held_out: dict[str, HeldOut]) -> dict[str, float]:
    """Return the mean hole PSNR, by family."""
    return {family: hole_psnr(scenes, fill) for family, scenes in held_out.items()}


def load_fill(path: Path) -> Fill:
    return network_fill(migan_jax.load(path).predict)


def hole_psnr(scenes: HeldOut, fill: Fill) -> float:
    holes = scenes.masks[..., 0] == 0
    metrics = image_metrics(scenes.images, fill(scenes.images, holes), holes)
    return float(np.nanmean(metrics["hole_psnr"]))


if __name__ == "__main__":
    main()
