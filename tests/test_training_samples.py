"""What a run is watched by: its figures, and an example to try on."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from migan_jax.data.held_out import HeldOut
from migan_jax.errors import UserError
from migan_jax.metrics import evaluator
from migan_jax.metrics.evaluator import Eyes
from migan_jax.metrics.fills import mean_colour
from migan_jax.metrics.image import image_metrics
from migan_jax.training import eyes
from migan_jax.training.eyes import open_common_eyes
from migan_jax.training.samples import SHOWN, Samples, score_of

RNG = np.random.default_rng(0)
# A batch, and three more.
IMAGES = RNG.integers(0, 256, (11, 8, 8, 3), np.uint8)
MASKS = RNG.integers(0, 2, (11, 8, 8, 1), np.uint8)
NO_EYES = Eyes()


class Perfect:
    """A system that sees through holes."""

    def inpaint(self, params, stats, image, mask, key):
        return image


class Blind(Perfect):
    """One that has a colour of its own for all holes."""

    def inpaint(self, params, stats, image, mask, key):
        return jnp.where(mask == 0, params["colour"], image)


class State:
    step, stats = 7, {}

    def __init__(self, **ema):
        self.ema = {name: jnp.asarray(value) for name, value in ema.items()}


def samples_of(system, looking=NO_EYES):
    return Samples(system, HeldOut(IMAGES, MASKS), None, looking, seed=0)


def test_figures():
    figures, grid = samples_of(Perfect()).evaluate(State())
    assert figures["hole_l1"] == 0 and figures["hole_psnr"] > 60
    holes = MASKS[..., 0] == 0
    blank = image_metrics(IMAGES, mean_colour(IMAGES, holes), holes)
    expected = blank["hole_psnr"].mean()
    assert figures["mean_colour_psnr"] == pytest.approx(expected, rel=1e-9)
    assert grid.height > SHOWN * 128  # input, completion and truth of the first


def test_figures_are_those_of_the_evaluator():
    figures, _ = samples_of(Blind()).evaluate(State(colour=1.0))
    holes = MASKS[..., 0] == 0
    white = np.where(holes[..., None], np.uint8(255), IMAGES)
    seen = image_metrics(IMAGES, white, holes)
    for name in ("psnr", "hole_psnr", "l1", "hole_l1"):
        np.testing.assert_allclose(figures[name], seen[name].mean(), rtol=1e-9)
    assert "ssim" not in figures  # which so small pictures have none of


def test_a_completion_that_is_no_number_has_no_figures():
    figures, _ = samples_of(Blind()).evaluate(State(colour=np.nan))
    assert figures and not any(np.isfinite(value) for value in figures.values())


def test_a_network_that_looks(monkeypatch):
    """FID and KID of pictures that are the same, and of some that are not."""

    def features(variables, pictures):
        return pictures.reshape(len(pictures), -1) @ variables

    monkeypatch.setattr(evaluator, "inception_features", features)
    mix = RNG.normal(size=(8 * 8 * 3, 4)).astype(np.float32)
    looking = Eyes(inception=mix)
    same, _ = samples_of(Perfect(), looking).evaluate(State())
    other, _ = samples_of(Blind(), looking).evaluate(State(colour=1.0))
    assert abs(same["fid_11"]) < 1e-3 * other["fid_11"]
    assert same["kid"] < 0 < other["kid"]
    assert score_of("fid", 11).of(same) > score_of("fid", 11).of(other)
    assert score_of("ssim", 11).of({"ssim": 0.9}) > score_of("ssim", 11).of({})


def test_weights_that_the_score_needs(monkeypatch):
    absent = {"fid": "inception.pth was not found.", "lpips_vgg": "nor vgg.pth."}
    monkeypatch.setattr(eyes, "open_eyes", lambda: (NO_EYES, absent))
    assert open_common_eyes("hole_psnr") is NO_EYES
    with pytest.raises(UserError, match=r"best_by is fid, but inception\.pth was not"):
        open_common_eyes("fid")


def test_an_example_to_try_on(tmp_path):
    (tmp_path / "samples").mkdir()
    paths = samples_of(Perfect()).save_example(tmp_path)
    picture, mask = (np.asarray(Image.open(p)) for p in paths)
    np.testing.assert_array_equal(picture, IMAGES[0])
    np.testing.assert_array_equal(mask == 255, MASKS[0, ..., 0] == 0)
