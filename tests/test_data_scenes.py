"""Drawn scenes: a picture for each seed, and the statistics of photographs."""

import functools
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from migan_jax.data.scenes import FAMILIES, draw_scene
from migan_jax.data.surfaces import comb
from migan_jax.errors import UserError

COUNT, SIZE = 64, 64

families = pytest.mark.parametrize("family", FAMILIES)


def scene(seed, family, size=SIZE):
    return draw_scene(np.random.default_rng(seed), size, family)


@functools.cache
def scenes(family):
    return np.stack([scene(seed, family) for seed in range(COUNT)])


def greys(family):
    return scenes(family).astype(np.float64).mean(-1)


def correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def power_slope(pictures):
    """Of log power over log frequency, [N, size, size]."""
    size = pictures.shape[-1]
    window = np.hanning(size)[:, None] * np.hanning(size)
    waves = np.fft.fft2((pictures - pictures.mean((1, 2), keepdims=True)) * window)
    power = (np.abs(waves) ** 2).mean(0).ravel()
    frequency = np.fft.fftfreq(size, 1 / size)
    ring = np.rint(np.hypot(frequency[:, None], frequency)).astype(int).ravel()
    power = np.bincount(ring, power) / np.bincount(ring)
    used = np.arange(2, size // 2)
    return np.polyfit(np.log(used), np.log(power[used]), 1)[0]


@families
@pytest.mark.parametrize("size", (16, 17, 64, 100))
def test_a_scene_is_a_picture_of_any_size(family, size):
    picture = scene(1, family, size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8
    assert picture.flags.c_contiguous and picture.std() > 10


@families
def test_a_seed_is_a_scene(family):
    first, again, other = (scene(seed, family) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 10


def test_a_seed_is_a_scene_in_another_process():
    program = (
        "import hashlib, numpy; from migan_jax.data.scenes import *;"
        "rng = numpy.random.default_rng(0);"
        "pictures = [draw_scene(rng, 32, family).tobytes() for family in FAMILIES];"
        "print(hashlib.sha256(b''.join(pictures)).hexdigest())"
    )
    rng = np.random.default_rng(0)
    pictures = [draw_scene(rng, 32, family).tobytes() for family in FAMILIES]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True)
    expected = hashlib.sha256(b"".join(pictures)).hexdigest()
    assert run.stdout.decode().strip() == expected, run.stderr.decode()


def test_a_scene_may_be_one_surface():
    """Seen from so near that nothing else is: no pixel is mixed."""
    assert scene((0, 4331), None).std() > 5


def test_a_generator_draws_one_scene_after_another():
    rng = np.random.default_rng(0)
    first, second = (draw_scene(rng, SIZE, "leaves") for _ in range(2))
    assert correlation(first, second) < 0.5


@families
def test_the_composition_does_not_depend_on_the_size(family):
    for seed in range(8):
        fine = Image.fromarray(scene(seed, family, 256))
        reduced = np.asarray(fine.resize((SIZE, SIZE), Image.Resampling.BOX))
        assert correlation(reduced, scene(seed, family)) > 0.9, seed


def test_without_a_family_each_has_its_chance(monkeypatch):
    for name in FAMILIES:
        monkeypatch.setitem(FAMILIES, name, lambda rng, size, name=name: name)
    rng = np.random.default_rng(0)
    drawn = [draw_scene(rng, SIZE) for _ in range(300)]
    for name in FAMILIES:
        assert abs(drawn.count(name) - 300 / len(FAMILIES)) < 30, name


def test_families_differ():
    assert {"leaves", "shapes", "grids"} <= set(FAMILIES)
    edges = {name: np.abs(np.diff(greys(name))).mean() for name in FAMILIES}
    assert edges["leaves"] > 1.3 * edges["shapes"]
    # Only grids have an up and a down: more edges along them than by chance.
    upright = {
        name: np.abs(np.diff(greys(name), axis=2)).mean()
        / np.abs(np.diff(greys(name), axis=1)).mean()
        for name in FAMILIES
    }
    assert upright["grids"] > 1.1
    assert all(0.9 < upright[name] < 1.1 for name in ("leaves", "shapes"))


def test_an_unknown_family():
    with pytest.raises(UserError, match=r"^[^.]*'cats'[^.]*leaves, shapes, grids\.$"):
        scene(0, "cats")


@families
def test_the_power_falls_as_in_photographs(family):
    assert -3.3 < power_slope(greys(family)) < -2
    slopes = [power_slope(picture[None]) for picture in greys(family)]
    assert -3.5 < min(slopes) and max(slopes) < -1.4


@families
def test_colours_are_those_of_photographs(family):
    pictures = scenes(family).astype(np.float64)
    means = pictures.mean((1, 2))
    assert np.all((90 < means.mean(0)) & (means.mean(0) < 160))
    assert np.all(means.std(0) > 12), "scenes are alike"
    assert np.all(pictures.std((1, 2)).mean(0) > 35), "scenes are flat"
    dark, bright = np.percentile(pictures, (1, 99))
    assert dark < 30 and bright > 230
    assert (pictures == 255).mean() < 0.05
    saturation = 1 - pictures.min(-1) / np.maximum(pictures.max(-1), 1)
    assert 0.15 < saturation.mean() < 0.4


@families
def test_a_hole_is_a_task(family):
    """The mean of what is known does not fill it, yet neighbours tell a pixel."""
    pictures = scenes(family).astype(np.float64)
    hole = np.zeros((SIZE, SIZE), np.bool_)
    hole[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4] = True
    mean = pictures[:, ~hole].mean(1, keepdims=True)
    error = ((pictures[:, hole] - mean) ** 2).mean((1, 2))
    assert (10 * np.log10(255**2 / error)).mean() < 18
    for shifted in (greys(family)[:, 1:], greys(family)[:, :, 1:]):
        kept = greys(family)[:, : shifted.shape[1], : shifted.shape[2]]
        pairs = zip(kept, shifted, strict=True)
        assert np.mean([correlation(*pair) for pair in pairs]) > 0.8


def test_combs_are_averages():
    """Against a mean of many points in each interval."""
    rng = np.random.default_rng(0)
    at, width, fill = rng.uniform((-5, 0.01, 0.1), (5, 3, 0.9), (50, 3)).T
    inside = at + width * (np.arange(20000)[:, None] / 20000 - 0.5)
    expected = (inside % 1 < fill).mean(0)
    np.testing.assert_allclose(comb(at, width, fill), expected, atol=1e-3)
