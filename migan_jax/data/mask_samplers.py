"""Random masks of the papers, drawn on a device from keys, on a host from a generator.

Both draw from the same distributions, though not the same masks: the host paints with
Pillow as the reference does, the device computes which pixels a stroke reaches. A mask
is 1 where the picture is known and 0 in the hole. Masks without a hole, or with nothing
else, are drawn again; on the device without shapes that depend on data.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from migan_jax.errors import UserError

# Of DeepFillv2's brush: a stroke turns by about this angle, to and fro, and as many of
# its segments as these make the picture's diagonal.
TURN, TURN_RANGE = 2 * math.pi / 5, 2 * math.pi / 15
SEGMENTS_PER_DIAGONAL = 8
# Of a mask in each direction.
SMALLEST, LARGEST = 8, 1 << 14
# How Pillow's lines and discs differ from w wide and w // 2 in radius, in pixels.
LINE_MARGIN, DISC_MARGIN = 0.15, 0.45


class Sampler(Protocol):
    """A distribution of holes."""

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        """True in the hole, [size, size]."""

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """True in the hole, [size, size]."""


def check_size(size: int) -> None:
    """Smaller masks could be all hole or none for ever, larger ones fill the memory."""
    if not SMALLEST <= size <= LARGEST:
        raise UserError(f"Masks have {SMALLEST} to {LARGEST:,} pixels, not {size:,}.")


def masks_on_device(sampler: Sampler, keys: jax.Array, size: int) -> jax.Array:
    """One mask for each key: float32 [N, size, size, 1]."""
    check_size(size)

    def draw(key: jax.Array) -> jax.Array:
        def attempt(state):
            key, _ = state
            key, now = jax.random.split(key)
            return key, sampler.hole_on_device(now, size)

        def is_useless(state):
            _, hole = state
            return hole.all() | ~hole.any()

        state = attempt((key, jnp.zeros((size, size), jnp.bool_)))
        _, hole = jax.lax.while_loop(is_useless, attempt, state)
        return 1.0 - hole[..., None].astype(jnp.float32)

    return jax.vmap(draw)(keys)


def mask_on_host(sampler: Sampler, rng: np.random.Generator, size: int) -> np.ndarray:
    """One mask: uint8 [size, size], 1 where known."""
    check_size(size)
    while True:
        hole = sampler.hole_on_host(rng, size)
        if hole.any() and not hole.all():
            return np.uint8(1) - hole


@dataclasses.dataclass(frozen=True)
class Brush:
    """Broad zigzag strokes: DeepFillv2's, whose widths are those of 256 pixels."""

    strokes: tuple[int, int] = (1, 4)  # at least, and less than
    segments: tuple[int, int] = (4, 12)
    widths: tuple[float, float] = (12, 40)
    width_scales: bool = True  # with the picture's size
    flips: bool = False

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        count_key, flip_key, key = jax.random.split(key, 3)
        count = jax.random.randint(count_key, (), *self.strokes)
        most = self.strokes[1] - 1

        def add(hole, index):
            stroke = self._stroke_on_device(jax.random.fold_in(key, index), size)
            return hole | (stroke & (index < count)), None

        empty = jnp.zeros((size, size), jnp.bool_)
        hole, _ = jax.lax.scan(add, empty, jnp.arange(most))
        if self.flips:
            down, right = jax.random.bernoulli(flip_key, 0.5, (2,))
            hole = jnp.where(down, hole[::-1], hole)
            hole = jnp.where(right, hole[:, ::-1], hole)
        return hole

    def _stroke_on_device(self, key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key, 6)
        most = self.segments[1] - 1
        segments = jax.random.randint(keys[0], (), *self.segments)
        low, high = jax.random.uniform(keys[1], (2,)) * TURN_RANGE
        angles = TURN - low + (low + high) * jax.random.uniform(keys[2], (most,))
        angles = jnp.where(jnp.arange(most) % 2 == 0, 2 * math.pi - angles, angles)
        length = math.sqrt(2) * size / SEGMENTS_PER_DIAGONAL
        lengths = length + length // 2 * jax.random.normal(keys[3], (most,))
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
        width = jnp.maximum(width, 1)  # or there would never be a hole
        points = jnp.concatenate([start[None], points])
        return _near_path(points, segments, width, size)

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        picture = Image.new("1", (size, size))
        draw = ImageDraw.Draw(picture)
        for _ in range(rng.integers(*self.strokes)):
            self._stroke_on_host(draw, rng, size)
        hole = np.asarray(picture)
        if self.flips:
            hole = hole[:: rng.choice((1, -1)), :: rng.choice((1, -1))]
        return hole

    def _stroke_on_host(
        self, draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: int
    ) -> None:
        segments = rng.integers(*self.segments)
        low, high = rng.uniform(0, TURN_RANGE, 2)
        angles = rng.uniform(TURN - low, TURN + high, segments)
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
        width = max(int(width), 1)
        draw.line(points, fill=1, width=width)
        radius = width // 2
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)


def _near_path(points: jax.Array, last: jax.Array, width: jax.Array, size: int):
    """Pixels on a path of lines with discs at its points, [size, size]; x comes first.

    Along a line, across it, and to a disc's middle (squared): all distances are sums of
    what row and column contribute, so that a pixel costs a few additions.
    """
    exists = (jnp.arange(len(points)) <= last)[None, None]
    place = jnp.arange(size, dtype=jnp.float32)[:, None]
    x, y = place - points[None, :, 0], place - points[None, :, 1]  # [size, points]

    def total(columns: jax.Array, rows: jax.Array) -> jax.Array:
        return rows[:, None] + columns[None]  # [size, size, points]

    disc = total(x**2, y**2) <= (width // 2 + DISC_MARGIN) ** 2
    (dx, dy), x, y = (points[1:] - points[:-1]).T[:, None], x[:, :-1], y[:, :-1]
    along, across = total(x * dx, y * dy), total(x * dy, -y * dx)
    square = (dx**2 + dy**2)[None]
    line = (along >= 0) & (along <= square) & (square > 0)
    line &= jnp.abs(across) <= (width / 2 - LINE_MARGIN) * jnp.sqrt(square)
    return jnp.any(disc & exists, axis=-1) | jnp.any(line & exists[..., 1:], axis=-1)


@dataclasses.dataclass(frozen=True)
class Rectangles:
    """Up to `most` rectangles; half of one may lie beyond the border."""

    most: int
    sides: float  # less than this share of the size

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key, 3)
        count = jax.random.randint(keys[0], (), 0, self.most + 1)
        side = int(self.sides * size)
        extent = jax.random.randint(keys[1], (self.most, 2), 0, side)
        low, high = -extent // 2, size - extent + extent // 2
        first = jax.random.randint(keys[2], (self.most, 2), low, high)
        position = jnp.arange(size)[None, :, None]
        inside = (position >= first[:, None]) & (position < (first + extent)[:, None])
        exists = (jnp.arange(self.most) < count)[:, None]
        rows, columns = inside[..., 0] & exists, inside[..., 1]
        return jnp.any(rows[:, :, None] & columns[:, None, :], axis=0)

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        hole = np.zeros((size, size), np.bool_)
        for _ in range(rng.integers(self.most + 1)):
            extent = rng.integers(0, int(self.sides * size), 2)
            first = rng.integers(-extent // 2, size - extent + extent // 2)
            (top, left), (bottom, right) = np.maximum(first, 0), first + extent
            hole[top : max(bottom, 0), left : max(right, 0)] = True
        return hole


@dataclasses.dataclass(frozen=True)
class FreeForm:
    """Co-Mod-GAN's and MI-GAN's, to train and to evaluate with: all of the above."""

    small: Rectangles = Rectangles(most=9, sides=0.5)
    large: Rectangles = Rectangles(most=4, sides=1.0)
    brush: Brush = Brush((0, 20), (4, 18), (12, 48), width_scales=False, flips=True)

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key, 3)
        parts = zip(keys, (self.small, self.large, self.brush), strict=True)
        small, large, brush = (part.hole_on_device(key, size) for key, part in parts)
        return small | large | brush

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        parts = self.small, self.large, self.brush
        small, large, brush = (part.hole_on_host(rng, size) for part in parts)
        return small | large | brush


@dataclasses.dataclass(frozen=True)
class Box:
    """One box of .3 to .7 of the size in either direction, inside the picture."""

    shares: tuple[float, float] = (0.3, 0.7)

    def _sides(self, size: int) -> tuple[int, int]:
        low, high = (int(share * size) for share in self.shares)
        return low, high + 1

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key)
        extent = jax.random.randint(keys[0], (2,), *self._sides(size))
        first = jax.random.randint(keys[1], (2,), 0, size - extent + 1)
        position = jnp.arange(size)[:, None]
        inside = (position >= first[None]) & (position < (first + extent)[None])
        return inside[:, 0][:, None] & inside[:, 1][None, :]

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        extent = rng.integers(*self._sides(size), 2)
        (top, left) = first = rng.integers(0, size - extent + 1)
        bottom, right = first + extent
        hole = np.zeros((size, size), np.bool_)
        hole[top:bottom, left:right] = True
        return hole


@dataclasses.dataclass(frozen=True)
class CellularAutomaton:
    """Noise that grows together: a majority vote of neighbours, some times over.

    At a scale of 1, 2, 4 or 8; larger cells are dilated by one pixel.
    """

    scales: tuple[int, ...] = (1, 2, 4, 8)
    votes: tuple[int, int] = (2, 7)  # at least, and less than

    def hole_on_device(self, key: jax.Array, size: int) -> jax.Array:
        keys = jax.random.split(key, 3)
        votes = jax.random.randint(keys[1], (), *self.votes)

        def at(scale: int) -> jax.Array:
            shape = size // scale, size // scale
            bits = jax.random.bernoulli(keys[2], 0.5, shape)

            def vote(index, bits):
                return jnp.where(index < votes, _majority(bits, jnp), bits)

            bits = jax.lax.fori_loop(0, self.votes[1] - 1, vote, bits)
            return _grown(bits, scale, jnp)

        holes = jnp.stack([at(scale) for scale in self.scales])
        return holes[jax.random.randint(keys[0], (), 0, len(self.scales))]

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        scale = rng.choice(self.scales)
        bits = rng.random((size // scale, size // scale)) < 0.5
        for _ in range(rng.integers(*self.votes)):
            bits = _majority(bits, np)
        return _grown(bits, int(scale), np)


def _majority(bits, xp):
    """Whether at least five of the nine in a pixel's neighbourhood are set."""
    counts = xp.pad(bits.astype(xp.uint8), 1)
    counts = counts[:-2] + counts[1:-1] + counts[2:]
    return counts[:, :-2] + counts[:, 1:-1] + counts[:, 2:] >= 5


def _grown(bits, scale: int, xp):
    """Cells of `scale` pixels, with their neighbours up, down, left and right."""
    bits = xp.repeat(xp.repeat(bits, scale, axis=0), scale, axis=1)
    if scale == 1:
        return bits
    wide = xp.pad(bits, 1)
    sides = wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return bits | sides


SAMPLERS: dict[str, Sampler] = {
    "free_form": FreeForm(),
    "brush": Brush(),
    "thin_brush": Brush(widths=(8, 24)),  # leaves more to go by in small pictures
    "box": Box(),
    "cellular_automaton": CellularAutomaton(),
}
