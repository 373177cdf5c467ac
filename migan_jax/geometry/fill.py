"""Fill a photo's hole: crop, resize, run the network, resize back, paste.

The one definition for Python, the exported pipeline and the browser. For every crop:

1. The photo's part of the square (`crops.crop_around`) is resized to the network's
   size, in float with an antialiased triangle kernel. Beyond the photo it is mirrored.
2. The network completes the square. To it, every pixel within `feather` of the hole is
   unknown, and so is every resized pixel that includes one of them. Networks are
   trained on what they put into holes, so their output elsewhere is not used.
3. The completed square is resized back with a cubic kernel.
4. It is pasted with a weight of 1 on the hole, falling to 0 within `feather` pixels of
   Euclidean distance, and rounded to 8 bits, here only.

Later crops treat as known what earlier ones have filled. Resizing and pasting work on
strips of rows, so memory use is only a few bytes per pixel of a crop, plus the photo.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import get_args

import numpy as np
from PIL import Image

from migan_jax.errors import UserError
from migan_jax.geometry.crops import (
    NETWORK_DIVISOR,
    Box,
    Crop,
    Crops,
    Placement,
    bounding_box,
    crop_around,
    plan_boxes,
)

logger = logging.getLogger(__name__)

# (image in [-1, 1], 0 in the hole, [1, S, S, 3]; known, 1 or 0, [1, S, S, 1]) -> the
# network's output for the whole square, [1, S, S, 3], about in [-1, 1].
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]

DEFAULT_FEATHER = 2

# A resized pixel is known if unknown pixels make up less of it than this: zero, except
# for rounding.
MAX_UNKNOWN_FRACTION = 1e-6

# A larger unknown fraction of the network's square gets a warning. A square hole with a
# quarter of its side as context on each side makes 0.44.
MAX_HOLE_FRACTION = 0.75

# Pixels processed at once where a crop is larger than the network.
STRIP_PIXELS = 1 << 20


def fill_holes(
    image: np.ndarray,
    hole: np.ndarray,
    predict: Predict,
    size: int,
    feather: int = DEFAULT_FEATHER,
    crops: Crops = "auto",
    raw: np.ndarray | None = None,
    track: Callable[[list[Box]], Iterable[Box]] = iter,
    warn: Callable[[str], object] = logger.warning,
) -> np.ndarray:
    """Fill the hole of a photo of any size.

    Args:
      image: uint8 [H, W, 3].
      hole: bool [H, W], True where to fill.
      predict: runs the network on a square.
      size: height and width of that square.
      feather: maximum distance in pixels from the hole at which the paste may change
        the photo; 0 changes no known pixel.
      crops: "auto" fills holes that are far apart in separate crops, "one" takes a
        single crop.
      raw: array like `image`, which receives the network's whole output for each crop,
        before pasting.
      track: wraps the list of boxes to fill, for a progress bar.
      warn: receives a message, once, if the hole leaves too little context.

    Returns a new array: the completed photo, or a copy if there is no hole.
    """
    check_arguments(image, hole, size, feather, crops)
    feather = int(feather)  # NumPy's small integers overflow when squared
    result = image.copy()
    if raw is not None:
        raw[:] = image
    if not hole.any():
        return result
    unfilled, warned = hole.copy(), False
    for box in track(plan_boxes(hole, size, crops)):
        crop = crop_around(box, hole.shape, size)
        distance = squared_distance(unfilled[crop.box.slices], feather)
        unknown = distance <= feather**2
        masked, known = make_network_input(result[crop.box.slices], unknown, crop)
        warned = warned or warn_of_little_context(known, warn)
        output = run_network(predict, masked, known)
        planes = [output[0, ..., c] for c in range(3)]
        is_known = known[0, ..., 0] > 0
        completed = [np.where(is_known, masked[0, ..., c], planes[c]) for c in range(3)]
        paste(result, completed, distance, box, crop, feather)
        unfilled[box.slices] = False
        if raw is not None:
            write_raw(raw, planes, crop)
    return result


def check_arguments(
    image: np.ndarray, hole: np.ndarray, size: int, feather: int, crops: str
) -> None:
    """Raise UserError for arguments that do not fit."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"A photo must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}."
        )
    if image.size == 0:
        raise UserError(f"The photo has no pixels: {list(image.shape)}.")
    if hole.dtype != np.bool_ or hole.ndim != 2:
        raise UserError(
            f"A hole must be bool [H, W], not {hole.dtype} {list(hole.shape)}."
        )
    if hole.shape != image.shape[:2]:
        (height, width), (rows, columns) = image.shape[:2], hole.shape
        raise UserError(
            f"The mask is {columns}x{rows} pixels and the photo {width}x{height}: "
            f"they must have the same size."
        )
    check_feather(feather, size)
    if crops not in get_args(Crops):
        raise UserError(f"crops must be 'auto' or 'one', not {crops!r}.")


def check_feather(feather: int, size: int) -> None:
    """Raise UserError unless the blended rim fits into the context."""
    max_feather = max(DEFAULT_FEATHER, size // NETWORK_DIVISOR)
    if not (_is_integer(feather) and 0 <= feather <= max_feather):
        raise UserError(
            f"feather must be a whole number of pixels from 0 to {max_feather} with a "
            f"network of {size} pixels, not {feather!r}."
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def warn_of_little_context(known: np.ndarray, warn: Callable[[str], object]) -> bool:
    """Warn if the hole takes most of the network's square; return whether it does."""
    fraction = float(np.mean(known == 0))
    if fraction <= MAX_HOLE_FRACTION:
        return False
    size = known.shape[1]
    warn(
        f"The hole takes {fraction:.0%} of the {size} x {size} pixels that the "
        f"network sees, so it has little context: expect a rough guess."
    )
    return True


def run_network(predict: Predict, masked: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the network's output in [-1, 1]; raise UserError if it is not finite."""
    output = np.asarray(predict(masked, known), np.float32)
    if not np.isfinite(output).all():
        raise UserError(
            "The network's output holds NaN or infinity: its weights are damaged."
        )
    return np.clip(output, -1, 1)


def dilate(hole: np.ndarray, pixels: int) -> np.ndarray:
    """Widen the hole by `pixels` of Euclidean distance.

    Tight masks leave a rim of the removed object: its blurred edge, its shadow.
    """
    if not (_is_integer(pixels) and pixels >= 0):
        raise UserError(f"grow must be a whole number of pixels >= 0, not {pixels!r}.")
    if pixels == 0 or not hole.any():
        return hole
    pixels = min(int(pixels), max(hole.shape))
    return squared_distance(hole, pixels) <= pixels**2


# Resizing.


def make_network_input(
    image: np.ndarray, unknown: np.ndarray, crop: Crop
) -> tuple[np.ndarray, np.ndarray]:
    """Return the network's square of a crop's pixels, and its known mask.

    Both float32: [1, S, S, 3] in [-1, 1], 0 where unknown; [1, S, S, 1], 1 if known.
    """
    if crop.resized:
        shape, triangle = crop.inner.shape, Image.Resampling.BILINEAR
        image = resize(image, shape, triangle)
        known = resize(unknown[..., None], shape, triangle)[..., 0]
        known = known < MAX_UNKNOWN_FRACTION
    else:
        known = ~unknown
    known = known.astype(np.float32)
    masked = mask_levels(image, known)
    top, left, bottom, right = crop.inner
    margins = (top, crop.size - bottom), (left, crop.size - right), (0, 0)
    masked, known = (
        np.pad(x, margins, mode="symmetric")[None] for x in (masked, known[..., None])
    )
    return masked, known


def mask_levels(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return grey levels [H, W, 3] in [-1, 1], 0 where `known` [H, W] is 0."""
    masked = np.empty((*known.shape, 3), np.float32)
    for c in range(3):  # by plane: operations on [H, W, 3] are several times slower
        masked[..., c] = (image[..., c] / np.float32(127.5) - 1) * known
    return masked


def resize(
    part: np.ndarray, shape: tuple[int, int], kernel: Image.Resampling
) -> np.ndarray:
    """Resize to the network's pixels: float32, antialiased.

    Rows are resized first, strip by strip, to avoid a float copy of the whole part.
    """
    height, width, channels = part.shape
    rows, columns = shape
    narrow = np.empty((height, columns, channels), np.float32)
    for strip in _row_strips(height, width):
        for c in range(channels):
            plane = Image.fromarray(part[strip, :, c].astype(np.float32))
            size = columns, plane.height
            narrow[strip, :, c] = plane.resize(size, kernel)
    resized = np.empty((rows, columns, channels), np.float32)
    for c in range(channels):
        plane = Image.fromarray(narrow[..., c])
        resized[..., c] = plane.resize((columns, rows), kernel)
    return resized


def _row_strips(height: int, width: int) -> Iterator[slice]:
    rows = max(1, STRIP_PIXELS // width)
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def _resize_back(
    planes: list[np.ndarray], placement: Placement, target: Box
) -> Iterator[tuple[Box, list[np.ndarray]]]:
    """Yield strips of `target` with their three planes of grey levels, 0 to 255.

    Args:
      planes: three of float32 in [-1, 1], the network's square or merged tiles.
      placement: their position in the photo.
      target: a box of the photo inside `placement.box`.
    """
    box, inner = placement.box, placement.inner
    planes = [127.5 * (plane[inner.slices] + 1) for plane in planes]
    if placement.resized:
        planes = [Image.fromarray(plane) for plane in planes]
    for strip in _row_strips(target.height, target.width):
        part = target._replace(
            top=target.top + strip.start, bottom=target.top + strip.stop
        )
        within = part.relative_to(box)
        if placement.resized:
            y_scale = inner.height / box.height
            x_scale = inner.width / box.width
            source = (
                within.left * x_scale,
                within.top * y_scale,
                within.right * x_scale,
                within.bottom * y_scale,
            )
            size = part.width, part.height
            cubic = Image.Resampling.BICUBIC
            levels = [np.asarray(p.resize(size, cubic, source)) for p in planes]
        else:
            levels = [plane[within.slices] for plane in planes]
        yield part, levels


# Pasting.


def paste(
    result: np.ndarray,
    completed: list[np.ndarray],
    distance: np.ndarray,
    box: Box,
    placement: Placement,
    feather: int,
) -> None:
    """Blend completed planes over the hole in `box` and the feather around it."""
    whole = placement.box
    reach = Box(
        max(box.top - feather, whole.top),
        max(box.left - feather, whole.left),
        min(box.bottom + feather, whole.bottom),
        min(box.right + feather, whole.right),
    )
    for part, levels in _resize_back(completed, placement, reach):
        weight = falloff(feather)[distance[part.relative_to(whole).slices]]
        pixels = result[part.slices]
        for c, level in enumerate(levels):
            plane = pixels[..., c]
            plane[...] = _to_uint8(weight * level + (1 - weight) * plane)


def write_raw(raw: np.ndarray, planes: list[np.ndarray], placement: Placement) -> None:
    """Put the network's whole output into its place in `raw`."""
    for part, levels in _resize_back(planes, placement, placement.box):
        raw[part.slices] = _to_uint8(np.stack(levels, axis=-1))


def squared_distance(hole: np.ndarray, feather: int) -> np.ndarray:
    """Squared Euclidean distance to the hole: exact up to `feather`, larger beyond it.

    Separable: the minimum over dy of dy^2 + (the minimum over dx of dx^2).
    """
    far = feather**2 + 1
    whole = np.full(hole.shape, far, np.min_scalar_type(far + feather**2))
    box = bounding_box(hole, Box(0, 0, *hole.shape))
    reach = (
        slice(max(box.top - feather, 0), box.bottom + feather),
        slice(max(box.left - feather, 0), box.right + feather),
    )
    squared = whole[reach]
    squared[hole[reach]] = 0
    for axis in (1, 0):
        previous = squared.swapaxes(0, axis)  # this axis first
        nearest = previous.copy(order="K")
        for step in range(1, feather + 1):
            moved = previous + whole.dtype.type(step**2)
            np.minimum(nearest[step:], moved[:-step], out=nearest[step:])
            np.minimum(nearest[:-step], moved[step:], out=nearest[:-step])
        squared = nearest.swapaxes(0, axis)
    whole[reach] = np.minimum(squared, far)
    return whole


def falloff(feather: int) -> np.ndarray:
    """Paste weight by squared distance: a smooth step from 1 at 0 to 0 past feather."""
    distance = np.sqrt(np.arange(feather**2 + 2, dtype=np.float32))
    x = np.clip(1 - distance / (feather + 1), 0, 1)
    weight = x**2 * (3 - 2 * x)
    weight[-1] = 0
    return weight


def _to_uint8(grey_levels: np.ndarray) -> np.ndarray:
    return (np.clip(grey_levels, 0, 255) + 0.5).astype(np.uint8)
