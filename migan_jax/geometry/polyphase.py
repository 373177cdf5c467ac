"""Fill a photo's hole from the whole photo, split into tiles of the network's size.

How Li et al. (2020) complete large photos. Unlike the crops of `fill`, every tile shows
the whole photo, so the network sees all its context, but coarsely:

1. The photo is resized, in float with a cubic kernel, to the nearest multiples of the
   network's size, at least that size: v times as high and h times as wide.
2. Tile (a, b) is every v-th row from row a, and every h-th column from column b. The
   network completes the v * h tiles one after the other. To it, every pixel within
   `feather` of the hole is unknown, and so is every resized pixel that includes one.
3. The tiles are merged, resized back and pasted as in `fill`.

Memory use is about 50 bytes per pixel of the resized photo, and 75 with `raw`.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from PIL import Image

from migan_jax.geometry.crops import Box, Placement, bounding_box
from migan_jax.geometry.fill import (
    DEFAULT_FEATHER,
    Predict,
    check_arguments,
    mask_levels,
    paste,
    resize,
    run_network,
    squared_distance,
    warn_of_little_context,
    write_raw,
)

logger = logging.getLogger(__name__)

Tiles = Literal["crops", "polyphase"]

# Source pixels on each side of its centre that a resized pixel includes; more of them
# if it is shrunk.
CUBIC_SUPPORT = 2


def fill_polyphase(
    image: np.ndarray,
    hole: np.ndarray,
    predict: Predict,
    size: int,
    feather: int = DEFAULT_FEATHER,
    raw: np.ndarray | None = None,
    track: Callable[[list[int]], Iterable[int]] = iter,
    warn: Callable[[str], object] = logger.warning,
) -> np.ndarray:
    """Fill the hole of a photo of any size.

    Arguments are those of `fill.fill_holes`, except that `track` wraps the list of
    tiles to complete, by index.

    Returns a new array: the completed photo, or a copy if there is no hole.
    """
    check_arguments(image, hole, size, feather, "auto")
    feather = int(feather)  # NumPy's small integers overflow when squared
    result = image.copy()
    if raw is not None:
        raw[:] = image
    if not hole.any():
        return result
    rows, columns = phases = [max(round(length / size), 1) for length in hole.shape]
    whole = Placement(Box(0, 0, *hole.shape), Box(0, 0, rows * size, columns * size))
    distance = squared_distance(hole, feather)
    inputs = _make_input(image, distance <= feather**2, whole.inner.shape)
    tiles, known = (split_phases(x[None], *phases) for x in inputs)
    del inputs  # as large as the tiles
    outputs = None if raw is None else tiles.copy()
    warned = False
    for i in track([i for i, tile in enumerate(known) if not tile.all()]):
        warned = warned or warn_of_little_context(known[i], warn)
        masked = tiles[i].copy()  # `predict` may keep it
        output = run_network(predict, masked, known[i])
        if outputs is not None:
            outputs[i] = output
        tiles[i] = np.where(known[i] > 0, masked, output)
    planes, box = _merge_planes(tiles, *phases), bounding_box(hole, whole.box)
    del tiles
    paste(result, planes, distance, box, whole, feather)
    if outputs is not None:
        write_raw(raw, _merge_planes(outputs, *phases), whole)
    return result


def split_phases(x: Any, rows: int, columns: int) -> Any:
    """Split [N, H, W, C] into tiles [rows * columns, N, H / rows, W / columns, C].

    Tile a * columns + b is x[:, a::rows, b::columns]. Works for numpy and JAX.
    """
    count, height, width, channels = x.shape
    height, width = height // rows, width // columns
    x = x.reshape(count, height, rows, width, columns, channels)
    x = x.transpose(2, 4, 0, 1, 3, 5)
    return x.reshape(rows * columns, count, height, width, channels)


def merge_phases(tiles: Any, rows: int, columns: int) -> Any:
    """Undo `split_phases`."""
    _, count, height, width, channels = tiles.shape
    x = tiles.reshape(rows, columns, count, height, width, channels)
    x = x.transpose(2, 3, 0, 4, 1, 5)
    return x.reshape(count, height * rows, width * columns, channels)


def _merge_planes(tiles: np.ndarray, rows: int, columns: int) -> list[np.ndarray]:
    return list(merge_phases(tiles, rows, columns)[0].transpose(2, 0, 1))


def _make_input(
    image: np.ndarray, unknown: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the resized photo as the network takes it, and its known mask.

    Both float32: [H, W, 3] in [-1, 1], 0 where unknown; [H, W, 1], 1 if known.
    """
    for axis in (0, 1):
        unknown = _reached(unknown, shape[axis], axis)
    known = (~unknown).astype(np.float32)
    masked = mask_levels(resize(image, shape, Image.Resampling.BICUBIC), known)
    return np.clip(masked, -1, 1, out=masked), known[..., None]  # cubics overshoot


def _reached(unknown: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Resize a mask along an axis: True where the cubic kernel reaches a True pixel.

    A resized mask would not do: parts of a cubic kernel are negative and may cancel.
    """
    before = unknown.shape[axis]
    if length == before:
        return unknown
    scale = before / length
    centres = (np.arange(length) + 0.5) * scale
    reach = CUBIC_SUPPORT * max(scale, 1)
    # Pillow's rounding: pixels whose centres are within reach.
    first = np.maximum(np.floor(centres - reach + 0.5), 0).astype(int)
    stop = np.minimum(np.floor(centres + reach + 0.5), before).astype(int)
    unknown = unknown.swapaxes(0, axis)
    counts = np.zeros((before + 1, unknown.shape[1]), np.int32)
    np.cumsum(unknown, axis=0, out=counts[1:])
    return (counts[stop] > counts[first]).swapaxes(0, axis)
