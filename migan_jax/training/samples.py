"""Validation samples: grids of input, completion, references and truth; metrics.

Images, masks and the references (completions by frozen networks) never change, so that
grids and metrics of different steps can be compared. The baseline is filling holes with
the mean colour of the known pixels.
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

from migan_jax.data.sheets import contact_sheet, paint_hole
from migan_jax.data.splits import HeldOut
from migan_jax.errors import UserError
from migan_jax.files import reason, remove, write_whole
from migan_jax.metrics.evaluator import FeatureNetworks
from migan_jax.metrics.fills import mean_colour
from migan_jax.metrics.image import image_metrics
from migan_jax.metrics.table import HIGHER_IS_BETTER, Table
from migan_jax.systems.base import Stage, System, TrainState
from migan_jax.training import processes
from migan_jax.training.checkpoint import Score

logger = logging.getLogger(__name__)

SAMPLES_FOLDER, INITIAL_FILE = "samples", "beginning.png"
GRID_ROWS = 8  # images in a grid, and in a batch
MIN_SIDE, MAX_SIDE = 128, 512  # of a grid's images, in pixels
SET_METRICS = "fid", "kid"  # of sets of images, not of one
MEAN_COLOUR_PSNR, FINITE = "mean_colour_psnr", "finite"


class InitialCompletions:
    """Completions by the network that a fine-tuning run started from.

    Kept in a file, since a resumed run no longer has that network.

    Args:
      is_new: the run starts now, so an existing file belongs to another run.
      is_shown: the run starts from pretrained weights.
    """

    def __init__(self, workdir: Path, is_new: bool, is_shown: bool):
        self._path = workdir / SAMPLES_FOLDER / INITIAL_FILE
        self._is_shown = is_shown
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
                logger.warning("Cannot read %s: %s", self._path, reason(error))

    def keep(self, completions: list[np.ndarray]) -> None:
        """Save the completions of the run's first evaluation, if it is fine-tuning."""
        if not self._is_shown or self.completions:
            return
        self.completions = completions
        if jax.process_index() == 0:
            strip = Image.fromarray(np.concatenate(completions))
            write_whole(self._path, lambda temp: strip.save(temp, format="PNG"))


class Samples:
    """Held-out images, their completions and metrics.

    Several processes share the batches, and all get the metrics of all images.
    """

    def __init__(
        self,
        system: System,
        held_out: HeldOut,
        frozen: Mapping[str, Any],
        feature_networks: FeatureNetworks,
        seed: int,
        initial: InitialCompletions,
    ):
        self._held_out, self._feature_networks = held_out, feature_networks
        self._initial = initial
        self._holes = held_out.masks[..., 0] == 0
        self._key = jax.random.key(seed)
        self._complete = jax.jit(system.inpaint)
        self._complete_in: dict[str, Any] = {}  # by stage, if it has its own system
        starts = range(0, len(held_out), GRID_ROWS)
        local = starts[jax.process_index() :: jax.process_count()] or starts[:1]
        self._batches = [slice(start, start + GRID_ROWS) for start in local]
        self._real_features = [
            feature_networks.features(held_out.images[rows]) for rows in self._batches
        ]
        self._mean_colour_psnr = [
            self._compute_mean_colour_psnr(rows) for rows in self._batches
        ]
        inputs = self._inputs(self._batches[0])
        references = jax.jit(system.references)(frozen, *inputs, self._key)
        self._references = {
            name: list(_to_uint8(images)) for name, images in references.items()
        }

    def __len__(self) -> int:
        return len(self._held_out)

    def evaluate(
        self, state: TrainState, stage: Stage | None = None
    ) -> tuple[dict[str, float], Image.Image]:
        """Evaluate the exported networks, as they are in a stage; the EMA if any.

        Returns metrics, NaN if a completion is not finite, and a grid of this process's
        first images.
        """
        # Weights are replicated, so each process can compute alone, on one device.
        exported = {**state.params, **state.ema}
        params, stats = jax.tree.map(
            lambda x: x.addressable_data(0), (exported, state.stats)
        )
        complete = self._complete
        if stage is not None and stage.system is not None:
            complete = self._complete_in.setdefault(
                stage.name, jax.jit(stage.system.inpaint)
            )
        tables, first_batch = [], []
        for index, rows in enumerate(self._batches):
            inputs = *self._inputs(rows), self._key
            outputs = complete(params, stats, *inputs, **self._points(rows))
            outputs = np.asarray(outputs)
            completions = _to_uint8(outputs)
            first_batch = first_batch or list(completions)
            finite = np.isfinite(outputs).all(axis=(1, 2, 3))
            tables.append(self._make_table(index, completions, finite))
        table = gather_table(Table.concatenate(tables), f"samples of step {state.step}")
        self._initial.keep(first_batch)
        name = f"metrics of step {state.step}"
        values = processes.from_process_0(table.values(), name)
        # Some metrics are undefined for very small images.
        values = {n: v for n, v in values.items() if not math.isnan(v)}
        if values.pop(FINITE) < 1:
            values |= dict.fromkeys(values.keys() - {MEAN_COLOUR_PSNR}, math.nan)
        return values, self._grid(first_batch)

    def _points(self, rows: slice) -> dict[str, jax.Array]:
        """Return the keypoints as an argument, if the run has any."""
        points = self._held_out.points
        return {} if points is None else {"points": jnp.asarray(points[rows])}

    def _inputs(self, rows: slice) -> tuple[jax.Array, jax.Array]:
        """Return images in [-1, 1] and masks (1: known)."""
        images = jnp.asarray(self._held_out.images[rows], jnp.float32) * (2 / 255) - 1
        return images, jnp.asarray(self._held_out.masks[rows], jnp.float32)

    def _compute_mean_colour_psnr(self, rows: slice) -> np.ndarray:
        truths, holes = self._held_out.images[rows], self._holes[rows]
        return image_metrics(truths, mean_colour(truths, holes), holes)["hole_psnr"]

    def _make_table(
        self, index: int, completions: np.ndarray, finite: np.ndarray
    ) -> Table:
        """Measure a batch; the table's names are the images' indices."""
        rows = self._batches[index]
        truths, holes = self._held_out.images[rows], self._holes[rows]
        return Table(
            tuple(str(image) for image in range(len(self))[rows]),
            holes.mean(axis=(1, 2)),
            {
                **self._feature_networks.compare(truths, completions, holes),
                MEAN_COLOUR_PSNR: self._mean_colour_psnr[index],
                FINITE: finite.astype(np.float64),
            },
            self._real_features[index],
            self._feature_networks.features(completions),
        )

    def save_example(self, workdir: Path) -> tuple[Path, Path]:
        """Write the first image and its mask, hole white; return both paths."""
        folder = workdir / SAMPLES_FOLDER
        paths = folder / "example.png", folder / "example_mask.png"
        example = self._held_out.images[0], 255 * self._holes[0].astype(np.uint8)
        for path, pixels in zip(paths, example, strict=True):
            image = Image.fromarray(pixels)
            write_whole(path, functools.partial(image.save, format="PNG"))
        return paths

    def _grid(self, completions: list[np.ndarray]) -> Image.Image:
        rows = self._batches[0]
        truths, holes = self._held_out.images[rows], self._holes[rows]
        initial = self._initial.completions
        if len(initial) != len(completions):  # of other images
            initial = []
        columns = {
            "input": list(map(paint_hole, truths, holes)),
            "completion": completions,
            **({"initial": initial} if initial else {}),
            **self._references,
            "truth": list(truths),
        }
        height = len(completions)
        images = [column[row] for row in range(height) for column in columns.values()]
        side = min(max(len(completions[0]), MIN_SIDE), MAX_SIDE)
        labels = list(columns) + [""] * (len(columns) * (height - 1))
        return contact_sheet(images, side, len(columns), labels)


def make_score(best_by: str, count: int) -> Score:
    """Return the metric that ranks checkpoints, measured on `count` held-out images.

    The number of images is part of FID's name.
    """
    if best_by in SET_METRICS and count < 2:
        raise UserError(
            f"best_by is {best_by}, which needs at least 2 held-out images, not "
            f"{count}. Hold out hundreds (data.held_out, data.validation)."
        )
    name = f"fid_{count}" if best_by == "fid" else best_by
    return Score(name, more_is_better=name.startswith(HIGHER_IS_BETTER))


def gather_table(table: Table, name: str) -> Table:
    """Merge the tables of all processes; an image that several have counts once."""
    metrics = list(table.metrics)
    indices = np.array([int(index) for index in table.names], np.float64)
    columns = [indices, table.ratios, *(table.metrics[name] for name in metrics)]
    local = np.concatenate([np.stack(columns, axis=1), table.real, table.fake], axis=1)
    rows = processes.all_gather(local, name)
    _, first = np.unique(rows[:, 0], return_index=True)
    indices, ratios, *values = rows[first, : len(columns)].T
    real, fake = np.split(rows[first, len(columns) :].astype(np.float32), 2, axis=1)
    names = tuple(str(int(index)) for index in indices)
    return Table(names, ratios, dict(zip(metrics, values, strict=True)), real, fake)


def save_grid(workdir: Path, step: int, grid: Image.Image) -> Path:
    """Write a grid as a PNG, atomically."""
    path = workdir / SAMPLES_FOLDER / f"step_{step:08}.png"
    write_whole(path, lambda temp: grid.save(temp, format="PNG"))
    return path


def _to_uint8(images: jax.Array) -> np.ndarray:
    scaled = (np.asarray(images, np.float32) + 1) * 127.5
    return np.nan_to_num(scaled).clip(0, 255).round().astype(np.uint8)
