"""Measure the cost of syncing, without which a power cut could lose files.

  python benchmarks/syncing.py --threads=2 --json=out/syncing.json

  checkpoint   save the state of a recipe and wait (training does not wait)
  photos       inpaint a folder of drawn photos, with a network of few channels, which
               takes little of the time

`synced` is the package's behaviour. `unsynced` does not sync. `no manifest` also omits
a checkpoint's manifest, for which all files are read again. TensorStore always syncs
the arrays itself. --folder selects the disk.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores


def main() -> None:
    parser = benchmark_parser(__doc__, repeats=3)
    parser.add_argument("--config", default="places512")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny version of the recipe"
    )
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--side", type=int, default=512, help="side of the photos")
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        saving = Saving(Path(folder), arguments.config, arguments.smoke)
        inpainting = Inpainting(Path(folder), arguments.photos, arguments.side)
        rows = [
            *measure("checkpoint", saving, arguments.repeats, saving.megabytes),
            *measure("photos", inpainting, arguments.repeats, arguments.photos),
        ]
    print_table(rows)
    save_json(arguments.json, rows)


def measure(
    name: str, run: Callable[[], Any], repeats: int, size: float
) -> list[dict[str, Any]]:
    variants = {"unsynced": unsynced, "synced": contextlib.nullcontext}
    if name == "checkpoint":
        variants = {"no manifest": no_manifest, **variants}

    def run_in(context: Callable[[], Any]) -> None:
        with context():
            run()

    runs = {variant: lambda c=c: run_in(c) for variant, c in variants.items()}
    best = minimum_ms(runs, repeats)
    return [
        {
            "": name,
            "variant": variant,
            "MB or photos": size,
            "ms": ms,
            "ratio": ms / best["synced"],
        }
        for variant, ms in best.items()
    ]


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    with mock.patch("os.fsync", lambda descriptor: None):
        yield


@contextlib.contextmanager
def no_manifest() -> Iterator[None]:
    with unsynced(), mock.patch("migan_jax.training.checkpoint.write_manifest"):
        yield


class Saving:
    """Saves a training state; callable repeatedly."""

    def __init__(self, folder: Path, recipe: str, smoke: bool):
        import jax

        from migan_jax.config import load_config
        from migan_jax.families import all_kinds
        from migan_jax.training.checkpoint import Checkpoints, Score
        from migan_jax.training.programs import build_system, initial_state

        config = load_config(recipe, [], smoke)
        system = build_system(config, {})
        exported = {name: system.networks[name] for name in system.exported}
        self.exported = exported, all_kinds()
        self.state = initial_state(config, system)
        leaves = jax.tree.leaves(self.state)
        self.megabytes = sum(leaf.nbytes for leaf in leaves) / 1e6
        score = Score("hole_psnr", more_is_better=True)
        self.checkpoints = Checkpoints(folder / "run", 1, 0, score)

    def __call__(self) -> None:
        step = np.int32(self.state.step + 1)  # a step is saved once
        self.state = dataclasses.replace(self.state, step=step)
        self.checkpoints.save(self.state, *self.exported, {}, None)
        self.checkpoints.wait()


class Inpainting:
    """Inpaints a folder; callable repeatedly."""

    def __init__(self, folder: Path, count: int, side: int):
        import jax
        from PIL import Image

        from migan_jax.data.sources import SceneSource
        from migan_jax.families import save_checkpoint
        from migan_jax.models.layers import Reparam
        from migan_jax.models.migan import MIGANGenerator
        from migan_jax.weights.checkpoint import Checkpoint

        for name in ("photos", "masks"):
            (folder / name).mkdir()
        scenes = SceneSource(side, seed=0)
        mask = np.zeros((side, side), np.uint8)
        mask[side // 3 : side // 2, side // 3 : side // 2] = 255
        for index in range(count):
            scene = Image.fromarray(scenes.encoded(index).image)
            scene.save(folder / "photos" / f"{index}.png")
        Image.fromarray(mask).save(folder / "mask.png")
        network = MIGANGenerator(256, 1024, 16, reparam=Reparam("fused", 1))
        variables = network.init(jax.random.key(0), np.zeros((1, 256, 256, 4)))
        weights = folder / "network.safetensors"
        save_checkpoint(Checkpoint(network, **variables), weights, "fused")
        self.output = folder / "inpainted"
        self.arguments = [
            f"--checkpoint={weights}",
            f"--image={folder / 'photos'}",
            f"--mask={folder / 'mask.png'}",
            f"--output={self.output}",
        ]

    def __call__(self) -> None:
        from migan_jax import inpaint

        shutil.rmtree(self.output, ignore_errors=True)
        with (
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(nothing),
            mock.patch.object(sys, "argv", ["inpaint", *self.arguments]),
        ):
            inpaint.main()


if __name__ == "__main__":
    main()
