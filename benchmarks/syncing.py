"""What it costs that a power cut loses nothing: saving and filling, synced and not.

  python benchmarks/syncing.py --threads=2 --json=out/syncing.json

  checkpoint   the state of a recipe, saved and waited for (training does not wait)
  photos       a folder of drawn photos filled by `inpaint`, with a network of few
               channels, so that little of the time is the network's

`synced` is what the package does. `unsealed` leaves out the manifest of a checkpoint,
for which all of it is read once more, and its syncing; `unsynced` leaves out syncing
only. TensorStore syncs the arrays itself, in all of them. --folder names the disk.
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
    parser.add_argument("--smoke", action="store_true", help="a tiny version of it")
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--side", type=int, default=512, help="of the photos")
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        saving = Saving(Path(folder), arguments.config, arguments.smoke)
        filling = Filling(Path(folder), arguments.photos, arguments.side)
        rows = [
            *measure("checkpoint", saving, arguments.repeats, saving.megabytes),
            *measure("photos", filling, arguments.repeats, arguments.photos),
        ]
    print_table(rows)
    save_json(arguments.json, rows)


def measure(
    what: str, run: Callable[[], Any], repeats: int, size: float
) -> list[dict[str, Any]]:
    alternatives = {"unsynced": unsynced, "synced": contextlib.nullcontext}
    if what == "checkpoint":
        alternatives = {"unsealed": unsealed, **alternatives}

    def under(context: Callable[[], Any]) -> None:
        with context():
            run()

    runs = {name: lambda c=c: under(c) for name, c in alternatives.items()}
    best = minimum_ms(runs, repeats)
    return [
        {
            "": what,
            "how": name,
            "MB or photos": size,
            "ms": ms,
            "ratio": ms / best["synced"],
        }
        for name, ms in best.items()
    ]


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    with mock.patch("os.fsync", lambda descriptor: None):
        yield


@contextlib.contextmanager
def unsealed() -> Iterator[None]:
    with unsynced(), mock.patch("migan_jax.training.checkpoint.seal"):
        yield


class Saving:
    """A state that is saved again and again."""

    def __init__(self, folder: Path, recipe: str, smoke: bool):
        import jax

        from migan_jax.config import load_config
        from migan_jax.families import all_kinds
        from migan_jax.training.checkpoint import Checkpoints, Score
        from migan_jax.training.setup import build_system, first_state

        config = load_config(recipe, [], smoke)
        system = build_system(config, {})
        exported = {name: system.networks[name] for name in system.exported}
        self.shipped = exported, all_kinds()
        self.state = first_state(config, system)
        leaves = jax.tree.leaves(self.state)
        self.megabytes = sum(leaf.nbytes for leaf in leaves) / 1e6
        score = Score("hole_psnr", more_is_better=True)
        self.checkpoints = Checkpoints(folder / "run", 1, 0, score)

    def __call__(self) -> None:
        step = np.int32(self.state.step + 1)  # each is saved once
        self.state = dataclasses.replace(self.state, step=step)
        self.checkpoints.save(self.state, *self.shipped, {}, None)
        self.checkpoints.wait()


class Filling:
    """A folder that is filled again and again."""

    def __init__(self, folder: Path, count: int, side: int):
        import jax
        from PIL import Image

        from migan_jax.data.sources import SceneSource
        from migan_jax.families import save_checkpoint
        from migan_jax.models.layers import Reparam
        from migan_jax.models.migan import Generator
        from migan_jax.weights.checkpoint import Checkpoint

        for name in ("photos", "masks"):
            (folder / name).mkdir()
        scenes = SceneSource(side, seed=0)
        mask = np.zeros((side, side), np.uint8)
        mask[side // 3 : side // 2, side // 3 : side // 2] = 255
        for number in range(count):
            scene = Image.fromarray(scenes.encoded(number).image)
            scene.save(folder / "photos" / f"{number}.png")
        Image.fromarray(mask).save(folder / "mask.png")
        network = Generator(256, 1024, 16, reparam=Reparam("fused", 1))
        variables = network.init(jax.random.key(0), np.zeros((1, 256, 256, 4)))
        weights = folder / "network.safetensors"
        save_checkpoint(Checkpoint(network, **variables), weights, "fused")
        self.output = folder / "filled"
        self.words = [
            f"--checkpoint={weights}",
            f"--image={folder / 'photos'}",
            f"--mask={folder / 'mask.png'}",
            f"--output={self.output}",
        ]

    def __call__(self) -> None:
        from migan_jax import inpaint

        shutil.rmtree(self.output, ignore_errors=True)
        arguments = ["inpaint", *self.words]
        with (
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(nothing),
            mock.patch.object(sys, "argv", arguments),
        ):
            inpaint.main()


if __name__ == "__main__":
    main()
