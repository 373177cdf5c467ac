"""Which squares of a photo the network is shown, one after the other.

The hole's bounding box, with context around it, grows to a square of at least the
network's size and is shifted inside the photo; nothing is ever squeezed, but for the
rounding to whole pixels. Holes far apart, and long thin ones, get several such crops.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

Crops = Literal["auto", "one"]

# Context on each side of the hole's box: a quarter of the box's longer side, but at
# least an eighth of the network's size.
CONTEXT_OF_BOX = 4
CONTEXT_OF_NETWORK = 8
# A hole without gaps is thin if it is a smaller part of its crop than this.
THIN_SHARE = 0.1


class Box(NamedTuple):
    """Rows top to bottom and columns left to right, the ends excluded."""

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


@dataclasses.dataclass(frozen=True)
class Crop:
    """A square around a hole: what the photo gives of it, and where that goes."""

    size: int  # of the square, in the network's pixels
    side: int  # of the square, in the photo's pixels
    box: Box  # the part of it inside the photo
    inner: Box  # where that part lies in the network's square


def plan(hole: np.ndarray, size: int, crops: Crops) -> list[Box]:
    """The boxes to fill one after the other, disjoint, every hole pixel in one."""
    whole = tight_box(hole, Box(0, 0, *hole.shape))
    return [whole] if crops == "one" else sorted(_cut(hole, whole, size))


def crop_around(box: Box, shape: tuple[int, int], size: int) -> Crop:
    """The square around a hole's box in a photo of `shape`."""
    longer = max(box.height, box.width)
    context = max(longer // CONTEXT_OF_BOX, size // CONTEXT_OF_NETWORK)
    height, width = shape
    with_context = Box(
        max(box.top - context, 0),
        max(box.left - context, 0),
        min(box.bottom + context, height),
        min(box.right + context, width),
    )
    side = max(size, with_context.height, with_context.width)
    top, bottom, row, rows = _along(box.top, box.bottom, height, side, size)
    left, right, column, columns = _along(box.left, box.right, width, side, size)
    return Crop(
        size,
        side,
        Box(top, left, bottom, right),
        Box(row, column, row + rows, column + columns),
    )


def _along(
    start: int, stop: int, length: int, side: int, size: int
) -> tuple[int, int, int, int]:
    """One axis of a crop: start and stop in the photo, start and length in the network.

    The hole is in the middle of the square where the photo reaches far enough; a photo
    smaller than the square is in its middle.
    """
    given = min(side, length)
    first = min(max((start + stop - side) // 2, 0), length - given)
    inner = max(1, (2 * given * size + side) // (2 * side))  # given * size / side
    return first, first + given, (size - inner) // 2, inner


def tight_box(hole: np.ndarray, within: Box) -> Box:
    """The bounding box of the hole inside another box, which holds some of it."""
    part = hole[within.slices]
    rows = np.flatnonzero(part.any(axis=1))
    columns = np.flatnonzero(part[rows[0] : rows[-1] + 1].any(axis=0))
    return Box(
        within.top + int(rows[0]),
        within.left + int(columns[0]),
        within.top + int(rows[-1]) + 1,
        within.left + int(columns[-1]) + 1,
    )


def _cut(hole: np.ndarray, box: Box, size: int) -> list[Box]:
    """Cut a box at gaps, or a thin hole anywhere, while its crop would be shrunk."""
    side = crop_around(box, hole.shape, size).side
    if side == size:
        return [box]
    part = hole[box.slices]
    axis = 0 if box.height >= box.width else 1  # the longer one first
    counts = {a: np.count_nonzero(part, axis=1 - a) for a in (axis, 1 - axis)}
    for a in counts:
        if (at := _middle_gap(counts[a], size // CONTEXT_OF_NETWORK)) is not None:
            return _cut_at(hole, box, a, at, size)
    if counts[axis].sum() >= THIN_SHARE * side**2:
        return [box]
    # Into as few equal parts as can each be shown unshrunk, with context.
    length = len(counts[axis])
    longest = size * CONTEXT_OF_BOX // (CONTEXT_OF_BOX + 2)
    parts = max(2, -(-length // longest))
    return _cut_at(hole, box, axis, length * (parts // 2) // parts, size)


def _cut_at(hole: np.ndarray, box: Box, axis: int, at: int, size: int) -> list[Box]:
    if axis == 0:
        halves = box._replace(bottom=box.top + at), box._replace(top=box.top + at)
    else:
        halves = box._replace(right=box.left + at), box._replace(left=box.left + at)
    return [leaf for half in halves for leaf in _cut(hole, tight_box(hole, half), size)]


def _middle_gap(counts: np.ndarray, shortest: int) -> int | None:
    """The centre of the run of at least `shortest` zeros next to the middle."""
    full = np.flatnonzero(counts)
    centres = ((full[:-1] + full[1:] + 1) // 2)[np.diff(full) > shortest]
    if not centres.size:
        return None
    return int(centres[np.argmin(np.abs(centres - len(counts) / 2))])
