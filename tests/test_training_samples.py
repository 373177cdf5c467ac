"""What a run is watched by: its figures, and an example to try on."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from migan_jax.data.held_out import HeldOut
from migan_jax.systems.base import hole_psnr
from migan_jax.training.samples import Samples, with_mean_colour

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 8, 8, 3), np.uint8)
MASKS = RNG.integers(0, 2, (3, 8, 8, 1), np.uint8)


def test_holes_of_the_mean_colour():
    image = np.zeros((1, 2, 2, 3), np.float32)
    image[0, 0, 0], image[0, 0, 1] = (1, 0, -1), (0, 0.5, -1)
    mask = np.array([[[[1], [1]], [[0], [0]]]], np.float32)
    filled = with_mean_colour(jnp.asarray(image), jnp.asarray(mask))
    np.testing.assert_array_equal(filled[0, 0], image[0, 0])
    np.testing.assert_allclose(filled[0, 1], [[0.5, 0.25, -1]] * 2)
    nothing_known = with_mean_colour(jnp.asarray(image), jnp.zeros((1, 2, 2, 1)))
    assert np.all(np.asarray(nothing_known) == 0)


class Perfect:
    """A system that sees through holes."""

    def inpaint(self, params, stats, image, mask, key):
        return image


class State:
    ema, stats = {}, {}


@pytest.fixture
def samples():
    return Samples(Perfect(), HeldOut(IMAGES, MASKS), None, seed=0)


def test_figures(samples):
    figures, grid = samples.evaluate(State())
    assert figures["eval/hole_psnr"] == pytest.approx(100)
    images = jnp.asarray(IMAGES, jnp.float32) / 127.5 - 1
    masks = jnp.asarray(MASKS, jnp.float32)
    expected = hole_psnr(images, with_mean_colour(images, masks), masks)
    assert figures["eval/mean_colour_psnr"] == pytest.approx(float(expected), rel=1e-5)
    assert grid.height > 3 * 128  # input, completion and truth of three pictures


def test_an_example_to_try_on(samples, tmp_path):
    (tmp_path / "samples").mkdir()
    picture, mask = (np.asarray(Image.open(p)) for p in samples.save_example(tmp_path))
    np.testing.assert_array_equal(picture, IMAGES[0])
    np.testing.assert_array_equal(mask == 255, MASKS[0, ..., 0] == 0)
