"""Drawn scenes: reproducible, with the statistics of photos."""

import functools
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from migan_jax.data.scenes import SCENE_FAMILIES, draw_scene
from migan_jax.data.surfaces import comb
from migan_jax.errors import UserError

COUNT, SIZE = 64, 64

families = pytest.mark.parametrize("family", SCENE_FAMILIES)


def scene(seed, family, size=SIZE):
    return draw_scene(np.random.default_rng(seed), size, family)


@functools.cache
def scenes(family):
    return np.stack([scene(seed, family) for seed in range(COUNT)])


def greys(family):
    return scenes(family).astype(np.float64).mean(-1)


def correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def power_slope(images):
    """Return the slope of log power over log frequency of images [N, size, size]."""
    size = images.shape[-1]
    window = np.hanning(size)[:, None] * np.hanning(size)
    waves = np.fft.fft2((images - images.mean((1, 2), keepdims=True)) * window)
    power = (np.abs(waves) ** 2).mean(0).ravel()
    frequency = np.fft.fftfreq(size, 1 / size)
    ring = np.rint(np.hypot(frequency[:, None], frequency)).astype(int).ravel()
    power = np.bincount(ring, power) / np.bincount(ring)
    used = np.arange(2, size // 2)
    return np.polyfit(np.log(used), np.log(power[used]), 1)[0]


@families
@pytest.mark.parametrize("size", (16, 17, 64, 100))
def test_scenes_have_any_size(family, size):
    image = scene(1, family, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert image.flags.c_contiguous and image.std() > 10


@families
def test_scene_depends_on_the_seed(family):
    first, again, other = (scene(seed, family) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 10


def test_scene_is_the_same_in_another_process():
    program = (
        "import hashlib, numpy; from migan_jax.data.scenes import *;"
        "rng = numpy.random.default_rng(0);"
        "images = [draw_scene(rng, 32, name).tobytes() for name in SCENE_FAMILIES];"
        "print(hashlib.sha256(b''.join(images)).hexdigest())"
    )
    rng = np.random.default_rng(0)
    images = [draw_scene(rng, 32, name).tobytes() for name in SCENE_FAMILIES]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True)
    expected = hashlib.sha256(b"".join(images)).hexdigest()
    assert run.stdout.decode().strip() == expected, run.stderr.decode()


def test_scene_of_one_surface():
    """The camera is so near that nothing else is visible: no pixel is mixed."""
    assert scene((0, 4331), None).std() > 5


def test_generator_draws_different_scenes():
    rng = np.random.default_rng(0)
    first, second = (draw_scene(rng, SIZE, "leaves") for _ in range(2))
    assert correlation(first, second) < 0.5


@families
def test_composition_does_not_depend_on_the_size(family):
    for seed in range(8):
        fine = Image.fromarray(scene(seed, family, 256))
        reduced = np.asarray(fine.resize((SIZE, SIZE), Image.Resampling.BOX))
        assert correlation(reduced, scene(seed, family)) > 0.9, seed


def test_random_family_is_uniform(monkeypatch):
    for name in SCENE_FAMILIES:
        monkeypatch.setitem(SCENE_FAMILIES, name, lambda rng, size, name=name: name)
    rng = np.random.default_rng(0)
    drawn = [draw_scene(rng, SIZE) for _ in range(300)]
    for name in SCENE_FAMILIES:
        assert abs(drawn.count(name) - 300 / len(SCENE_FAMILIES)) < 30, name


def test_families_differ():
    assert {"leaves", "shapes", "grids"} <= set(SCENE_FAMILIES)
    edges = {name: np.abs(np.diff(greys(name))).mean() for name in SCENE_FAMILIES}
    assert edges["leaves"] > 1.3 * edges["shapes"]
    # Only grids are oriented: they have more vertical than horizontal edges.
    upright = {
        name: np.abs(np.diff(greys(name), axis=2)).mean()
        / np.abs(np.diff(greys(name), axis=1)).mean()
        for name in SCENE_FAMILIES
    }
    assert upright["grids"] > 1.1
    assert all(0.9 < upright[name] < 1.1 for name in ("leaves", "shapes"))


def test_unknown_family():
    with pytest.raises(UserError, match=r"'cats'.*leaves, shapes, grids"):
        scene(0, "cats")


@families
def test_power_falls_as_in_photos(family):
    assert -3.3 < power_slope(greys(family)) < -2
    slopes = [power_slope(image[None]) for image in greys(family)]
    assert -3.5 < min(slopes) and max(slopes) < -1.4


@families
def test_colours_are_those_of_photos(family):
    images = scenes(family).astype(np.float64)
    means = images.mean((1, 2))
    assert np.all((90 < means.mean(0)) & (means.mean(0) < 160))
    assert np.all(means.std(0) > 12), "scenes are alike"
    assert np.all(images.std((1, 2)).mean(0) > 35), "scenes are flat"
    dark, bright = np.percentile(images, (1, 99))
    assert dark < 30 and bright > 230
    assert (images == 255).mean() < 0.05
    saturation = 1 - images.min(-1) / np.maximum(images.max(-1), 1)
    assert 0.15 < saturation.mean() < 0.4


@families
def test_filling_a_hole_is_possible_but_not_trivial(family):
    """The known pixels' mean does not fill it, but neighbours predict a pixel."""
    images = scenes(family).astype(np.float64)
    hole = np.zeros((SIZE, SIZE), np.bool_)
    hole[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4] = True
    mean = images[:, ~hole].mean(1, keepdims=True)
    error = ((images[:, hole] - mean) ** 2).mean((1, 2))
    assert (10 * np.log10(255**2 / error)).mean() < 18
    for shifted in (greys(family)[:, 1:], greys(family)[:, :, 1:]):
        kept = greys(family)[:, : shifted.shape[1], : shifted.shape[2]]
        pairs = zip(kept, shifted, strict=True)
        assert np.mean([correlation(*pair) for pair in pairs]) > 0.8


def test_comb_is_the_mean_over_its_interval():
    """Compare with the mean of many points in each interval."""
    rng = np.random.default_rng(0)
    at, width, fill = rng.uniform((-5, 0.01, 0.1), (5, 3, 0.9), (50, 3)).T
    inside = at + width * (np.arange(20000)[:, None] / 20000 - 0.5)
    expected = (inside % 1 < fill).mean(0)
    np.testing.assert_allclose(comb(at, width, fill), expected, atol=1e-3)
