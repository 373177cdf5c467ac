"""Choose the square crops of a photo that the network fills one after the other.

The hole's bounding box plus context is extended to a square of at least the network's
size and shifted inside the photo. Aspect ratios are kept, except for rounding to whole
pixels. Holes far apart and long thin holes get several crops.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

Crops = Literal["auto", "one"]

# Context on each side of the hole's box: its longer side // BOX_DIVISOR, but at least
# the network's size // NETWORK_DIVISOR.
BOX_DIVISOR = 4
NETWORK_DIVISOR = 8
# A hole without gaps is thin if it covers less than this fraction of its crop.
THIN_FRACTION = 0.1


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def relative_to(self, other: "Box") -> "Box":
        return Box(
            self.top - other.top,
            self.left - other.left,
            self.bottom - other.top,
            self.right - other.left,
        )

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a part of the photo lies in what is resized for the network."""

    box: Box  # in the photo's pixels
    inner: Box  # in the network's pixels

    @property
    def resized(self) -> bool:
        return self.box.shape != self.inner.shape


@dataclasses.dataclass(frozen=True)
class Crop(Placement):
    """A square around a hole. Unlike `box`, it may extend beyond a small photo."""

    size: int  # of the square, in the network's pixels
    side: int  # of the square, in the photo's pixels


def plan_boxes(hole: np.ndarray, size: int, crops: Crops) -> list[Box]:
    """Return disjoint boxes that cover the hole, in the order to fill them."""
    whole = bounding_box(hole, Box(0, 0, *hole.shape))
    return [whole] if crops == "one" else sorted(_split_box(hole, whole, size))


def crop_around(box: Box, shape: tuple[int, int], size: int) -> Crop:
    """Return the crop around a hole's box in a photo of `shape`."""
    longer = max(box.height, box.width)
    context = max(longer // BOX_DIVISOR, size // NETWORK_DIVISOR)
    height, width = shape
    with_context = Box(
        max(box.top - context, 0),
        max(box.left - context, 0),
        min(box.bottom + context, height),
        min(box.right + context, width),
    )
    side = max(size, with_context.height, with_context.width)
    top, bottom, row, rows = _crop_axis(box.top, box.bottom, height, side, size)
    left, right, column, columns = _crop_axis(box.left, box.right, width, side, size)
    return Crop(
        Box(top, left, bottom, right),
        Box(row, column, row + rows, column + columns),
        size,
        side,
    )


def _crop_axis(
    start: int, stop: int, length: int, side: int, size: int
) -> tuple[int, int, int, int]:
    """One axis of a crop: start and stop in the photo, start and length in the network.

    The hole is centred in the square as far as the photo's edges allow; a photo smaller
    than the square is centred in it.
    """
    covered = min(side, length)
    first = min(max((start + stop - side) // 2, 0), length - covered)
    # That is, round(covered * size / side).
    inner = max(1, (2 * covered * size + side) // (2 * side))
    return first, first + covered, (size - inner) // 2, inner


def bounding_box(hole: np.ndarray, within: Box) -> Box:
    """Return the bounding box of the hole's pixels inside `within`, at least one."""
    part = hole[within.slices]
    rows = np.flatnonzero(part.any(axis=1))
    columns = np.flatnonzero(part[rows[0] : rows[-1] + 1].any(axis=0))
    return Box(
        within.top + int(rows[0]),
        within.left + int(columns[0]),
        within.top + int(rows[-1]) + 1,
        within.left + int(columns[-1]) + 1,
    )


def _split_box(hole: np.ndarray, box: Box, size: int) -> list[Box]:
    """Split at gaps, or a thin hole anywhere, as long as the crop would be shrunk."""
    side = crop_around(box, hole.shape, size).side
    if side == size:
        return [box]
    part = hole[box.slices]
    axis = 0 if box.height >= box.width else 1  # the longer one first
    counts = {a: np.count_nonzero(part, axis=1 - a) for a in (axis, 1 - axis)}
    for a in counts:
        if (at := _find_middle_gap(counts[a], size // NETWORK_DIVISOR)) is not None:
            return _split_at(hole, box, a, at, size)
    if counts[axis].sum() >= THIN_FRACTION * side**2:
        return [box]
    # The fewest equal pieces whose crops, with context, need no shrinking.
    length = len(counts[axis])
    max_length = size * BOX_DIVISOR // (BOX_DIVISOR + 2)
    pieces = max(2, -(-length // max_length))
    return _split_at(hole, box, axis, length * (pieces // 2) // pieces, size)


def _split_at(hole: np.ndarray, box: Box, axis: int, at: int, size: int) -> list[Box]:
    if axis == 0:
        halves = box._replace(bottom=box.top + at), box._replace(top=box.top + at)
    else:
        halves = box._replace(right=box.left + at), box._replace(left=box.left + at)
    return [
        leaf
        for half in halves
        for leaf in _split_box(hole, bounding_box(hole, half), size)
    ]


def _find_middle_gap(counts: np.ndarray, min_length: int) -> int | None:
    """Return the centre of the run of >= min_length zeros nearest to the middle."""
    nonzero = np.flatnonzero(counts)
    centres = ((nonzero[:-1] + nonzero[1:] + 1) // 2)[np.diff(nonzero) > min_length]
    if not centres.size:
        return None
    return int(centres[np.argmin(np.abs(centres - len(counts) / 2))])
