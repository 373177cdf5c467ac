"""Textured surfaces, and the pictures they make: what drawn scenes consist of.

A scene is a list of surfaces from back to front. Each has a frame, a homography from
its own coordinates to the picture, so that the same bricks are a scrap of paper or a
wall in perspective. Outlines are painted by number, then one pass shades all points,
whatever they belong to.
"""

import dataclasses
import functools
import math

import numpy as np
from PIL import Image, ImageDraw

FINE = 2  # points in either direction that make a pixel where outlines meet
CHUNK = 16384  # points that are shaded together: what fits in a processor's cache
TILE = 512  # the side of the noise, a power of 2
# Directions to parts of a light that is as wide as it is high.
SUN = np.arange(0.5, 16) ** 0.5 / 4 * np.exp(2.4j * np.arange(16))


# Textures: how much of a surface's second colour is at (u, v). A pixel covers (du, dv).


def comb(at, width, fill):
    """How much of an interval lies in teeth of period 1: exact, so nothing aliases."""

    def teeth_before(end):
        whole = np.floor(end)
        return whole * fill + np.minimum(end - whole, fill)

    teeth = teeth_before(at + width / 2) - teeth_before(at - width / 2)
    return np.clip(teeth / width, 0, 1)  # rounding may lead beyond


def tone(u, v, du, dv):
    """Another number for each cell of a grid; their mean where a pixel has many."""
    cell = (71 * np.floor(u) + 163 * np.floor(v)).astype(np.int32)
    one = np.clip(2 - 2 * np.maximum(du, dv), 0, 1)
    other = np.take(noise_tile(), cell, mode="wrap")
    return np.clip(0.7 + 0.15 * one * other, 0, 1)


def stripes(u, v, du, dv, fill):
    return comb(u, du, fill)


def checks(u, v, du, dv, fill):
    across, down = comb(u, du, 0.5), comb(v, dv, 0.5)
    return across + down - 2 * across * down


def tiles(u, v, du, dv, fill):
    return comb(u, du, fill) * comb(v, dv, fill) * tone(u, v, du, dv)


def bricks(u, v, du, dv, fill):
    shifted = u / 2 + np.floor(2 * v) / 2
    return tiles(shifted, 2 * v, du / 2, 2 * dv, 0.8 + fill / 6)


def clouds(u, v, du, dv, fill):
    return np.clip(fill + 0.3 * noise(0.13 * u, 0.13 * v), 0, 1)


TEXTURES = (None, stripes, checks, tiles, bricks, clouds)
PLAIN, STRIPES, CHECKS, TILES, BRICKS, CLOUDS = range(len(TEXTURES))


@functools.cache
def noise_tile() -> np.ndarray:
    """Periodic noise with the spectrum of clouds, of mean 0 and deviation 1."""
    frequency = np.fft.fftfreq(TILE, 1 / TILE)
    distance = np.hypot(frequency[:, None], frequency[: TILE // 2 + 1])
    distance[0, 0] = np.inf
    white = np.fft.rfft2(np.random.default_rng(0).standard_normal((TILE, TILE)))
    wave = np.fft.irfft2(white * distance**-1.25, (TILE, TILE))
    return (wave / wave.std()).astype(np.float32)


def noise(x, y):
    """Clouds of period 1: the tile, with lines between its values."""
    x, y = TILE * x, TILE * y
    left, top = np.floor(x), np.floor(y)
    column, row = (at.astype(np.int32) & (TILE - 1) for at in (left, top))
    place, x, y = TILE * row + column, x - left, y - top
    first, second, third, fourth = (
        np.take(noise_tile(), place + step, mode="wrap")
        for step in (0, 1, TILE, TILE + 1)
    )
    upper, lower = first + (second - first) * x, third + (fourth - third) * x
    return upper + (lower - upper) * y


@dataclasses.dataclass
class Surfaces:
    """N of them from back to front; the first is behind everything."""

    outlines: list[np.ndarray]  # N of [K, 2], in the picture, which is 1 wide
    textures: np.ndarray  # [N], indices of TEXTURES
    maps: np.ndarray  # [3, 3, N], from the picture's (x, y, 1) to own (p, q, 1)
    grid: np.ndarray  # [4, N], periods for 1 of p and of q, and those at p = q = 0
    fill: np.ndarray  # [N], what of a period has the second colour
    colours: np.ndarray  # [2, 3, N], linear
    light: np.ndarray  # [5, N], factors of p, q, p**2 + q**2, 1 and of noise


def draw_palette(rng: np.random.Generator, count: int = 8) -> np.ndarray:
    """Related hues and two accents, from dark to light: linear colours [count, 3]."""
    hue = rng.choice([0.07, 0.1, 0.24, 0.57, 0.6]) + rng.normal(0, 0.05, count)
    hue[:2] += rng.uniform(0.3, 0.7, 2)
    value = rng.permutation(np.linspace(0.15, 0.95, count)) + rng.normal(0, 0.03, count)
    saturation = np.clip(rng.beta(2, 3, count) * rng.uniform(0.4, 1.2), 0, 0.9)
    sector = (np.array([5, 3, 1]) + 6 * hue[:, None]) % 6
    drop = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return (value * (1 - (saturation * (1.2 - 0.7 * value)) * drop.T)).T ** 2


def dressed(rng, outlines, frames, textures, periods, owners) -> Surfaces:
    """Colours and light for surfaces; those of one owner are of the same stuff."""
    palette, count = draw_palette(rng), owners.max() + 1
    first, second = palette[rng.integers(len(palette), size=(2, count))]
    other = np.minimum(first * np.exp(rng.normal(0, 0.7, (count, 1))), 0.9)
    second = np.where(rng.random((count, 1)) < 0.6, other, second)
    colours = np.stack([first.T, second.T]) * rng.uniform(0.85, 1.15, (3, count))
    fill, mottle = rng.uniform(0.3, 0.8, count), rng.gamma(2, 0.04, count)
    maps, many = np.linalg.inv(frames).transpose(1, 2, 0), (2, len(owners))
    grid = np.vstack([periods.T, rng.integers(0, 64, many)])
    shading = rng.uniform([[-0.4], [0.7]], [[0.1], [1.2]], many)
    light = np.vstack([rng.normal(0, 0.2, many), shading, mottle[owners]])
    look = maps, grid, fill[owners], colours[..., owners], light
    return Surfaces(outlines, textures, *(values.astype(np.float32) for values in look))


# From surfaces to a picture.


def paint(outlines: list[np.ndarray], side: int) -> np.ndarray:
    """The number of the surface that is seen at each point: [side, side]."""
    canvas = Image.new("I;16", (side, side))
    draw = ImageDraw.Draw(canvas)
    for number, outline in enumerate(outlines):
        if len(outline) > 2:
            draw.polygon((side * outline).ravel().tolist(), fill=number)
    return np.asarray(canvas)


def pattern(surfaces: Surfaces, label, p, q, pixel) -> np.ndarray:
    """How much of the second colour is at points of the surfaces `label`: [P]."""
    (a, b), (d, e), (g, h) = np.take(surfaces.maps[:, :2], label, -1)
    across, down, right, below = np.take(surfaces.grid, label, -1)
    du = across * pixel * (np.abs(a - p * g) + np.abs(b - p * h))
    dv = down * pixel * (np.abs(d - q * g) + np.abs(e - q * h))
    fill, texture = surfaces.fill[label], surfaces.textures[label]
    points = right + p * across, below + q * down, du, dv, fill
    amount = np.empty_like(p)
    for number, draw in enumerate(TEXTURES[1:], start=1):
        where = np.flatnonzero(texture == number)
        amount[where] = draw(*(values[where] for values in points))
    return amount


def shade(surfaces: Surfaces, label, x, y, pixel: float) -> np.ndarray:
    """Linear colours [3, P] of points of the surfaces `label`."""
    rows = (np.take(row, label, -1) for row in surfaces.maps)
    p, q, near = (a * x + b * y + c for a, b, c in rows)
    near = np.maximum(near, 1e-4)  # at a plane's horizon, paint is not exact
    p, q = np.clip(p / near, -9, 9), np.clip(q / near, -9, 9)
    amount, where = np.zeros_like(x), np.flatnonzero(surfaces.textures[label])
    some = label[where], p[where], q[where], pixel / near[where]
    amount[where] = pattern(surfaces, *some)
    tilt, fall, bend, base, mottle = np.take(surfaces.light, label, -1)
    light = tilt * p + fall * q + bend * (p * p + q * q) + base
    light *= 1 + mottle * noise(x + 0.13 * surfaces.grid[2][label], y)
    first, second = np.take(surfaces.colours, label, -1)
    return (first + amount * (second - first)) * np.maximum(light, 0.05)


def shadow(labels: np.ndarray, place: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """How many of the steps from a point lead to a surface before its own: [P]."""
    own, hidden = labels[place], np.zeros(len(place), np.float32)
    for step in steps.tolist():
        hidden += np.take(labels, place + step) > own
    return hidden / len(steps)


def render(rng, size: int, surfaces: Surfaces, height: float) -> np.ndarray:
    """A picture, uint8 [size, size, 3], whose shadows fall as far as `height`."""
    side, angle = FINE * size, rng.uniform(0, 2 * math.pi)
    darkness, grain = rng.uniform(0.3, 0.8), rng.uniform(0, 0.015)
    labels = paint(surfaces.outlines, side)
    parts = [labels[k::FINE, j::FINE] for k in range(FINE) for j in range(FINE)]
    mixed = np.flatnonzero(np.any([part != parts[0] for part in parts[1:]], 0))
    corner = FINE * np.indices((size, size), np.int32).reshape(2, -1)
    inside = np.indices((FINE, FINE), np.int32).reshape(2, -1, 1)[:, 1:]
    others = (corner[:, None, mixed] + inside).reshape(2, -1)
    points = np.concatenate([corner, others], 1)
    light = np.rint(height * side * (np.exp(1j * angle) + SUN))
    reach = int(max(np.abs(light.real).max(), np.abs(light.imag).max()))
    padded = np.pad(labels, reach, mode="edge")
    width, flat = len(padded), padded.ravel()
    steps = (width * light.imag + light.real).astype(np.int64)

    def seen(some):
        y, x = (some.astype(np.float32) + 0.5) / side
        row, column = some + reach
        place = width * row + column
        colour = shade(surfaces, flat[place].astype(np.intp), x, y, 1 / size)
        return colour * (1 - darkness * shadow(flat, place, steps))

    chunks = np.array_split(points, 1 + points.shape[1] // CHUNK, axis=1)
    colour = np.concatenate([seen(some) for some in chunks], 1)
    picture, others = np.split(colour, [size**2], axis=1)
    picture[:, mixed] += others.reshape(3, FINE**2 - 1, len(mixed)).sum(1)
    picture[:, mixed] /= FINE**2
    np.sqrt(picture, out=picture)
    picture += grain * rng.standard_normal(size**2, np.float32)
    picture = np.uint8(255 * np.clip(picture, 0, 1) + 0.5)
    return np.ascontiguousarray(picture.T).reshape(size, size, 3)
