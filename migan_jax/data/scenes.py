"""Images drawn from a seed, to train and test without photos.

They contain what inpainting has to learn: lines and edges to continue, textures and
grids to extend, objects of all sizes that cover others. A scene's composition is drawn
first, relative to the image's size, so a seed gives the same scene at every size.
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
    make_surfaces,
    render,
)
from migan_jax.errors import UserError

CORNERS = 60  # of a round outline; a multiple of those of triangles to hexagons
NEAR_PLANE = 0.1  # distance from the camera below which nothing is visible


def draw_scene(
    rng: np.random.Generator, size: int, family: str | None = None
) -> np.ndarray:
    """Draw a scene, uint8 [size, size, 3], of a family or of a random one."""
    family = str(rng.choice(list(SCENE_FAMILIES))) if family is None else family
    if family not in SCENE_FAMILIES:
        known = ", ".join(SCENE_FAMILIES)
        raise UserError(f"There is no scene family {family!r}; use one of {known}.")
    return SCENE_FAMILIES[family](rng, size)


def rotation(axis: int, angle) -> np.ndarray:
    """Return matrices of rotations about an axis: [..., 3, 3]."""
    matrix, first, second = np.zeros((*np.shape(angle), 3, 3)), axis - 2, axis - 1
    matrix[..., axis, axis] = 1
    matrix[..., first, first] = matrix[..., second, second] = np.cos(angle)
    matrix[..., second, first] = np.sin(angle)
    matrix[..., first, second] = -matrix[..., second, first]
    return matrix


# Outlines as radii at these angles: discs, polygons, blobs.
ANGLES = np.arange(CORNERS) * 2 * math.pi / CORNERS
HALF_SIDES = math.pi / np.array([[CORNERS]] * 4 + [[3], [4], [4], [4], [4], [5], [6]])
DISCS_AND_POLYGONS = np.cos(HALF_SIDES) / np.cos(ANGLES % (2 * HALF_SIDES) - HALF_SIDES)
BLOBS = [1 + depth * np.cos(n * ANGLES) for depth in (0.1, 0.25) for n in (2, 3, 5)]
RADII = np.concatenate([DISCS_AND_POLYGONS, BLOBS])[..., None]
OUTLINES = RADII * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)


def scatter(rng, radii, stretch, textures) -> Surfaces:
    """Place shapes of these radii at random; the first is the background."""
    count = len(radii)
    frames, inner = rotation(2, rng.uniform(0, 2 * math.pi, (2, count)))
    frames[:, :2, :2] *= np.stack([radii, radii * stretch], -1)[:, None]
    frames[:, :2, 2] = rng.uniform(-0.1, 1.1, (count, 2))
    shapes = OUTLINES[rng.integers(len(OUTLINES), size=count)]
    outlines = shapes @ (frames @ inner)[:, :2, :2].mT + frames[:, None, :2, 2]
    periods = 5 ** rng.random((count, 2)) * (1 + stretch[:, None]) / 2
    chosen = rng.choice(textures, count)
    return make_surfaces(rng, [*outlines], frames, chosen, periods, np.arange(count))


def draw_leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw dead leaves, whose radii have the density of photos' objects, r**-3."""
    low, high = 0.04 * 3 ** rng.random(), 0.4
    squares = low**-2 - high**-2
    count = int(0.9 * squares / math.log(high / low))  # covers nearly everything
    radii = (low**-2 - rng.random(count) * squares) ** -0.5
    radii[0] = 1
    textures = [*[PLAIN] * 6, STRIPES, STRIPES, CHECKS, TILES, CLOUDS, CLOUDS]
    surfaces = scatter(rng, radii, rng.uniform(0.4, 1, count), textures)
    return render(rng, size, surfaces, rng.uniform(0.002, 0.012))


def draw_shapes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw large shapes before a smooth background, and wires across the image."""
    count, wires = rng.integers(5, 12), rng.integers(1, 5)
    radii, stretch = rng.uniform((0.08, 0.4), (0.4, 1), (count + wires, 2)).T
    radii[0], radii[-wires:] = 1, 4
    stretch[-wires:] = rng.uniform(0.0007, 0.003, wires)
    surfaces = scatter(rng, radii, stretch, range(len(TEXTURES)))
    surfaces.textures[0] = rng.choice([PLAIN, CLOUDS, CLOUDS])
    surfaces.textures[-wires:] = PLAIN
    return render(rng, size, surfaces, rng.uniform(0.01, 0.03))


# Boxes in perspective. The camera is at the origin; y points down, z into the image.

SQUARE = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]])
QUARTERS = math.pi / 2 * np.arange(-1, 3)
FRONT = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, -0.5]])
CUBE = np.concatenate([rotation(1, QUARTERS), rotation(0, QUARTERS[::2])]) @ FRONT
# The largest grid of windows on a side.
WINDOW_ROWS, WINDOW_COLUMNS = np.indices((3, 4)).reshape(2, -1)
# The kind of each surface of a box, and the possible textures of each kind.
SIDE, TOP, BOTTOM, WINDOW = range(4)
SURFACE_KINDS = np.repeat([SIDE, TOP, BOTTOM, WINDOW], (4, 1, 1, 4 * WINDOW_ROWS.size))
TEXTURES_BY_KIND = (
    (PLAIN, PLAIN, PLAIN, BRICKS, BRICKS, STRIPES, TILES, CLOUDS),
    (PLAIN,),
    (CHECKS, TILES, BRICKS, CLOUDS),
    (PLAIN, PLAIN, TILES, STRIPES),
)
SKY = np.array([[0.7, 0.75, 0.8], [0.2, 0.4, 0.8]])
# Possible positions (x, z) of boxes, from far to near.
BOX_GRID = np.array([(x, z) for z in range(5, 0, -1) for x in (-3, 3, -2, 2, -1, 1, 0)])


def make_boxes(rng, positions, sides, angles) -> np.ndarray:
    """Return the frames of N boxes' surfaces, as in SURFACE_KINDS: [N, K, 3, 3]."""
    faces = rotation(1, angles)[:, None] @ (sides[:, None, :, None] * CUBE)
    faces[..., 0, 2] += positions[:, :1]
    faces[..., 1, 2] -= sides[:, 1:2] / 2
    faces[..., 2, 2] += positions[:, 1:]
    grid = rng.integers(1, [[5], [4]], (2, len(positions)))[..., None]
    cell = np.stack([WINDOW_COLUMNS, WINDOW_ROWS])[:, None]
    extent = rng.uniform(0.3, 0.8, grid.shape)  # of a window, relative to its cell
    windows = np.tile(np.eye(3), (len(positions), 1, WINDOW_ROWS.size, 1, 1))
    exists = (cell < grid).all(0)  # the others get size 0
    for axis, margin in enumerate((0.5, rng.choice([0.5, 1]))):
        windows[:, 0, :, axis, axis] = exists * extent[axis] / grid[axis]
        first = (1 - extent[axis]) * margin
        windows[:, 0, :, axis, 2] = (cell[axis] + first) / grid[axis]
    windows = faces[:, :4, None] @ windows
    return np.concatenate([faces, windows.reshape(len(positions), -1, 3, 3)], 1)


def draw_world(rng: np.random.Generator, outdoors: bool) -> tuple[np.ndarray, float]:
    """Return the frames of a room and of boxes inside it, and the scale of these."""
    unit, eye_height = (
        (6, rng.uniform(1.6, 6)) if outdoors else (1.4, rng.uniform(1.1, 1.8))
    )
    room = rng.uniform((4, 2, 5), (7, 3, 8)) * (50 if outdoors else unit)
    middle = rng.uniform(-1, 1) * unit, room[2] / 2 - 0.8 * unit
    positions = unit * (BOX_GRID + rng.uniform(-0.2, 0.2, BOX_GRID.shape))
    inside = (np.abs(positions - middle) < room[::2] / 2 - 0.6 * unit).all(1)
    chosen = inside & (rng.random(len(positions)) < 0.5)
    positions = np.vstack([middle, positions[chosen]])
    count = len(positions)
    sides = unit * rng.uniform(0.2, (0.8, 1.4, 0.8), (count, 3))
    sides *= np.where(rng.random((count, 1)) < 0.15, (0.15, 1.5, 0.15), 1)
    angles = rng.integers(0, 2, count) * rng.uniform(-1, 1, count)
    sides[0], angles[0] = room, 0
    world = make_boxes(rng, positions, sides, angles)
    world[..., 1, 2] += eye_height
    return world, unit


def project_squares(frames: np.ndarray) -> list[np.ndarray]:
    """Return squares' outlines in the image, clipped at the near plane."""
    corners = SQUARE @ frames.mT
    edges, z = np.roll(corners, -1, 1) - corners, corners[..., 2:]
    # Where an edge crosses the near plane, as a fraction of it.
    crossing = (NEAR_PLANE - z) / np.where(edges[..., 2:] == 0, np.inf, edges[..., 2:])
    points = np.stack([corners, corners + crossing * edges], 2)
    crosses = (crossing > 0) & (crossing < 1)
    visible = np.stack([z >= NEAR_PLANE, crosses], 2)[..., 0]
    points = points[..., :2] / np.maximum(points[..., 2:], NEAR_PLANE)
    return [outline[which] for outline, which in zip(points, visible, strict=True)]


def draw_grids(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a room with boxes in it, or houses under the sky."""
    outdoors = bool(rng.integers(2))
    world, unit = draw_world(rng, outdoors)
    lens = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    lens[:2, :2] *= rng.uniform(0.6, 1.2)
    roll, pitch, yaw = rng.normal(0, (0.03, 0.1, 0.4))
    camera = lens @ rotation(2, roll) @ rotation(0, pitch) @ rotation(1, yaw)
    boxes = camera @ world
    facing = np.linalg.det(boxes)  # positive if visible
    facing[0] *= -1  # the room is visible from inside
    if outdoors:
        facing[0, SURFACE_KINDS != BOTTOM] = 0
    box, face = np.nonzero(facing > 1e-6)
    owners = 4 * box + SURFACE_KINDS[face]
    choices = [rng.choice(textures, len(world)) for textures in TEXTURES_BY_KIND]
    textures = np.stack(choices, 1).ravel()
    lengths = np.linalg.norm(world[box, face, :, :2], axis=1)
    period = unit * rng.uniform(0.1, 0.5, (textures.size, 2))
    periods = np.maximum(np.round(lengths / period[owners]), 1)
    frames = boxes[box, face]
    surfaces = make_surfaces(
        rng,
        [SQUARE[:, :2], *project_squares(frames)],
        np.concatenate([np.eye(3)[None], frames]),
        np.append(CLOUDS, textures[owners]),
        np.concatenate([rng.uniform((2, 5), (5, 12))[None], periods]),
        np.append(0, owners + 1),
    )
    surfaces.light[:, 0] = 0, 0.2, 0, 0.8, 0
    surfaces.colours[..., 0] = SKY * rng.uniform(0.7, 1.2, (2, 1))
    return render(rng, size, surfaces, rng.uniform(0.002, 0.008))


SCENE_FAMILIES: dict[str, Callable] = {
    "leaves": draw_leaves,
    "shapes": draw_shapes,
    "grids": draw_grids,
}
