"""Keypoints: read from files, cropped, flipped and sent with their images."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from photo_folders import make_zip, open_small, photo_folder, save
from PIL import Image

from migan_jax.config import base_config
from migan_jax.data.examples import CropSettings
from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.data.pipeline import Loader, make_loader
from migan_jax.data.points import read_points
from migan_jax.data.rejects import Rejects
from migan_jax.data.scenes import draw_face
from migan_jax.data.shards import ShardOptions, ShardWriter
from migan_jax.data.splits import load_held_out, open_splits
from migan_jax.data.transforms import flip, flip_points, sample_keys
from migan_jax.errors import UserError
from migan_jax.systems.images import prepare
from migan_jax.training.mesh import put_images
from migan_jax.training.setup import check_settings

RNG = np.random.default_rng(0)
FACES = "scenes:faces"


@pytest.fixture
def points(photos):
    """Draw two points for each of the photos, by name."""
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    return {name: RNG.uniform(0, 40, (2, 2)).tolist() for name in names}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def write_npy(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content)
    return str(path)


def refused(location, names=("1.png", "2.png")):
    with pytest.raises(UserError) as caught:
        read_points(location, names)
    message = str(caught.value)
    assert "\n" not in message and str(location) in message
    return message


# Reading.


def test_all_forms_give_the_same_points(photos, points, tmp_path):
    without = {name.removesuffix(".png"): value for name, value in points.items()}
    for number, (name, value) in enumerate(without.items()):
        (write_json if number % 2 else write_npy)(
            tmp_path / "folder" / f"{name}{('.npy', '.json')[number % 2]}", value
        )
        write_json(photos / f"{name}.json", value)
    locations = [
        write_json(tmp_path / "full.json", points),
        write_json(tmp_path / "short.json", without),
        write_npy(tmp_path / "all.npy", list(points.values())),
        str(tmp_path / "folder"),
        str(photos),
    ]
    expected = np.array(list(points.values()), np.float32)
    for location in locations:
        source = open_small(photos, points=location)
        assert source.points == 2 and len(source) == 12
        found = np.stack([source.encoded(i).points for i in range(12)])
        assert found.dtype == np.float32 and np.array_equal(found, expected), location
    zipped = open_small(make_zip(photos, tmp_path / "a.zip"), points=locations[0])
    assert np.array_equal(zipped.encoded(3).points, expected[3])


def test_shards_take_points_by_name(photos, points, tmp_path):
    small = open_small(photos)
    writer = ShardWriter(small, tmp_path / "out", ShardOptions(None, 1))
    writer.run(Rejects(small, 0, None), 1, lambda count: None)
    location = write_json(tmp_path / "points.json", points)
    source = open_small(tmp_path / "out", points=location)
    for index in range(len(source)):
        expected = np.float32(points[source.name(index)])
        assert np.array_equal(source.encoded(index).points, expected)


def test_rows_of_an_array_are_in_the_order_of_numbers(tmp_path):
    """As in FDF, whose names have no leading zeros."""
    array = np.arange(24.0).reshape(12, 1, 2)
    write_npy(tmp_path / "points.npy", array)
    names = sorted(f"{number}.png" for number in range(12))
    found = read_points(tmp_path / "points.npy", names)
    assert names[2] == "10.png" and np.array_equal(found[2], array[10])
    names = sorted(f"a{number}.png" for number in range(12))
    assert np.array_equal(read_points(tmp_path / "points.npy", names), array)


def test_points_belong_to_the_fingerprint(photos, points, tmp_path):
    def digest(content):
        location = write_json(tmp_path / "points.json", content)
        return open_small(photos, points=location).fingerprint.digest

    moved = {**points, "01.png": [[1, 2], [3, 4]]}
    digests = digest(points), digest(moved), open_small(photos).fingerprint.digest
    assert len(set(digests)) == 3 and digest(points) == digests[0]
    scenes = [open_small(FACES, points=p).fingerprint.digest for p in (None, "scenes")]
    assert scenes[0] != scenes[1]


@pytest.mark.parametrize(
    "content, part",
    [
        ({"1.png": [[1, 2]]}, "1 of 2 images, such as 2.png"),
        ({}, "2 of 2 images, such as 1.png"),
        ({"1": [[1, 2]], "2": [[1, 2], [3, 4]]}, "1 keypoints for 1.png, but 2 for 2"),
        ({"1": [[1, 2]], "2": [["3", 4]]}, "of 2.png must be finite numbers"),
        ({"1": [[1, float("nan")]], "2": [[1, 2]]}, "of 1.png must be finite"),
        ({"1": [[1, 1e200]], "2": [[1, 2]]}, "of 1.png must be finite"),
        ({"1": [[1.5, 10**400]], "2": [[1, 2]]}, "of 1.png must be finite"),
        ({"1": [[1, True]], "2": [[True, False]]}, "of 2.png must be finite"),
        ({"1": [[1, 2], [3]], "2": [[1, 2]]}, "of 1.png must be finite"),
        ({"1": [], "2": []}, "of 1.png must be finite"),
        ({"1": [1, 2], "2": [1, 2]}, "of 1.png must be finite"),
        ({"1": [[0.5, 0.2]], "2": [[0.3, 0.4]]}, "Multiply x by the image's width"),
        ([[1, 2]], "must hold"),
    ],
)
def test_unusable_json(content, part, tmp_path):
    write_json(tmp_path / "points.json", content)
    assert part in refused(tmp_path / "points.json")


def test_unusable_files(tmp_path):
    for name in ("a.json", "a.npy"):
        assert "No such file" in refused(tmp_path / name)
        (tmp_path / name).write_bytes(b"\x93NUMPY no")
        assert "damaged" in refused(tmp_path / name)
    for name in ("nowhere", "a.txt"):
        assert "not a .json file, a .npy file or a folder" in refused(tmp_path / name)
    assert "2 of 2 images, such as 1.png" in refused(tmp_path)
    for shape in ((3, 1, 2), (2, 14)):
        write_npy(tmp_path / "b.npy", np.ones(shape))
        message = refused(tmp_path / "b.npy")
        assert str(list(shape)) in message and "[2, K, 2]" in message
    write_npy(tmp_path / "b.npy", np.full((2, 1, 3), 9.0))
    assert "of 1.png must be" in refused(tmp_path / "b.npy")
    with pytest.raises(UserError, match="bucket"):
        open_small(tmp_path, points="gs://bucket/points.json")


class Harmful:
    def __reduce__(self):
        return pytest.fail, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path):
    write_npy(tmp_path / "points.npy", np.array([Harmful()] * 2, object))
    assert "allow_pickle=False" in refused(tmp_path / "points.npy")


def test_only_faces_have_points():
    for source in ("scenes", "scenes:grids"):
        with pytest.raises(UserError, match=f"{source} has no keypoints.*{FACES}"):
            open_small(source, points="scenes")
    assert open_small(FACES)[0].points is None


# Cropping and flipping.


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["square", "whole", "native"])
def test_points_are_cropped_with_their_image(kind, orientation, tmp_path):
    """A bright dot stays at its point, also in JPEGs that viewers rotate."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    dots, side = np.array([[150, 90], [230, 170]]), 96
    points = {f"{number}": [dot.tolist()] for number, dot in enumerate(dots)}
    turn = {  # from the upright image to the stored one
        3: Image.Transpose.ROTATE_180,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for number, (x, y) in enumerate(dots):
        upright = np.zeros((300, 400, 3), np.uint8)
        upright[y - 6 : y + 6, x - 6 : x + 6] = 255
        image = Image.fromarray(upright)
        if orientation > 1:
            image = image.transpose(turn[orientation])
        save(tmp_path, f"{number}.jpg", np.asarray(image), exif=exif, quality=95)
    location = write_json(tmp_path / "points.json", points)
    source = open_small(tmp_path, points=location)
    loader = Loader(source, CropSettings(side, kind, 0.4), 0, 40, range(40))
    batch, found = loader(0), 0
    assert batch["points"].shape == (40, 1, 2) and batch["points"].dtype == np.float32
    for image, ((x, y),) in zip(batch["image"], batch["points"], strict=True):
        if not (0.1 < x < 0.9 and 0.1 < y < 0.9):
            assert 0 <= x <= 1 and 0 <= y <= 1
            continue
        light = np.where(image.mean(-1) > 60, image.mean(-1), 0)
        for at, axis in ((x, 0), (y, 1)):
            middle = np.average(np.arange(side) + 0.5, weights=light.sum(axis))
            assert abs(middle - at * side) < 0.5
        found += 1
    assert found >= 2


def test_flips_move_points_with_their_image():
    keys = sample_keys(jax.random.key(0), 0, jnp.arange(64))
    image = jnp.zeros((64, 8, 8, 1)).at[:, 2, 1].set(1)
    three = jnp.tile(jnp.array([[1.5, 2.5], [4, 4], [8, 0]]) / 8, (64, 1, 1))
    (flipped,) = flip(keys, image)
    x, y = (8 * flip_points(keys, three)[:, 0]).T
    assert set(x.tolist()) == {1.5, 6.5} and set(y.tolist()) == {2.5}
    samples = np.arange(64)
    assert (flipped[samples, y.astype(int), x.astype(int), 0] == 1).all()


def test_left_and_right_of_flipped_faces_swap():
    face = np.linspace(0, 1, 14, dtype=np.float32).reshape(7, 2)
    mirrored = face[[0, 2, 1, 4, 3, 6, 5]] * [-1, 1] + [1, 0]
    image = np.tile(np.arange(8, dtype=np.uint8)[:, None], (64, 8, 1, 3))
    batch = {"image": image, "points": np.tile(face, (64, 1, 1))}
    prepared = jax.jit(prepare, static_argnums=2)(
        batch, jax.random.key(0), SAMPLERS["box"]
    )
    is_flipped = np.asarray(prepared["image"][:, 0, 0, 0] > -1)
    assert 16 < is_flipped.sum() < 48
    for points, flipped in zip(prepared["points"], is_flipped, strict=True):
        assert np.allclose(points, mirrored if flipped else face)


# Runs.


def make_config(**data):
    config = base_config()
    config.update({"resolution": 32, "batch_size": 4, "data": data})
    return config


def test_processes_load_the_same_points():
    config = make_config(source=FACES, points="scenes", crop_scale=0.5)
    source, held_out = open_splits(config)
    whole, *parts = (
        make_loader(config, source, rows)(3)
        for rows in (range(4), range(1), range(1, 4))
    )
    assert whole["points"].shape == (4, 7, 2)
    for name, array in whole.items():
        joined = np.concatenate([part[name] for part in parts])
        assert np.array_equal(array, joined), name
    held = load_held_out(held_out, config)
    assert held.points.shape == (8, 7, 2) and held.points.dtype == np.float32
    assert held_out.points == source.points == 7
    config.data.points = None
    source, held_out = open_splits(config)
    assert "points" not in make_loader(config, source)(3)
    assert load_held_out(held_out, config).points is None


def test_validation_images_have_points_of_their_own(photos, points, tmp_path):
    location = write_json(tmp_path / "points.json", points)
    others = photo_folder(tmp_path / "others", 2)
    config = make_config(source=str(photos), points=location, validation=str(others))
    with pytest.raises(UserError, match=r"0 keypoints.* 2: .*data\.validation_points"):
        open_splits(config)
    config.data.validation_points = write_json(
        tmp_path / "more.json", {"01": [[1, 1], [9, 9]], "sub/00": [[2, 2], [3, 3]]}
    )
    _, held_out = open_splits(config)
    held = load_held_out(held_out, config)
    assert held.points.shape == (2, 2, 2) and held.points[0, 1, 1] == np.float32(9 / 41)


def test_devices_get_the_points_of_their_images():
    batch = {
        "image": RNG.integers(0, 256, (4, 8, 8, 3), np.uint8),
        "points": RNG.random((4, 7, 2), np.float32),
    }
    grid = np.array(jax.devices()[:8]).reshape(2, 4)
    mesh = Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    arrays = put_images(batch, range(4), mesh, 4)
    for name, shape in (("image", (2, 2, 8, 3)), ("points", (2, 7, 2))):
        assert np.array_equal(arrays[name], batch[name])
        assert {s.data.shape for s in arrays[name].addressable_shards} == {shape}


def test_families_without_points_refuse_them():
    with pytest.raises(UserError, match=r"data\.points.*MI-GAN takes no keypoints"):
        check_settings(make_config(points="points.json"))


# Drawn faces.


def test_points_of_faces_are_where_they_are_drawn():
    """Pupils are black in the white; all parts but shoulders are in the image."""
    size = 128
    for seed in range(24):
        image, points = draw_face(np.random.default_rng(seed), size)
        assert points.shape == (7, 2) and points[:5].min() > 0 < size > points[:5].max()
        nose, left, right, left_ear, right_ear, left_shoulder, right_shoulder = points
        # The person's left is on the right.
        assert right_ear[0] < right[0] < left[0] < left_ear[0]
        assert right_shoulder[0] < nose[0] < left_shoulder[0]
        assert max(left[1], right[1]) < nose[1] < left_shoulder[1]

        def colour(point, image=image):
            x, y = point.round().astype(int)
            return image[y - 1 : y + 1, x - 1 : x + 1].mean((0, 1))

        between = colour((left + right) / 2)  # skin
        for eye, ear in ((left, left_ear), (right, right_ear)):
            assert colour(eye).mean() < 60 < np.abs(colour(eye) - between).max() + 30
            assert 0.4 < np.linalg.norm(ear - eye) / np.linalg.norm(left - right) < 1.3
        # The nose and the skin have the same hue.
        hues = [c / c.sum() for c in (colour(nose), between)]
        assert np.abs(hues[0] - hues[1]).max() < 0.06


def test_faces_differ_but_not_by_their_size():
    faces = [draw_face(np.random.default_rng(5), size) for size in (64, 256)]
    assert np.allclose(4 * faces[0][1], faces[1][1])
    reduced = Image.fromarray(faces[1][0]).resize((64, 64), Image.Resampling.BOX)
    difference = np.asarray(reduced, float) - faces[0][0]
    assert np.abs(difference).mean() < 8
    noses = np.stack([draw_face(np.random.default_rng(i), 64)[1][0] for i in range(50)])
    assert (noses.std(0) > 2).all()
