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
    draw_palette,
    make_surfaces,
    render,
)
from migan_jax.errors import UserError

CORNERS = 60  # of a round outline; a multiple of those of triangles to hexagons
NEAR_PLANE = 0.1  # distance from the camera below which nothing is visible


def draw_scene(
    rng: np.random.Generator, size: int, family: str | None = None
) -> np.ndarray:
    """Draw a scene, uint8 [size, size, 3], of a family or of a random one.

    Faces are not among the random ones.
    """
    family = str(rng.choice(list(SCENE_FAMILIES))) if family is None else family
    if family == FACES:
        return draw_face(rng, size)[0]
    if family not in SCENE_FAMILIES:
        known = ", ".join([*SCENE_FAMILIES, FACES])
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


# Faces. Their unit is half the width of the head, whose middle is (0, 0).

FACES, FACE_POINTS = "faces", 7  # the family's name, keypoints of a face
SKINS = np.array([[0.98, 0.84, 0.74], [0.8, 0.58, 0.44], [0.38, 0.25, 0.18]]) ** 2
HAIRS = np.array([[0.1, 0.08, 0.07], [0.45, 0.26, 0.12], [0.9, 0.72, 0.4]]) ** 2
IRISES = np.array([[0.25, 0.45, 0.7], [0.25, 0.5, 0.3], [0.4, 0.25, 0.1]]) ** 2
EYE_WHITE, PUPIL, LIPS = np.full(3, 0.9), np.full(3, 0.01), np.array([0.6, 0.2, 0.2])
NECK = 1.2  # the height about which the head is tilted
TOP_OF_DISC = OUTLINES[0, CORNERS // 2 + 3 : -2]
ACROSS = np.linspace(-1, 1, 15)[:, None]
BOTH_SIDES = np.array([[1, 1], [-1, 1]])  # the person's left is on the right


def disc(middle, width, height) -> np.ndarray:
    return OUTLINES[0] * (width, height) + middle


def place(frame, points) -> np.ndarray:
    return points @ frame[:2, :2].T + frame[:2, 2]


def draw_face(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a face before shapes; return the image, and its keypoints in pixels.

    These are the nose, and the person's left and right eye, ear and shoulder, [7, 2].
    Some may be outside of the image.
    """
    count, scale = rng.integers(2, 9), rng.uniform(0.13, 0.24)
    radii, stretch = rng.uniform((0.08, 0.4), (0.4, 1), (count, 2)).T
    radii[0] = 1
    behind = scatter(rng, radii, stretch, range(len(TEXTURES)))
    body, neck = np.diag([scale, scale, 1]), np.eye(3)
    body[:2, 2] = rng.uniform((0.35, 0.3), (0.65, 0.48))
    neck[1, 2] = NECK
    tilt = rotation(2, rng.normal(0, 0.15))
    head = body @ neck @ tilt @ np.linalg.inv(neck)

    turn, chin, smile = rng.uniform((-0.25, 1.2, 0), (0.25, 1.45, 0.3))
    fringe, parting = rng.uniform((-0.9, -0.2), (-0.6, 0.2))
    thickness, length = rng.uniform((1.05, 1.3), (1.2, 2.2))  # of the hair
    eye_x, eye_y, eye, opening = rng.uniform(
        (0.38, -0.2, 0.17, 0.6), (0.46, 0, 0.24, 1)
    )
    width, drop, nose_y = rng.uniform((1.6, 1.7, 0.35), (2.2, 2.1, 0.5))
    nose = np.array([1.4 * turn, eye_y + nose_y])
    eyes = BOTH_SIDES * (eye_x, eye_y) + (turn, 0)
    ears = BOTH_SIDES * (1.05, eye_y + 0.1)
    shoulders = BOTH_SIDES * (width - 0.2, drop + 0.05)

    side = [(0.35, 1.5), (width - 0.3, drop - 0.2), (width, drop), (width + 0.3, 9)]
    hairline = np.hstack([-ACROSS, fringe - parting * ACROSS + 0.3 * ACROSS**2])
    lips, bulge = ACROSS * (0.35, 0), (1 - ACROSS**2) * (0, 0.09)
    smiling = lips - ACROSS**2 * (0, smile)
    mouth = np.vstack([smiling - bulge, (smiling + bulge)[::-1]])
    skin, hair, iris = (
        rng.dirichlet((0.5, 0.5, 0.5)) @ tones for tones in (SKINS, HAIRS, IRISES)
    )
    clothes = np.vstack([side, side[::-1] * BOTH_SIDES[1]])
    parts = [
        (head, disc((0, length - 1.45), thickness, length), hair),
        (body, np.array([(-0.42, 0), (0.42, 0), (0.5, 1.6), (-0.5, 1.6)]), 0.75 * skin),
        (body, clothes, draw_palette(rng)[0]),
        *((head, disc(at, 0.17, 0.28), 0.85 * skin) for at in ears),
        (head, disc((0, 0), 1, chin), skin),
        (head, np.vstack([TOP_OF_DISC * (1.04, chin + 0.05), hairline]), hair),
        *((head, disc(at, eye, eye * opening), EYE_WHITE) for at in eyes),
        *((head, disc(at, 0.65 * eye, 0.65 * eye), iris) for at in eyes),
        *((head, disc(at, 0.35 * eye, 0.35 * eye), PUPIL) for at in eyes),
        *((head, disc(at - (0, 0.4), 0.25, 0.05), 0.6 * hair) for at in eyes),
        (head, disc(nose, 0.13, 0.15), 0.7 * skin),
        (head, mouth + nose + (0, 0.45), LIPS * skin),
    ]
    frames, outlines, colours = zip(*parts, strict=True)
    frames, owners = np.stack(frames), np.arange(len(parts))
    textures = np.where(owners == 2, rng.choice([PLAIN, PLAIN, STRIPES, CHECKS]), PLAIN)
    periods = rng.uniform(2, 5, (len(parts), 2))
    placed = list(map(place, frames, outlines))
    face = make_surfaces(rng, placed, frames, textures, periods, owners)
    face.colours[0] = np.stack(colours, -1)
    face.light[:] = np.array([[rng.normal(0, 0.08)], [0], [0], [1], [0.05]])
    image = render(rng, size, behind.below(face), rng.uniform(0.004, 0.01))
    points = place(head, np.vstack([nose, eyes, ears])), place(body, shoulders)
    return image, size * np.vstack(points)


SCENE_FAMILIES: dict[str, Callable] = {
    "leaves": draw_leaves,
    "shapes": draw_shapes,
    "grids": draw_grids,
}
