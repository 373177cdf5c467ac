"""Textured surfaces, which scenes consist of, and their rendering.

A scene is a list of surfaces from back to front. Each has a frame: a homography from
the surface's coordinates to the image's, so that the same bricks can be a flat patch or
a wall in perspective. Rendering first paints the index of the visible surface at each
point, then shades all points in one pass.
"""

import dataclasses
import functools
import math

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 2  # points per pixel in each direction where outlines meet
POINTS_PER_CHUNK = 16384  # to shade together; they fit in the cache
NOISE_SIZE = 512  # side of the tile of noise, a power of 2
# Offsets to points of the light, a disc of radius 1, as complex numbers.
LIGHT_OFFSETS = np.arange(0.5, 16) ** 0.5 / 4 * np.exp(2.4j * np.arange(16))


# Textures: the fraction of a surface's second colour at (u, v), for pixels (du, dv).


def comb(at, width, fill):
    """Return the fraction of intervals inside teeth of period 1, without aliasing."""

    def integral(end):
        whole = np.floor(end)
        return whole * fill + np.minimum(end - whole, fill)

    teeth = integral(at + width / 2) - integral(at - width / 2)
    return np.clip(teeth / width, 0, 1)  # against rounding errors


def tone(u, v, du, dv):
    """Return a random value per cell of a grid; its mean if cells are small."""
    cell = (71 * np.floor(u) + 163 * np.floor(v)).astype(np.int32)
    contrast = np.clip(2 - 2 * np.maximum(du, dv), 0, 1)
    value = np.take(noise_tile(), cell, mode="wrap")
    return np.clip(0.7 + 0.15 * contrast * value, 0, 1)


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
    """Return periodic noise with the spectrum of clouds, mean 0 and deviation 1."""
    frequency = np.fft.fftfreq(NOISE_SIZE, 1 / NOISE_SIZE)
    radius = np.hypot(frequency[:, None], frequency[: NOISE_SIZE // 2 + 1])
    radius[0, 0] = np.inf
    shape = NOISE_SIZE, NOISE_SIZE
    white = np.fft.rfft2(np.random.default_rng(0).standard_normal(shape))
    clouds = np.fft.irfft2(white * radius**-1.25, shape)
    return (clouds / clouds.std()).astype(np.float32)


def noise(x, y):
    """Return clouds of period 1: the tile, linearly interpolated."""
    x, y = NOISE_SIZE * x, NOISE_SIZE * y
    left, top = np.floor(x), np.floor(y)
    column, row = (at.astype(np.int32) & (NOISE_SIZE - 1) for at in (left, top))
    index, x, y = NOISE_SIZE * row + column, x - left, y - top
    first, second, third, fourth = (
        np.take(noise_tile(), index + step, mode="wrap")
        for step in (0, 1, NOISE_SIZE, NOISE_SIZE + 1)
    )
    upper, lower = first + (second - first) * x, third + (fourth - third) * x
    return upper + (lower - upper) * y


@dataclasses.dataclass
class Surfaces:
    """N surfaces from back to front; the first is the background."""

    outlines: list[np.ndarray]  # N times [K, 2], in an image of width 1
    textures: np.ndarray  # [N], indices in TEXTURES
    maps: np.ndarray  # [3, 3, N], from the image's (x, y, 1) to the surface's (p, q, 1)
    grid: np.ndarray  # [4, N], periods per unit of p and of q, and phases of both
    fill: np.ndarray  # [N], fraction of a period in the second colour
    colours: np.ndarray  # [2, 3, N], linear
    light: np.ndarray  # [5, N], factors of p, q, p**2 + q**2, 1 and noise

    def below(self, others: "Surfaces") -> "Surfaces":
        """Return these surfaces with others in front of them."""
        arrays = {
            field.name: [getattr(self, field.name), getattr(others, field.name)]
            for field in dataclasses.fields(self)[1:]
        }
        joined = {name: np.concatenate(pair, -1) for name, pair in arrays.items()}
        return Surfaces([*self.outlines, *others.outlines], **joined)


def draw_palette(rng: np.random.Generator, count: int = 8) -> np.ndarray:
    """Draw colours of related hues and two accents: linear [count, 3]."""
    hue = rng.choice([0.07, 0.1, 0.24, 0.57, 0.6]) + rng.normal(0, 0.05, count)
    hue[:2] += rng.uniform(0.3, 0.7, 2)
    value = rng.permutation(np.linspace(0.15, 0.95, count)) + rng.normal(0, 0.03, count)
    saturation = np.clip(rng.beta(2, 3, count) * rng.uniform(0.4, 1.2), 0, 0.9)
    sector = (np.array([5, 3, 1]) + 6 * hue[:, None]) % 6
    drop = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return (value * (1 - (saturation * (1.2 - 0.7 * value)) * drop.T)).T ** 2


def make_surfaces(rng, outlines, frames, textures, periods, owners) -> Surfaces:
    """Draw surfaces' colours and light; surfaces of one owner share a material."""
    palette, count = draw_palette(rng), owners.max() + 1
    first, second = palette[rng.integers(len(palette), size=(2, count))]
    other = np.minimum(first * np.exp(rng.normal(0, 0.7, (count, 1))), 0.9)
    second = np.where(rng.random((count, 1)) < 0.6, other, second)
    colours = np.stack([first.T, second.T]) * rng.uniform(0.85, 1.15, (3, count))
    fill, mottle = rng.uniform(0.3, 0.8, count), rng.gamma(2, 0.04, count)
    maps, shape = np.linalg.inv(frames).transpose(1, 2, 0), (2, len(owners))
    grid = np.vstack([periods.T, rng.integers(0, 64, shape)])
    shading = rng.uniform([[-0.4], [0.7]], [[0.1], [1.2]], shape)
    light = np.vstack([rng.normal(0, 0.2, shape), shading, mottle[owners]])
    look = maps, grid, fill[owners], colours[..., owners], light
    return Surfaces(outlines, textures, *(values.astype(np.float32) for values in look))


# Rendering.


def paint_labels(outlines: list[np.ndarray], side: int) -> np.ndarray:
    """Return the index of the visible surface at each point: [side, side]."""
    canvas = Image.new("I;16", (side, side))
    draw = ImageDraw.Draw(canvas)
    for index, outline in enumerate(outlines):
        if len(outline) > 2:
            draw.polygon((side * outline).ravel().tolist(), fill=index)
    return np.asarray(canvas)


def texture_at(surfaces: Surfaces, labels, p, q, pixel) -> np.ndarray:
    """Return the fraction of the second colour at points of surfaces: [P]."""
    (a, b), (d, e), (g, h) = np.take(surfaces.maps[:, :2], labels, -1)
    across, down, right, below = np.take(surfaces.grid, labels, -1)
    du = across * pixel * (np.abs(a - p * g) + np.abs(b - p * h))
    dv = down * pixel * (np.abs(d - q * g) + np.abs(e - q * h))
    fill, textures = surfaces.fill[labels], surfaces.textures[labels]
    points = right + p * across, below + q * down, du, dv, fill
    amount = np.empty_like(p)
    for index, draw in enumerate(TEXTURES[1:], start=1):
        where = np.flatnonzero(textures == index)
        amount[where] = draw(*(values[where] for values in points))
    return amount


def shade(surfaces: Surfaces, labels, x, y, pixel: float) -> np.ndarray:
    """Return linear colours [3, P] of points, without shadows."""
    rows = (np.take(row, labels, -1) for row in surfaces.maps)
    p, q, scale = (a * x + b * y + c for a, b, c in rows)
    scale = np.maximum(scale, 1e-4)  # painted outlines may reach beyond a horizon
    p, q = np.clip(p / scale, -9, 9), np.clip(q / scale, -9, 9)
    amount, where = np.zeros_like(x), np.flatnonzero(surfaces.textures[labels])
    textured = labels[where], p[where], q[where], pixel / scale[where]
    amount[where] = texture_at(surfaces, *textured)
    tilt, fall, bend, base, mottle = np.take(surfaces.light, labels, -1)
    light = tilt * p + fall * q + bend * (p * p + q * q) + base
    light *= 1 + mottle * noise(x + 0.13 * surfaces.grid[2][labels], y)
    first, second = np.take(surfaces.colours, labels, -1)
    return (first + amount * (second - first)) * np.maximum(light, 0.05)


def shadow(labels: np.ndarray, points: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the fraction of light hidden from points, [P], indices of flat `labels`.

    `steps` are the directions to the light, as differences of indices.
    """
    own, hidden = labels[points], np.zeros(len(points), np.float32)
    for step in steps.tolist():
        hidden += np.take(labels, points + step) > own  # a surface in front
    return hidden / len(steps)


def render(rng, size: int, surfaces: Surfaces, height: float) -> np.ndarray:
    """Render uint8 [size, size, 3] with shadows of length `height`, relative to 1."""
    side, angle = SUPERSAMPLING * size, rng.uniform(0, 2 * math.pi)
    darkness, grain = rng.uniform(0.3, 0.8), rng.uniform(0, 0.015)
    labels = paint_labels(surfaces.outlines, side)
    first, *others = (
        labels[row::SUPERSAMPLING, column::SUPERSAMPLING]
        for row in range(SUPERSAMPLING)
        for column in range(SUPERSAMPLING)
    )
    # Shade one point per pixel, and all of them where outlines meet.
    mixed = np.flatnonzero(np.any([other != first for other in others], 0))
    corners = SUPERSAMPLING * np.indices((size, size), np.int32).reshape(2, -1)
    offsets = np.indices((SUPERSAMPLING, SUPERSAMPLING), np.int32)
    offsets = offsets.reshape(2, -1, 1)[:, 1:]
    extra = (corners[:, None, mixed] + offsets).reshape(2, -1)
    points = np.concatenate([corners, extra], 1)
    light = np.rint(height * side * (np.exp(1j * angle) + LIGHT_OFFSETS))
    reach = int(max(np.abs(light.real).max(), np.abs(light.imag).max()))
    padded = np.pad(labels, reach, mode="edge")
    width, flat = len(padded), padded.ravel()
    steps = (width * light.imag + light.real).astype(np.int64)

    def colours_at(points):
        y, x = (points.astype(np.float32) + 0.5) / side
        row, column = points + reach
        index = width * row + column
        colours = shade(surfaces, flat[index].astype(np.intp), x, y, 1 / size)
        return colours * (1 - darkness * shadow(flat, index, steps))

    chunks = np.array_split(points, 1 + points.shape[1] // POINTS_PER_CHUNK, axis=1)
    colours = np.concatenate([colours_at(chunk) for chunk in chunks], 1)
    image, extra = np.split(colours, [size**2], axis=1)
    image[:, mixed] += extra.reshape(3, SUPERSAMPLING**2 - 1, len(mixed)).sum(1)
    image[:, mixed] /= SUPERSAMPLING**2
    np.sqrt(image, out=image)
    image += grain * rng.standard_normal(size**2, np.float32)
    image = np.uint8(255 * np.clip(image, 0, 1) + 0.5)
    return np.ascontiguousarray(image.T).reshape(size, size, 3)
