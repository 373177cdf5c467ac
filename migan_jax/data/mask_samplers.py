"""The papers' random masks, drawn on a device with JAX or on the host with Pillow.

Both have the same distribution, but draw different masks: the host paints strokes as
the references do, the device computes which pixels a stroke covers. A mask is 1 where
the image is known, 0 in the hole. Masks that are all hole or all known are redrawn.
"""

import dataclasses
import functools
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from migan_jax.errors import UserError
from migan_jax.ops.partition import map_samples, split_images

# DeepFillv2's brush: strokes zigzag with about this angle between segments, whose mean
# length is an eighth of the image's diagonal.
ANGLE, ANGLE_RANGE = 2 * math.pi / 5, 2 * math.pi / 15
SEGMENTS_PER_DIAGONAL = 8
# Of the directions of DeepGIN's strokes, in radians: no line is exactly horizontal.
ANGLE_OFFSET = 0.01
# Smaller masks could be all hole or all known for ever; larger ones exhaust memory.
MIN_MASK_SIZE, MAX_MASK_SIZE = 8, 1 << 14
# Irregular masks are binned by the percentage of the image that is hole, from the first
# up to the second. Those of sets are also dilated by up to this many pixels, at 256.
HOLE_BINS = tuple((percent, percent + 10) for percent in range(0, 60, 10))
MAX_DILATION = 8
MAX_STROKES = 64  # to try for an irregular mask; fifteen are enough for most
# Pillow's lines are narrower than their width, its discs larger than width // 2.
LINE_MARGIN, DISC_MARGIN = 0.15, 0.45  # pixels


class HostSampler(Protocol):
    """A distribution of holes, drawn on the host."""

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw a hole, bool [size, size]."""


class Sampler(HostSampler, Protocol):
    """The same, also drawn on the device."""

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        """Draw a hole, bool [size, size]."""


def check_size(size: int) -> None:
    """Raise UserError if masks cannot have this size."""
    if not MIN_MASK_SIZE <= size <= MAX_MASK_SIZE:
        raise UserError(
            f"Masks must have {MIN_MASK_SIZE} to {MAX_MASK_SIZE:,} pixels a side, not "
            f"{size:,}."
        )


@jax.named_scope("masks")
def masks_on_device(sampler: Sampler, keys: jax.Array, size: int) -> jax.Array:
    """Draw a mask for each key: float32 [N, size, size, 1], 1 where known."""
    check_size(size)

    def draw(key: jax.Array) -> jax.Array:
        def attempt(state):
            key, _ = state
            key, hole_key = jax.random.split(key)
            return key, sampler.hole_on_device(hole_key, size)

        def is_uniform(state):
            _, hole = state
            return hole.all() | ~hole.any()

        empty = jnp.zeros((size, size), jnp.bool_)  # uniform, so that one is drawn
        _, hole = jax.lax.while_loop(is_uniform, attempt, (key, empty))
        return hole

    holes = split_images(map_samples(jax.vmap(draw), keys))
    return 1.0 - holes[..., None].astype(jnp.float32)


def mask_on_host(
    sampler: HostSampler, rng: np.random.Generator, size: int
) -> np.ndarray:
    """Draw a mask: uint8 [size, size], 1 where known."""
    check_size(size)
    while True:
        hole = sampler.hole_on_host(rng, size)
        if hole.any() and not hole.all():
            return np.uint8(1) - hole


@dataclasses.dataclass(frozen=True)
class Brush:
    """Broad zigzag strokes, by default DeepFillv2's. Integer ranges exclude the end."""

    strokes: tuple[int, int] = (1, 4)
    segments: tuple[int, int] = (4, 12)  # per stroke
    widths: tuple[float, float] = (12, 40)  # pixels
    width_scales: bool = True  # widths are those at size 256, and scale with the size
    flips: bool = False  # flip the mask randomly

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        count_key, flip_key, key = jax.random.split(key, 3)
        count = jax.random.randint(count_key, (), *self.strokes)
        max_count = self.strokes[1] - 1

        index = jnp.arange(max_count)
        # Few large operations, rather than many small ones in a loop.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        paths = jax.vmap(lambda key: self.path_on_device(key, size))(keys)

        def add(hole, stroke):
            exists, path = stroke
            points, last, width = path
            return hole | (_paint_path(points, last, width, width, size) & exists), None

        empty = jnp.zeros((size, size), jnp.bool_)
        hole, _ = jax.lax.scan(add, empty, (index < count, paths))
        if self.flips:
            down, right = jax.random.bernoulli(flip_key, 0.5, (2,))
            hole = jnp.where(down, hole[::-1], hole)
            hole = jnp.where(right, hole[:, ::-1], hole)
        return hole

    def path_on_device(self, key: jax.Array, size: int) -> tuple[jax.Array, ...]:
        """Draw a stroke: its points (x, y), the last one's index, and its width."""
        keys = jax.random.split(key, 6)
        max_segments = self.segments[1] - 1
        segments = jax.random.randint(keys[0], (), *self.segments)
        low, high = jax.random.uniform(keys[1], (2,)) * ANGLE_RANGE
        angles = (
            ANGLE - low + (low + high) * jax.random.uniform(keys[2], (max_segments,))
        )
        is_even = jnp.arange(max_segments) % 2 == 0
        angles = jnp.where(is_even, 2 * math.pi - angles, angles)
        length = math.sqrt(2) * size / SEGMENTS_PER_DIAGONAL
        lengths = length + length // 2 * jax.random.normal(keys[3], (max_segments,))
        lengths = jnp.clip(lengths, 0, 2 * length)
        steps = lengths[:, None] * jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
        start = jax.random.randint(keys[4], (2,), 0, size).astype(jnp.float32)

        def move(point, step):
            point = jnp.trunc(jnp.clip(point + step, 0, size))
            return point, point

        _, points = jax.lax.scan(move, start, steps)
        low, high = self.widths
        width = low + (high - low) * jax.random.uniform(keys[5])
        width = jnp.trunc(width * (size / 256 if self.width_scales else 1))
        width = jnp.maximum(width, 1)  # or the hole would always be empty
        points = jnp.concatenate([start[None], points])
        return points, segments, width

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        image = Image.new("1", (size, size))
        draw = ImageDraw.Draw(image)
        for _ in range(rng.integers(*self.strokes)):
            _draw_path(draw, *self.path_on_host(rng, size))
        hole = np.asarray(image)
        if self.flips:
            hole = hole[:: rng.choice((1, -1)), :: rng.choice((1, -1))]
        return hole

    def path_on_host(
        self, rng: np.random.Generator, size: int
    ) -> tuple[list[tuple[int, int]], int]:
        """Draw a stroke: its points (x, y) and its width."""
        segments = rng.integers(*self.segments)
        low, high = rng.uniform(0, ANGLE_RANGE, 2)
        angles = rng.uniform(ANGLE - low, ANGLE + high, segments)
        angles[::2] = 2 * math.pi - angles[::2]
        length = math.sqrt(2) * size / SEGMENTS_PER_DIAGONAL
        lengths = np.clip(rng.normal(length, length // 2, segments), 0, 2 * length)
        x, y = rng.integers(0, size, 2)
        points = [(int(x), int(y))]
        for angle, length in zip(angles.tolist(), lengths.tolist(), strict=True):
            x, y = points[-1]
            x = int(min(max(x + length * math.cos(angle), 0), size))
            y = int(min(max(y + length * math.sin(angle), 0), size))
            points.append((x, y))
        width = rng.uniform(*self.widths) * (size / 256 if self.width_scales else 1)
        return points, max(int(width), 1)


def _draw_path(
    draw: ImageDraw.ImageDraw, points: list[tuple[int, int]], width: int
) -> None:
    """Draw lines with discs at their ends."""
    draw.line(points, fill=1, width=width)
    radius = width // 2
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)


def _paint_path(
    points: jax.Array, last: jax.Array, discs: jax.Array, lines: jax.Array, size: int
) -> jax.Array:
    """Paint lines with discs at their ends: bool [size, size].

    All distances (along a line, across it, squared from a disc's centre) are sums of a
    term per row and a term per column, so a pixel costs a few additions. Of `points`,
    (x, y), only those up to index `last` are used. `discs` and `lines` are widths, of
    the disc at each point and of the line that ends there: one, or [1, 1, points].
    """
    exists = (jnp.arange(len(points)) <= last)[None, None]
    pixel = jnp.arange(size, dtype=jnp.float32)[:, None]
    x, y = pixel - points[None, :, 0], pixel - points[None, :, 1]  # [size, points]

    def add(columns: jax.Array, rows: jax.Array) -> jax.Array:
        return rows[:, None] + columns[None]  # [size, size, points]

    disc = add(x**2, y**2) <= (discs // 2 + DISC_MARGIN) ** 2
    # A line to each point from the one before, which the first lacks.
    dx, dy = jnp.diff(points, axis=0, prepend=points[:1]).T[:, None]
    along, across = add(x * dx, y * dy), add(x * dy, -y * dx)
    square = (dx**2 + dy**2)[None]
    line = (along <= 0) & (along >= -square) & (square > 0)
    line &= jnp.abs(across) <= (lines / 2 - LINE_MARGIN) * jnp.sqrt(square)
    return jnp.any((disc | line) & exists, axis=-1)


@dataclasses.dataclass(frozen=True)
class Irregular:
    """Strokes of a brush, rotated and dilated, that cover a percentage of the image.

    Its bin is drawn uniformly. Strokes are then added until the hole is in it; those
    that would make it too large are left out.
    """

    bins: tuple[tuple[int, int], ...] = HOLE_BINS
    brush: Brush = Brush()

    def _pixel_bins(self, size: int) -> np.ndarray:
        """Return each bin's smallest hole in pixels, and that above the bin."""
        bins = -(-np.array(self.bins) * size**2 // 100)
        return np.maximum(bins, 1)

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        bin_key, key = jax.random.split(key)
        which = jax.random.randint(bin_key, (), 0, len(self.bins))
        smallest, above = jnp.asarray(self._pixel_bins(size), jnp.int32)[which]
        # Few large operations, rather than many small ones in the loop.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(MAX_STROKES))
        paths = jax.vmap(lambda key: self._path_on_device(key, size))(keys)

        def add(state):
            index, hole = state
            points, last, width = (part[index] for part in paths)
            larger = hole | _paint_path(points, last, width, width, size)
            return index + 1, jnp.where(larger.sum() < above, larger, hole)

        def is_below(state):
            index, hole = state
            return (hole.sum() < smallest) & (index < MAX_STROKES)

        empty = jnp.zeros((size, size), jnp.bool_)
        _, hole = jax.lax.while_loop(is_below, add, (0, empty))
        return hole

    def _path_on_device(self, key: jax.Array, size: int) -> tuple[jax.Array, ...]:
        key, turn_key, dilation_key = jax.random.split(key, 3)
        points, last, width = self.brush.path_on_device(key, size)
        turn = 2 * math.pi * jax.random.uniform(turn_key)
        x, y = (points - size / 2).T
        sine, cosine = jnp.sin(turn), jnp.cos(turn)
        turned = jnp.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)
        dilation = jax.random.uniform(dilation_key) * MAX_DILATION * size / 256
        # A wider path is a dilated one, because its ends are round.
        return jnp.trunc(turned + size / 2), last, width + jnp.trunc(2 * dilation)

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        smallest, above = self._pixel_bins(size)[rng.integers(len(self.bins))]
        hole = np.zeros((size, size), np.bool_)
        for _ in range(MAX_STROKES):
            image = Image.fromarray(hole)
            _draw_path(ImageDraw.Draw(image), *self._path_on_host(rng, size))
            larger = np.asarray(image)
            hole = larger if larger.sum() < above else hole
            if hole.sum() >= smallest:
                break
        return hole

    def _path_on_host(
        self, rng: np.random.Generator, size: int
    ) -> tuple[list[tuple[int, int]], int]:
        points, width = self.brush.path_on_host(rng, size)
        turn = rng.uniform(0, 2 * math.pi)
        sine, cosine, middle = math.sin(turn), math.cos(turn), size / 2
        turned = [
            (
                int(middle + cosine * (x - middle) - sine * (y - middle)),
                int(middle + sine * (x - middle) + cosine * (y - middle)),
            )
            for x, y in points
        ]
        dilation = rng.uniform(0, MAX_DILATION) * size / 256
        return turned, width + int(2 * dilation)


@dataclasses.dataclass(frozen=True)
class ShortStrokes:
    """DeepGIN's brush (AIM 2020): many short strokes in a few directions.

    Lengths and widths are pixels at size 256; ranges exclude their end. Each segment
    has its own width, and is painted as wide as by OpenCV: half of it, rounded
    up, on both sides of the middle pixel. Strokes may leave the image.
    """

    strokes: tuple[int, int] = (15, 24)
    segments: tuple[int, int] = (1, 6)  # per stroke
    lengths: tuple[int, int] = (10, 70)
    widths: tuple[int, int] = (10, 25)
    directions: int = 4  # radians apart; every other stroke is mirrored

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key, 6)
        max_count = self.strokes[1] - 1
        each = max_count, self.segments[1] - 1
        count = jax.random.randint(keys[0], (), *self.strokes)
        last = jax.random.randint(keys[1], each[:1], *self.segments)
        start = jax.random.randint(keys[2], (max_count, 2), 0, size)
        angles, lengths, widths = (
            jax.random.randint(key, each, *bounds).astype(jnp.float32)
            for key, bounds in zip(
                keys[3:],
                ((0, self.directions), self.lengths, self.widths),
                strict=True,
            )
        )
        is_even = jnp.arange(max_count)[:, None] % 2 == 0
        angles = jnp.where(is_even, -1, 1) * (angles + ANGLE_OFFSET)
        steps = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        steps *= lengths[..., None] * (size / 256)

        def move(point, step):
            point = jnp.trunc(point + step)
            return point, point

        start = start.astype(jnp.float32)
        _, points = jax.lax.scan(move, start, steps.swapaxes(0, 1))
        points = jnp.concatenate([start[None], points]).swapaxes(0, 1)
        exists = jnp.arange(each[1])[None] < last[:, None]
        widths = (2 * jnp.ceil(widths / 2) + 1) * (size / 256)
        widths = jnp.maximum(jnp.trunc(widths), 1) * exists
        # Where two segments join, both have a round end.
        lines, after = (jnp.pad(widths, ((0, 0), ends)) for ends in ((1, 0), (0, 1)))
        discs = jnp.maximum(lines, after)

        def add(hole, stroke):
            exists, *path = stroke
            return hole | (_paint_path(*path, size) & exists), None

        empty = jnp.zeros((size, size), jnp.bool_)
        discs, lines = (x[:, None, None] for x in (discs, lines))
        strokes = jnp.arange(max_count) < count, points, last, discs, lines
        hole, _ = jax.lax.scan(add, empty, strokes)
        return hole

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        image = Image.new("1", (size, size))
        draw = ImageDraw.Draw(image)
        for stroke in range(rng.integers(*self.strokes)):
            x, y = rng.integers(0, size, 2).tolist()
            for _ in range(rng.integers(*self.segments)):
                angle = ANGLE_OFFSET + rng.integers(self.directions)
                angle = -angle if stroke % 2 == 0 else angle
                length = rng.integers(*self.lengths) * size / 256
                width = 2 * math.ceil(rng.integers(*self.widths) / 2) + 1
                width = max(int(width * size / 256), 1)
                start = x, y
                x = int(x + length * math.cos(angle))
                y = int(y + length * math.sin(angle))
                draw.line((start, (x, y)), fill=1, width=width)
                radius = width // 2
                for left, top in (start, (x, y)):
                    corners = left - radius, top - radius, left + radius, top + radius
                    draw.ellipse(corners, fill=1)
        return np.asarray(image)


@dataclasses.dataclass(frozen=True)
class Rectangles:
    """Random rectangles, which may lie half outside the image."""

    max_count: int
    max_side: float  # fraction of the size, exclusive

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key, 3)
        count = jax.random.randint(keys[0], (), 0, self.max_count + 1)
        side = int(self.max_side * size)
        extent = jax.random.randint(keys[1], (self.max_count, 2), 0, side)
        low, high = -extent // 2, size - extent + extent // 2
        first = jax.random.randint(keys[2], (self.max_count, 2), low, high)
        position = jnp.arange(size)[None, :, None]
        inside = (position >= first[:, None]) & (position < (first + extent)[:, None])
        exists = (jnp.arange(self.max_count) < count)[:, None]
        rows, columns = inside[..., 0] & exists, inside[..., 1]
        return jnp.any(rows[:, :, None] & columns[:, None, :], axis=0)

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        hole = np.zeros((size, size), np.bool_)
        for _ in range(rng.integers(self.max_count + 1)):
            extent = rng.integers(0, int(self.max_side * size), 2)
            first = rng.integers(-extent // 2, size - extent + extent // 2)
            (top, left), (bottom, right) = np.maximum(first, 0), first + extent
            hole[top : max(bottom, 0), left : max(right, 0)] = True
        return hole


@dataclasses.dataclass(frozen=True)
class BoxMask:
    """One box inside the image."""

    sides: tuple[float, float] = (0.3, 0.7)  # fractions of the size

    def _side_range(self, size: int) -> tuple[int, int]:
        low, high = (int(fraction * size) for fraction in self.sides)
        return low, high + 1

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key)
        extent = jax.random.randint(keys[0], (2,), *self._side_range(size))
        first = jax.random.randint(keys[1], (2,), 0, size - extent + 1)
        position = jnp.arange(size)[:, None]
        inside = (position >= first[None]) & (position < (first + extent)[None])
        return inside[:, 0][:, None] & inside[:, 1][None, :]

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        extent = rng.integers(*self._side_range(size), 2)
        (top, left) = first = rng.integers(0, size - extent + 1)
        bottom, right = first + extent
        hole = np.zeros((size, size), np.bool_)
        hole[top:bottom, left:right] = True
        return hole


@dataclasses.dataclass(frozen=True)
class HalfBox:
    """A box of half the image's height and width, anywhere or in the centre."""

    centred: bool = False

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        first = jax.random.randint(key, (2, 1), 0, size - size // 2)
        if self.centred:
            first = jnp.full((2, 1), size // 4)
        position = jnp.arange(size)[None]
        rows, columns = (position >= first) & (position < first + size // 2)
        return rows[:, None] & columns[None]

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        top, left = rng.integers(0, size - size // 2, 2)
        if self.centred:
            top = left = size // 4
        hole = np.zeros((size, size), np.bool_)
        hole[top : top + size // 2, left : left + size // 2] = True
        return hole


@dataclasses.dataclass(frozen=True)
class CellularAutomaton:
    """Noise, smoothed by repeated majority votes of neighbouring cells."""

    scales: tuple[int, ...] = (1, 2, 4, 8)  # pixels per cell
    votes: tuple[int, int] = (2, 7)  # the end is excluded

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key, 3)
        votes = jax.random.randint(keys[1], (), *self.votes)

        def draw(scale: int) -> jax.Array:
            shape = size // scale, size // scale
            bits = jax.random.bernoulli(keys[2], 0.5, shape)

            def step(index, bits):
                return jnp.where(index < votes, _majority_vote(bits, jnp), bits)

            bits = jax.lax.fori_loop(0, self.votes[1] - 1, step, bits)
            return _enlarge(bits, scale, jnp)

        holes = jnp.stack([draw(scale) for scale in self.scales])
        return holes[jax.random.randint(keys[0], (), 0, len(self.scales))]

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        scale = rng.choice(self.scales)
        bits = rng.random((size // scale, size // scale)) < 0.5
        for _ in range(rng.integers(*self.votes)):
            bits = _majority_vote(bits, np)
        return _enlarge(bits, int(scale), np)


def _majority_vote(bits, xp):
    """Set the cells that have at least five of nine set in their neighbourhood."""
    counts = xp.pad(bits.astype(xp.uint8), 1)
    counts = counts[:-2] + counts[1:-1] + counts[2:]
    return counts[:, :-2] + counts[:, 1:-1] + counts[:, 2:] >= 5


def _enlarge(bits, scale: int, xp):
    """Enlarge cells to `scale` pixels; above 1, dilate them by a cross of 3 pixels."""
    bits = xp.repeat(xp.repeat(bits, scale, axis=0), scale, axis=1)
    if scale == 1:
        return bits
    wide = xp.pad(bits, 1)
    sides = wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return bits | sides


@dataclasses.dataclass(frozen=True)
class Union:
    """One hole of each distribution, together."""

    parts: tuple[Sampler, ...]

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key, len(self.parts))
        holes = [
            part.hole_on_device(key, size)
            for key, part in zip(keys, self.parts, strict=True)
        ]
        return functools.reduce(jnp.logical_or, holes)

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        holes = [part.hole_on_host(rng, size) for part in self.parts]
        return np.logical_or.reduce(holes)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several distributions: one mask is of a random one of them."""

    parts: tuple[Sampler, ...]

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        which, key = jax.random.split(key)
        holes = jnp.stack([part.hole_on_device(key, size) for part in self.parts])
        return holes[jax.random.randint(which, (), 0, len(self.parts))]

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        part = self.parts[rng.integers(len(self.parts))]
        return part.hole_on_host(rng, size)


# Co-Mod-GAN's and MI-GAN's masks for training and evaluation.
FREE_FORM = Union(
    (
        Rectangles(max_count=9, max_side=0.5),
        Rectangles(max_count=4, max_side=1.0),
        Brush((0, 20), (4, 18), (12, 48), width_scales=False, flips=True),
    )
)
SAMPLERS: dict[str, Sampler] = {
    "free_form": FREE_FORM,
    "brush": Brush(),
    "thin_brush": Brush(widths=(8, 24)),  # for small images
    "box": BoxMask(),
    "half_box": HalfBox(),
    "centre_box": HalfBox(centred=True),
    "half_box_and_brush": Union((HalfBox(), Brush())),  # Hukkelas et al.
    "cellular_automaton": CellularAutomaton(),
    "short_strokes": ShortStrokes(),
    # DeepGIN's; its training draws one of each for every image.
    "deepgin": Mixture((BoxMask(), CellularAutomaton(), ShortStrokes())),
    # Uniform over hole ratios, as sets of irregular masks are used; and one bin each.
    "irregular": Irregular(),
    **{
        f"irregular_{low}_{high}": Irregular(((low, high),))
        for low, high in HOLE_BINS[1:5]
    },
}
