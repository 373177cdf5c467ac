"""Fill a photo's hole: crop, resize, network, resize back, paste.

One definition for Python, the exported pipeline and the browser. For every crop:

1. what the photo gives of the square (`crops.crop_around`) is resized, float and by an
   antialiased triangle kernel, so that the square gets the network's size; what it does
   not give is mirrored;
2. the network completes the square. For it, all pixels within `feather` of the hole are
   unknown, and so is every resized pixel that has one of them in it: networks are
   trained on what they put into holes only, so nothing else of theirs is used;
3. the completed square is resized back by a cubic kernel;
4. it is pasted with a weight of 1 on the hole, falling to 0 within `feather` pixels of
   Euclidean distance, and rounded to 8 bits, here and nowhere before.

Later crops take what earlier ones have filled as known. Resizing and pasting go by
strips of rows: beside the photo there are only a few bytes for each pixel of a crop.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import get_args

import numpy as np
from PIL import Image

from migan_jax.errors import UserError
from migan_jax.geometry.crops import (
    CONTEXT_OF_NETWORK,
    Box,
    Crop,
    Crops,
    crop_around,
    plan,
    tight_box,
)

logger = logging.getLogger(__name__)

# A picture in [-1, 1], 0 in its hole, [1, S, S, 3], and what is known of it, 1 or 0,
# [1, S, S, 1] -> a whole picture in [-1, 1].
Network = Callable[[np.ndarray, np.ndarray], np.ndarray]

DEFAULT_FEATHER = 2

# A resized pixel counts as known while less of it than this comes from unknown ones:
# zero, but for rounding.
UNKNOWN_SHARE = 1e-6

# Of the square that the network sees: with more hole it has little to go by. Around a
# hole there is a quarter of its side, where the photo reaches so far, which makes 0.44.
FAR_SHARE = 0.75

# Pixels handled at once where a crop is larger than the network.
STRIP_PIXELS = 1 << 20


def fill_holes(
    image: np.ndarray,
    hole: np.ndarray,
    network: Network,
    size: int,
    feather: int = DEFAULT_FEATHER,
    crops: Crops = "auto",
    raw: np.ndarray | None = None,
    track: Callable[[list[Box]], Iterable[Box]] = iter,
    tell: Callable[[str], object] = logger.warning,
) -> np.ndarray:
    """Complete the hole of a photo of any size.

    Args:
      image: uint8 [H, W, 3].
      hole: bool [H, W], True where the photo is to be made up.
      network: completes a square of its size.
      size: height and width of that.
      feather: farthest distance in pixels from the hole at which the paste may change
        the photo; 0 changes none of the known pixels.
      crops: "auto" fills far-apart holes one by one, "one" takes a single crop.
      raw: an array like `image`, which receives what the network makes of each crop as
        a whole, known pixels included, before it is pasted.
      track: wraps the list of boxes to be filled, for a progress display.
      tell: takes a sentence on a hole that leaves the network little to go by.

    Returns the completed photo; without a hole, an equal one.
    """
    check_arguments(image, hole, size, feather, crops)
    feather = int(feather)  # NumPy's small integers overflow when squared
    result = image.copy()
    if raw is not None:
        raw[:] = image
    if not hole.any():
        return result
    unfilled, told = hole.copy(), False
    for box in track(plan(hole, size, crops)):
        crop = crop_around(box, hole.shape, size)
        distance = squared_distance(unfilled[crop.box.slices], feather)
        unknown = distance <= feather**2
        given, known = to_square(result[crop.box.slices], unknown, crop)
        share = float(np.mean(known == 0))
        if share > FAR_SHARE and not told:
            told = True
            tell(
                f"The hole takes {share:.0%} of the {size} x {size} pixels that the "
                f"network sees, which leaves it little to go by: expect a rough guess."
            )
        output = np.asarray(network(given, known), np.float32)
        if not np.isfinite(output).all():
            raise UserError(
                "The network's output holds NaN or infinity: its weights are damaged."
            )
        own = [np.clip(output[0, ..., c], -1, 1) for c in range(3)]
        is_known = known[0, ..., 0] > 0
        completed = [np.where(is_known, given[0, ..., c], own[c]) for c in range(3)]
        _paste(result, completed, distance, box, crop, feather)
        unfilled[box.slices] = False
        if raw is not None:
            for part, levels in _resized_back(own, crop, crop.box):
                raw[part.slices] = _rounded(np.stack(levels, axis=-1))
    return result


def check_arguments(
    image: np.ndarray, hole: np.ndarray, size: int, feather: int, crops: str
) -> None:
    """Say in one sentence what does not fit."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"A photo is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}."
        )
    if image.size == 0:
        raise UserError(f"The photo has no pixels: {list(image.shape)}.")
    if hole.dtype != np.bool_ or hole.ndim != 2:
        raise UserError(f"A hole is bool [H, W], not {hole.dtype} {list(hole.shape)}.")
    if hole.shape != image.shape[:2]:
        (height, width), (rows, columns) = image.shape[:2], hole.shape
        raise UserError(
            f"The mask is {columns}x{rows} pixels and the photo {width}x{height}: "
            f"they must have one size."
        )
    check_feather(feather, size)
    if crops not in get_args(Crops):
        raise UserError(f"crops is 'auto' or 'one', not {crops!r}.")


def check_feather(feather: int, size: int) -> None:
    """What is blended has to lie inside the context."""
    whole = isinstance(feather, int | np.integer) and not isinstance(feather, bool)
    largest = max(DEFAULT_FEATHER, size // CONTEXT_OF_NETWORK)
    if not (whole and 0 <= feather <= largest):
        raise UserError(
            f"feather is a whole number of pixels from 0 to {largest} with a network "
            f"of {size} pixels, not {feather!r}."
        )


def grown(hole: np.ndarray, pixels: int) -> np.ndarray:
    """The hole and all that is within so many pixels of it.

    Masks drawn tight leave a rim of what was to go: its blurred edge, its shadow.
    """
    whole = isinstance(pixels, int | np.integer) and not isinstance(pixels, bool)
    if not (whole and pixels >= 0):
        raise UserError(f"grow is a whole number of pixels from 0 up, not {pixels!r}.")
    if pixels == 0 or not hole.any():
        return hole
    pixels = min(int(pixels), max(hole.shape))
    return squared_distance(hole, pixels) <= pixels**2


# To the network and back.


def to_square(
    image: np.ndarray, unknown: np.ndarray, crop: Crop
) -> tuple[np.ndarray, np.ndarray]:
    """What the network completes of a crop's pixels: the picture, and what is known.

    Float32, [1, S, S, 3] in [-1, 1] and 0 where unknown, and [1, S, S, 1] of 1 and 0.
    """
    if crop.side == crop.size:
        known = ~unknown
    else:
        image = _shrink(image, crop)
        known = _shrink(unknown[..., None], crop)[..., 0] < UNKNOWN_SHARE
    known = known.astype(np.float32)
    picture = np.empty((*known.shape, 3), np.float32)
    for c in range(3):  # whole planes: operations on [H, W, 3] are several times slower
        picture[..., c] = (image[..., c] / np.float32(127.5) - 1) * known
    top, left, bottom, right = crop.inner
    margins = (top, crop.size - bottom), (left, crop.size - right), (0, 0)
    picture, known = (
        np.pad(x, margins, mode="symmetric")[None] for x in (picture, known[..., None])
    )
    return picture, known


def _shrink(part: np.ndarray, crop: Crop) -> np.ndarray:
    """Resize to the network's pixels: float32, antialiased triangle kernel.

    Rows are first made narrow strip by strip, so that no float copy of the crop exists.
    """
    height, width, channels = part.shape
    rows, columns = crop.inner.height, crop.inner.width
    narrow = np.empty((height, columns, channels), np.float32)
    for strip in _strips(height, width):
        for c in range(channels):
            plane = Image.fromarray(part[strip, :, c].astype(np.float32))
            size = columns, plane.height
            narrow[strip, :, c] = plane.resize(size, Image.Resampling.BILINEAR)
    shrunk = np.empty((rows, columns, channels), np.float32)
    for c in range(channels):
        plane = Image.fromarray(narrow[..., c])
        shrunk[..., c] = plane.resize((columns, rows), Image.Resampling.BILINEAR)
    return shrunk


def _strips(height: int, width: int) -> Iterator[slice]:
    rows = max(1, STRIP_PIXELS // width)
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def _resized_back(
    planes: list[np.ndarray], crop: Crop, wanted: Box
) -> Iterator[tuple[Box, list[np.ndarray]]]:
    """The network's output for a part of the photo, strip by strip, in grey levels.

    Args:
      planes: three times float32 [S, S] in [-1, 1], of the network's square.
      crop: where it belongs.
      wanted: a box of the photo inside the crop's.
    """
    planes = [127.5 * (plane[crop.inner.slices] + 1) for plane in planes]
    resized = crop.side != crop.size
    if resized:
        planes = [Image.fromarray(plane) for plane in planes]
    for strip in _strips(wanted.height, wanted.width):
        part = wanted._replace(
            top=wanted.top + strip.start, bottom=wanted.top + strip.stop
        )
        within = part.relative_to(crop.box)
        if resized:
            down = crop.inner.height / crop.box.height
            right = crop.inner.width / crop.box.width
            source = (
                within.left * right,
                within.top * down,
                within.right * right,
                within.bottom * down,
            )
            size = part.width, part.height
            cubic = Image.Resampling.BICUBIC
            levels = [np.asarray(p.resize(size, cubic, source)) for p in planes]
        else:
            levels = [plane[within.slices] for plane in planes]
        yield part, levels


# Pasting.


def _paste(
    result: np.ndarray,
    completed: list[np.ndarray],
    distance: np.ndarray,
    box: Box,
    crop: Crop,
    feather: int,
) -> None:
    """Blend a completed square over the hole in `box` and what is around it."""
    reach = Box(
        max(box.top - feather, crop.box.top),
        max(box.left - feather, crop.box.left),
        min(box.bottom + feather, crop.box.bottom),
        min(box.right + feather, crop.box.right),
    )
    for part, levels in _resized_back(completed, crop, reach):
        weight = falloff(feather)[distance[part.relative_to(crop.box).slices]]
        pixels = result[part.slices]
        for c, level in enumerate(levels):
            before = pixels[..., c]
            before[...] = _rounded(weight * level + (1 - weight) * before)


def squared_distance(hole: np.ndarray, feather: int) -> np.ndarray:
    """Squared Euclidean distance to the hole, exact to `feather` and more beyond it.

    The minimum over dy of dy^2 + (the minimum over dx of dx^2), axis by axis.
    """
    far = feather**2 + 1
    whole = np.full(hole.shape, far, np.min_scalar_type(far + feather**2))
    box = tight_box(hole, Box(0, 0, *hole.shape))
    reach = (
        slice(max(box.top - feather, 0), box.bottom + feather),
        slice(max(box.left - feather, 0), box.right + feather),
    )
    squared = whole[reach]
    squared[hole[reach]] = 0
    for axis in (1, 0):
        before = squared.swapaxes(0, axis)  # of this axis, along the first one
        nearest = before.copy(order="K")
        for step in range(1, feather + 1):
            moved = before + whole.dtype.type(step**2)
            np.minimum(nearest[step:], moved[:-step], out=nearest[step:])
            np.minimum(nearest[:-step], moved[step:], out=nearest[:-step])
        squared = nearest.swapaxes(0, axis)
    whole[reach] = np.minimum(squared, far)
    return whole


def falloff(feather: int) -> np.ndarray:
    """The weight at every squared distance: 1 at 0, a smooth step, 0 past `feather`."""
    distance = np.sqrt(np.arange(feather**2 + 2, dtype=np.float32))
    rest = np.clip(1 - distance / (feather + 1), 0, 1)
    weight = rest**2 * (3 - 2 * rest)
    weight[-1] = 0
    return weight


def _rounded(grey_levels: np.ndarray) -> np.ndarray:
    return (np.clip(grey_levels, 0, 255) + 0.5).astype(np.uint8)
