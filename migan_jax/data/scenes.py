"""Pictures drawn from a seed, to train and to test on where there are no photos.

They show what inpainting has to know: edges and lines to continue, textures and grids
to extend, things of all sizes in front of others. What a scene consists of is drawn
before any pixel, in shares of the picture: a seed gives the same composition at every
size.
"""

import math
from collections.abc import Callable

import numpy as np

from migan_jax.data.surfaces import (
    BRICKS,
    CHECKS,
    CLOUDS,
    PLAIN,
    STRIPES,
    TEXTURES,
    TILES,
    Surfaces,
    dressed,
    render,
)
from migan_jax.errors import UserError

CORNERS = 60  # of a round outline; triangles to hexagons divide it
NEAREST = 0.1  # what is closer to the camera is not seen


def draw_scene(
    rng: np.random.Generator, size: int, family: str | None = None
) -> np.ndarray:
    """A picture, uint8 [size, size, 3], of one of FAMILIES; by default, of any."""
    family = str(rng.choice(list(FAMILIES))) if family is None else family
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"There is no family of scenes {family!r}; known are {known}.")
    return FAMILIES[family](rng, size)


def turn(axis: int, angle) -> np.ndarray:
    """Rotations about an axis: [..., 3, 3]."""
    matrix, one, two = np.zeros((*np.shape(angle), 3, 3)), axis - 2, axis - 1
    matrix[..., axis, axis] = 1
    matrix[..., one, one] = matrix[..., two, two] = np.cos(angle)
    matrix[..., two, one] = np.sin(angle)
    matrix[..., one, two] = -matrix[..., two, one]
    return matrix


AROUND = np.arange(CORNERS) * 2 * math.pi / CORNERS
HALF = math.pi / np.array([[CORNERS]] * 4 + [[3], [4], [4], [4], [4], [5], [6]])
DISCS_AND_POLYGONS = np.cos(HALF) / np.cos(AROUND % (2 * HALF) - HALF)
BLOBS = [1 + deep * np.cos(n * AROUND) for deep in (0.1, 0.25) for n in (2, 3, 5)]
RADII = np.concatenate([DISCS_AND_POLYGONS, BLOBS])[..., None]
ROUND = RADII * np.stack([np.cos(AROUND), np.sin(AROUND)], -1)  # outlines


def scattered(rng, radii, stretch, textures) -> Surfaces:
    """Things of these sizes anywhere; the first is the background."""
    count = len(radii)
    frames, inner = turn(2, rng.uniform(0, 2 * math.pi, (2, count)))
    frames[:, :2, :2] *= np.stack([radii, radii * stretch], -1)[:, None]
    frames[:, :2, 2] = rng.uniform(-0.1, 1.1, (count, 2))
    forms = ROUND[rng.integers(len(ROUND), size=count)]
    outlines = forms @ (frames @ inner)[:, :2, :2].mT + frames[:, None, :2, 2]
    periods = 5 ** rng.random((count, 2)) * (1 + stretch[:, None]) / 2
    chosen = rng.choice(textures, count)
    return dressed(rng, [*outlines], frames, chosen, periods, np.arange(count))


def leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dead leaves: the density of radii is r**-3, that of photographs."""
    smallest, largest = 0.04 * 3 ** rng.random(), 0.4
    squares = smallest**-2 - largest**-2
    count = int(0.9 * squares / math.log(largest / smallest))  # to cover nearly all
    radii = (smallest**-2 - rng.random(count) * squares) ** -0.5
    radii[0] = 1
    textures = [*[PLAIN] * 6, STRIPES, STRIPES, CHECKS, TILES, CLOUDS, CLOUDS]
    surfaces = scattered(rng, radii, rng.uniform(0.4, 1, count), textures)
    return render(rng, size, surfaces, rng.uniform(0.002, 0.012))


def shapes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Large things before a smooth background, and wires across."""
    count, wires = rng.integers(5, 12), rng.integers(1, 5)
    radii, stretch = rng.uniform((0.08, 0.4), (0.4, 1), (count + wires, 2)).T
    radii[0], radii[-wires:] = 1, 4
    stretch[-wires:] = rng.uniform(0.0007, 0.003, wires)
    surfaces = scattered(rng, radii, stretch, range(len(TEXTURES)))
    surfaces.textures[0] = rng.choice([PLAIN, CLOUDS, CLOUDS])
    surfaces.textures[-wires:] = PLAIN
    return render(rng, size, surfaces, rng.uniform(0.01, 0.03))


# Things in perspective. The camera is at the origin, y is down, z is away.

SQUARE = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]])
QUARTERS = math.pi / 2 * np.arange(-1, 3)
FRONT = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, -0.5]])
CUBE = np.concatenate([turn(1, QUARTERS), turn(0, QUARTERS[::2])]) @ FRONT
ROWS, COLUMNS = np.indices((3, 4)).reshape(2, -1)  # of windows, at most
# What the frames of a box are, and what may be on each kind of them.
SIDE, TOP, BOTTOM, WINDOW = range(4)
KINDS = np.repeat([SIDE, TOP, BOTTOM, WINDOW], (4, 1, 1, 4 * ROWS.size))
STUFF = (
    (PLAIN, PLAIN, PLAIN, BRICKS, BRICKS, STRIPES, TILES, CLOUDS),
    (PLAIN,),
    (CHECKS, TILES, BRICKS, CLOUDS),
    (PLAIN, PLAIN, TILES, STRIPES),
)
SKY = np.array([[0.7, 0.75, 0.8], [0.2, 0.4, 0.8]])
# Where things may stand, from far to near.
LOTS = np.array([(x, z) for z in range(5, 0, -1) for x in (-3, 3, -2, 2, -1, 1, 0)])


def boxes(rng, places, sides, angles) -> np.ndarray:
    """Frames of N boxes and of their windows, as KINDS says: [N, K, 3, 3]."""
    faces = turn(1, angles)[:, None] @ (sides[:, None, :, None] * CUBE)
    faces[..., 0, 2] += places[:, :1]
    faces[..., 1, 2] -= sides[:, 1:2] / 2
    faces[..., 2, 2] += places[:, 1:]
    grid = rng.integers(1, [[5], [4]], (2, len(places)))[..., None]
    cell, share = np.stack([COLUMNS, ROWS])[:, None], rng.uniform(0.3, 0.8, grid.shape)
    windows = np.tile(np.eye(3), (len(places), 1, ROWS.size, 1, 1))
    exists = (cell < grid).all(0)  # the others are of no size
    for axis, margin in enumerate((0.5, rng.choice([0.5, 1]))):
        windows[:, 0, :, axis, axis] = exists * share[axis] / grid[axis]
        first = (1 - share[axis]) * margin
        windows[:, 0, :, axis, 2] = (cell[axis] + first) / grid[axis]
    windows = faces[:, :4, None] @ windows
    return np.concatenate([faces, windows.reshape(len(places), -1, 3, 3)], 1)


def draw_world(rng: np.random.Generator, outdoors: bool) -> tuple[np.ndarray, float]:
    """Boxes around a camera, of which the first holds the others; and their scale."""
    unit, eye = (6, rng.uniform(1.6, 6)) if outdoors else (1.4, rng.uniform(1.1, 1.8))
    room = rng.uniform((4, 2, 5), (7, 3, 8)) * (50 if outdoors else unit)
    middle = rng.uniform(-1, 1) * unit, room[2] / 2 - 0.8 * unit
    places = unit * (LOTS + rng.uniform(-0.2, 0.2, LOTS.shape))
    within = (np.abs(places - middle) < room[::2] / 2 - 0.6 * unit).all(1)
    places = np.vstack([middle, places[within & (rng.random(len(places)) < 0.5)]])
    count = len(places)
    sides = unit * rng.uniform(0.2, (0.8, 1.4, 0.8), (count, 3))
    sides *= np.where(rng.random((count, 1)) < 0.15, (0.15, 1.5, 0.15), 1)
    angles = rng.integers(0, 2, count) * rng.uniform(-1, 1, count)
    sides[0], angles[0] = room, 0
    world = boxes(rng, places, sides, angles)
    world[..., 1, 2] += eye
    return world, unit


def projected(frames: np.ndarray) -> list[np.ndarray]:
    """Outlines of squares in the picture, without what is behind the camera."""
    here = SQUARE @ frames.mT
    step, z = np.roll(here, -1, 1) - here, here[..., 2:]
    share = (NEAREST - z) / np.where(step[..., 2:] == 0, np.inf, step[..., 2:])
    points = np.stack([here, here + share * step], 2)
    seen = np.stack([z >= NEAREST, (share > 0) & (share < 1)], 2)[..., 0]
    points = points[..., :2] / np.maximum(points[..., 2:], NEAREST)
    return [some[which] for some, which in zip(points, seen, strict=True)]


def grids(rng: np.random.Generator, size: int) -> np.ndarray:
    """A room with things in it, or houses under the sky."""
    outdoors = bool(rng.integers(2))
    world, unit = draw_world(rng, outdoors)
    lens = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    lens[:2, :2] *= rng.uniform(0.6, 1.2)
    roll, pitch, yaw = rng.normal(0, (0.03, 0.1, 0.4))
    seen = lens @ turn(2, roll) @ turn(0, pitch) @ turn(1, yaw) @ world
    facing = np.linalg.det(seen)
    facing[0] *= -1  # the room is seen from inside
    if outdoors:
        facing[0, KINDS != BOTTOM] = 0
    box, face = np.nonzero(facing > 1e-6)
    owners = 4 * box + KINDS[face]
    textures = np.stack([rng.choice(kind, len(world)) for kind in STUFF], 1).ravel()
    lengths = np.linalg.norm(world[box, face, :, :2], axis=1)
    period = unit * rng.uniform(0.1, 0.5, (textures.size, 2))
    periods = np.maximum(np.round(lengths / period[owners]), 1)
    frames = seen[box, face]
    surfaces = dressed(
        rng,
        [SQUARE[:, :2], *projected(frames)],
        np.concatenate([np.eye(3)[None], frames]),
        np.append(CLOUDS, textures[owners]),
        np.concatenate([rng.uniform((2, 5), (5, 12))[None], periods]),
        np.append(0, owners + 1),
    )
    surfaces.light[:, 0] = 0, 0.2, 0, 0.8, 0
    surfaces.colours[..., 0] = SKY * rng.uniform(0.7, 1.2, (2, 1))
    return render(rng, size, surfaces, rng.uniform(0.002, 0.008))


FAMILIES: dict[str, Callable] = {"leaves": leaves, "shapes": shapes, "grids": grids}
