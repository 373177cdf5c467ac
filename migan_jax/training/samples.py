"""Pictures to watch a run by: input, completion, teacher and truth, side by side.

The pictures, their masks and the teacher's completions are the same all the time, so
that grids of different steps, and their figures, can be compared. What they must be
better than is a hole filled with the mean colour of the known pixels.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from migan_jax.data.held_out import HeldOut
from migan_jax.data.sheets import contact_sheet, with_hole
from migan_jax.files import write_whole
from migan_jax.systems.base import System, completed, composite, hole_psnr
from migan_jax.training.building import Teacher
from migan_jax.training.step import TrainState

FOLDER = "samples"
SHOWN = 8  # rows of a grid
SMALLEST_SIDE, LARGEST_SIDE = 128, 512  # of a grid's pictures


class Samples:
    """Held-out pictures, and what is completed of them."""

    def __init__(
        self, system: System, held_out: HeldOut, teacher: Teacher | None, seed: int
    ):
        self._held_out, self._key = held_out, jax.random.key(seed)
        self._images = jnp.asarray(held_out.images, jnp.float32) * (2 / 255) - 1
        self._masks = jnp.asarray(held_out.masks, jnp.float32)
        self._complete = jax.jit(system.inpaint)
        self._psnr = jax.jit(hole_psnr)
        filled = jax.jit(with_mean_colour)(self._images, self._masks)
        self._by_mean_colour = float(self._psnr(self._images, filled, self._masks))
        self._by_teacher: list[np.ndarray] = []
        if teacher is not None:
            network = teacher.network
            z = jax.random.normal(self._key, (SHOWN, network.z_dim))
            images, masks = self._images[:SHOWN], self._masks[:SHOWN]
            pictures = jax.jit(completed, static_argnums=0)(
                network, teacher.variables, images, masks, z[: len(images)]
            )
            self._by_teacher = list(_to_uint8(pictures))

    def evaluate(self, state: TrainState) -> tuple[dict[str, float], Image.Image]:
        """The EMA's figures and grid."""
        # All devices hold the same weights: this process needs no others for it.
        key = self._key
        ema, stats = jax.tree.map(
            lambda x: x.addressable_data(0), (state.ema, state.stats)
        )
        parts = [
            self._complete(
                ema, stats, self._images[i : i + SHOWN], self._masks[i : i + SHOWN], key
            )
            for i in range(0, len(self._held_out), SHOWN)  # more need too much memory
        ]
        completions = jnp.concatenate(parts)
        psnr = float(self._psnr(self._images, completions, self._masks))
        figures = {
            "eval/hole_psnr": psnr,
            "eval/mean_colour_psnr": self._by_mean_colour,
        }
        return figures, self._grid(_to_uint8(completions))

    def save_example(self, workdir: Path) -> tuple[Path, Path]:
        """The first of the pictures and its mask, hole white, as files to try on."""
        folder = workdir / FOLDER
        paths = folder / "example.png", folder / "example_mask.png"
        hole = 255 * (1 - self._held_out.masks[0, ..., 0])
        for path, pixels in zip(paths, (self._held_out.images[0], hole), strict=True):
            picture = Image.fromarray(pixels)
            write_whole(path, functools.partial(picture.save, format="PNG"))
        return paths

    def _grid(self, completions: np.ndarray) -> Image.Image:
        columns = {
            "input": [
                with_hole(image, mask[..., 0] == 0)
                for image, mask in zip(
                    self._held_out.images, self._held_out.masks, strict=True
                )
            ],
            "completion": list(completions),
            **({"teacher": self._by_teacher} if self._by_teacher else {}),
            "truth": list(self._held_out.images),
        }
        rows = min(SHOWN, len(self._held_out))
        pictures = [column[row] for row in range(rows) for column in columns.values()]
        size = completions.shape[1]
        side = min(max(size, SMALLEST_SIDE), LARGEST_SIDE)
        labels = list(columns) + [""] * (len(columns) * (rows - 1))
        return contact_sheet(pictures, side, len(columns), labels)


def with_mean_colour(images: jax.Array, masks: jax.Array) -> jax.Array:
    """Pictures whose holes have the mean colour of what is known of them."""
    known = jnp.maximum(jnp.sum(masks, axis=(1, 2), keepdims=True), 1)
    mean = jnp.sum(images * masks, axis=(1, 2), keepdims=True) / known
    return composite(images, jnp.broadcast_to(mean, images.shape), masks)


def save_grid(workdir: Path, step: int, grid: Image.Image) -> Path:
    """As a PNG, whole or not at all."""
    path = workdir / FOLDER / f"step_{step:08}.png"
    write_whole(path, lambda part: grid.save(part, format="PNG"))
    return path


def _to_uint8(images: jax.Array) -> np.ndarray:
    scaled = (np.asarray(images, np.float32) + 1) * 127.5
    return np.clip(scaled, 0, 255).round().astype(np.uint8)
