"""Pictures to watch a run by: input, completion, references and truth, side by side.

The pictures, their masks and what frozen networks make of them stay the same, so
that grids of different steps, and their figures, can be compared. What they must be
better than is a hole filled with the mean colour of the known pixels.
"""

import functools
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from migan_jax.data.held_out import HeldOut
from migan_jax.data.sheets import contact_sheet, with_hole
from migan_jax.errors import UserError
from migan_jax.files import reason, remove, write_whole
from migan_jax.metrics.evaluator import Eyes
from migan_jax.metrics.fills import mean_colour
from migan_jax.metrics.image import image_metrics
from migan_jax.metrics.table import MORE, Table
from migan_jax.systems.base import System, TrainState
from migan_jax.training import processes
from migan_jax.training.checkpoint import Score

logger = logging.getLogger(__name__)

FOLDER, BEGINNING = "samples", "beginning.png"
SHOWN = 8  # rows of a grid, and pictures that are completed at a time
SMALLEST_SIDE, LARGEST_SIDE = 128, 512  # of a grid's pictures
OF_SETS = "fid", "kid"
BY_MEAN_COLOUR, FINITE = "mean_colour_psnr", "finite"  # figures that have no network


class Beginning:
    """What the network that a run began with made of the first pictures.

    Kept as a file, since a run that goes on has that network no more.

    Args:
      workdir: the run's.
      is_new: the run begins here, so what is there is of another one.
      is_shown: it begins with weights that can do something already.
    """

    def __init__(self, workdir: Path, is_new: bool, is_shown: bool):
        self._path = workdir / FOLDER / BEGINNING
        self._is_wanted = is_shown
        self.completions: list[np.ndarray] = []
        if is_new:
            if jax.process_index() == 0:
                remove(self._path)
        elif self._path.is_file():
            try:
                with Image.open(self._path) as strip:
                    pixels = np.asarray(strip)
                self.completions = np.split(pixels, len(pixels) // pixels.shape[1])
            except (OSError, ValueError) as error:
                logger.warning("%s is not shown: %s", self._path, reason(error))

    def keep(self, completions: list[np.ndarray]) -> None:
        """Those of the run's first evaluation, if they are wanted."""
        if not self._is_wanted or self.completions:
            return
        self.completions = completions
        if jax.process_index() == 0:
            strip = Image.fromarray(np.concatenate(completions))
            write_whole(self._path, lambda part: strip.save(part, format="PNG"))


class Samples:
    """Held-out pictures, what is completed of them, and its figures.

    Several processes take the batches in turns, and all get the figures of all.
    """

    def __init__(
        self,
        system: System,
        held_out: HeldOut,
        frozen: Mapping[str, Any],
        eyes: Eyes,
        seed: int,
        beginning: Beginning,
    ):
        self._held_out, self._eyes = held_out, eyes
        self._beginning = beginning
        self._holes = held_out.masks[..., 0] == 0
        self._key = jax.random.key(seed)
        self._complete = jax.jit(system.inpaint)
        starts = range(0, len(held_out), SHOWN)
        own = starts[jax.process_index() :: jax.process_count()] or starts[:1]
        self._own = [slice(start, start + SHOWN) for start in own]
        self._real = [eyes.features(held_out.images[rows]) for rows in self._own]
        self._by_mean_colour = [self._least(rows) for rows in self._own]
        shown = self._inputs(self._own[0])
        references = jax.jit(system.references)(frozen, *shown, self._key)
        self._references = {
            name: list(_to_uint8(pictures)) for name, pictures in references.items()
        }

    def __len__(self) -> int:
        return len(self._held_out)

    def evaluate(self, state: TrainState) -> tuple[dict[str, float], Image.Image]:
        """What is shipped: its figures, and a grid of this process's first pictures.

        If a completion holds NaN, so do they.
        """
        # All devices hold the same weights: this process needs no others for it.
        shipped = {**state.params, **state.ema}
        params, stats = jax.tree.map(
            lambda x: x.addressable_data(0), (shipped, state.stats)
        )
        tables, shown = [], []
        for batch, rows in enumerate(self._own):
            inputs = self._inputs(rows)
            completions = np.asarray(self._complete(params, stats, *inputs, self._key))
            pictures = _to_uint8(completions)
            shown = shown or list(pictures)
            finite = np.isfinite(completions).all(axis=(1, 2, 3))
            tables.append(self._table(batch, pictures, finite))
        table = everyones(Table.of(tables), f"samples of step {state.step}")
        self._beginning.keep(shown)
        values = agreed(table.values(), f"figures of step {state.step}")
        # Without those that cannot be said, as of very small pictures.
        values = {n: v for n, v in values.items() if not math.isnan(v)}
        if values.pop(FINITE) < 1:
            nothing = dict.fromkeys(values.keys() - {BY_MEAN_COLOUR}, math.nan)
            values |= nothing
        return values, self._grid(shown)

    def _inputs(self, rows: slice) -> tuple[jax.Array, jax.Array]:
        """Images in [-1, 1] and masks, as networks take them."""
        images = jnp.asarray(self._held_out.images[rows], jnp.float32) * (2 / 255) - 1
        return images, jnp.asarray(self._held_out.masks[rows], jnp.float32)

    def _least(self, rows: slice) -> np.ndarray:
        truths, holes = self._held_out.images[rows], self._holes[rows]
        return image_metrics(truths, mean_colour(truths, holes), holes)["hole_psnr"]

    def _table(self, batch: int, pictures: np.ndarray, finite: np.ndarray) -> Table:
        rows = self._own[batch]
        truths, holes = self._held_out.images[rows], self._holes[rows]
        return Table(
            tuple(str(number) for number in range(len(self))[rows]),
            holes.mean(axis=(1, 2)),
            {
                **self._eyes.compare(truths, pictures, holes),
                BY_MEAN_COLOUR: self._by_mean_colour[batch],
                FINITE: finite.astype(np.float64),
            },
            self._real[batch],
            self._eyes.features(pictures),
        )

    def save_example(self, workdir: Path) -> tuple[Path, Path]:
        """The first of the pictures and its mask, hole white, as files to try on."""
        folder = workdir / FOLDER
        paths = folder / "example.png", folder / "example_mask.png"
        example = self._held_out.images[0], 255 * self._holes[0].astype(np.uint8)
        for path, pixels in zip(paths, example, strict=True):
            picture = Image.fromarray(pixels)
            write_whole(path, functools.partial(picture.save, format="PNG"))
        return paths

    def _grid(self, completions: list[np.ndarray]) -> Image.Image:
        truths, holes = (x[self._own[0]] for x in (self._held_out.images, self._holes))
        begun = self._beginning.completions
        if len(begun) != len(completions):  # of other pictures
            begun = []
        columns = {
            "input": list(map(with_hole, truths, holes)),
            "completion": completions,
            **({"begun with": begun} if begun else {}),
            **self._references,
            "truth": list(truths),
        }
        rows = len(completions)
        pictures = [column[row] for row in range(rows) for column in columns.values()]
        size = len(completions[0])
        side = min(max(size, SMALLEST_SIDE), LARGEST_SIDE)
        labels = list(columns) + [""] * (len(columns) * (rows - 1))
        return contact_sheet(pictures, side, len(columns), labels)


def agreed(values: dict[str, float], name: str) -> dict[str, float]:
    """Process 0's values, so that all processes decide alike."""
    rows = processes.together(np.array([list(values.values())]), name)
    return dict(zip(values, map(float, rows[0]), strict=True))


def score_of(best_by: str, count: int) -> Score:
    """The figure of held-out pictures, whose number is part of FID's name."""
    if best_by in OF_SETS and count < 2:
        raise UserError(
            f"best_by is {best_by}, which {count} held-out pictures have not: hold out "
            f"more (data.held_out, data.validation), hundreds if you can."
        )
    name = f"fid_{count}" if best_by == "fid" else best_by
    return Score(name, more_is_better=name.startswith(MORE))


def everyones(table: Table, name: str) -> Table:
    """One table of the rows of all processes; those that several have count once."""
    figures = list(table.figures)
    numbers = np.array([int(number) for number in table.names], np.float64)
    columns = [numbers, table.ratios, *(table.figures[name] for name in figures)]
    own = np.concatenate([np.stack(columns, axis=1), table.real, table.fake], axis=1)
    rows = processes.together(own, name)
    _, first = np.unique(rows[:, 0], return_index=True)
    numbers, ratios, *values = rows[first, : len(columns)].T
    real, fake = np.split(rows[first, len(columns) :].astype(np.float32), 2, axis=1)
    names = tuple(str(int(number)) for number in numbers)
    return Table(names, ratios, dict(zip(figures, values, strict=True)), real, fake)


def save_grid(workdir: Path, step: int, grid: Image.Image) -> Path:
    """As a PNG, whole or not at all."""
    path = workdir / FOLDER / f"step_{step:08}.png"
    write_whole(path, lambda part: grid.save(part, format="PNG"))
    return path


def _to_uint8(images: jax.Array) -> np.ndarray:
    scaled = (np.asarray(images, np.float32) + 1) * 127.5
    return np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)
