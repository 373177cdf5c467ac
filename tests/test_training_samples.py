"""What a run is watched by: its figures, and an example to try on."""

import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from migan_jax.data.held_out import HeldOut
from migan_jax.data.sheets import GAP, LABEL_HEIGHT
from migan_jax.errors import UserError
from migan_jax.metrics import evaluator
from migan_jax.metrics.evaluator import Eyes
from migan_jax.metrics.fills import mean_colour
from migan_jax.metrics.image import image_metrics
from migan_jax.metrics.table import Table
from migan_jax.training import processes
from migan_jax.training.eyes import open_common_eyes
from migan_jax.training.samples import (
    SHOWN,
    Beginning,
    Samples,
    everyones,
    score_of,
)
from migan_jax.weights.feature_networks import FILES, FOLDER

RNG = np.random.default_rng(0)
# A batch, and three more.
IMAGES = RNG.integers(0, 256, (11, 8, 8, 3), np.uint8)
MASKS = RNG.integers(0, 2, (11, 8, 8, 1), np.uint8)
NO_EYES = Eyes()


class Perfect:
    """A system that sees through holes."""

    def inpaint(self, params, stats, image, mask, key):
        return image

    def references(self, frozen, image, mask, key):
        return {name: image * 0 + colour for name, colour in frozen.items()}


class Blind(Perfect):
    """One that has a colour of its own for all holes."""

    def inpaint(self, params, stats, image, mask, key):
        return jnp.where(mask == 0, params["colour"], image)


class State:
    step, stats, params = 7, {}, {}

    def __init__(self, **ema):
        self.ema = {name: jnp.asarray(value) for name, value in ema.items()}


def samples_of(system, looking=NO_EYES):
    nothing = Beginning(Path("nowhere"), is_new=False, is_shown=False)
    return samples_with(nothing, system, looking)


def samples_with(beginning, system, looking=NO_EYES, frozen=None):
    held_out = HeldOut(IMAGES, MASKS)
    return Samples(system, held_out, frozen or {}, looking, 0, beginning)


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
    assert figures.pop("mean_colour_psnr") > 0
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
    for name in ("fid", "kid"):
        score = score_of(name, len(IMAGES))
        assert score.of(same) > score.of(other) > score.of({})
    assert score_of("ssim", 0).of({"ssim": 0.9}) > score_of("ssim", 0).of({})
    with pytest.raises(UserError, match="which 0 held-out pictures have not"):
        score_of("kid", 0)


def test_processes_share_what_all_have_seen(monkeypatch):
    """Two of three have done the first batch, and none knows of the others' rows."""
    rng = np.random.default_rng(0)
    figures = {"psnr": rng.normal(20, 3, 11), "l1": rng.random(11) / 3}
    features = rng.normal(size=(2, 11, 5)).astype(np.float32)
    ratios = rng.random(11)

    def table(rows):
        names = tuple(str(number) for number in range(11)[rows])
        seen = {name: values[rows] for name, values in figures.items()}
        return Table(names, ratios[rows], seen, *features[:, rows])

    parts = [table(slice(8)), table(slice(8, 11)), table(slice(8))]
    sent = []
    monkeypatch.setattr(processes, "together", lambda rows, name: sent.append(rows))
    for part in parts:
        with pytest.raises(TypeError):
            everyones(part, "step 1")
    rows = np.concatenate(sent[::-1])
    monkeypatch.setattr(processes, "together", lambda *_: rows)
    for part in parts:
        whole = everyones(part, "step 1")
        assert whole.names == table(slice(11)).names
        for name, values in figures.items():
            np.testing.assert_array_equal(whole.figures[name], values)
        np.testing.assert_array_equal([whole.real, whole.fake], features)
        np.testing.assert_array_equal(whole.ratios, ratios)


def test_weights_that_the_score_needs(caplog):
    """Of others that are missing nothing is said."""
    caplog.set_level(0)
    assert open_common_eyes("hole_psnr") == NO_EYES and not caplog.records
    with pytest.raises(
        UserError, match=r"best_by is fid, but pt_inception.* not found"
    ):
        open_common_eyes("fid")


def test_weights_that_cannot_be_read(monkeypatch, tmp_path):
    """As by an installation without PyTorch: a run does without them."""
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    file = FILES["inception"]._replace(size=len(content), sha256=digest)
    monkeypatch.setitem(FILES, "inception", file)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / "inception.safetensors").write_bytes(content)
    assert open_common_eyes("hole_psnr") == NO_EYES
    with pytest.raises(
        UserError, match=r"best_by is kid, but .*inception\.safetensors"
    ):
        open_common_eyes("kid")


def test_a_column_of_what_the_run_began_with(tmp_path):
    """It stays what it was, also for a run that goes on; another run has its own."""
    (tmp_path / "samples").mkdir()

    def grid(beginning, colour):
        samples = samples_with(beginning, Blind())
        return np.asarray(samples.evaluate(State(colour=colour))[1])

    first = Beginning(tmp_path, is_new=True, is_shown=True)
    begun, later = grid(first, 1.0), grid(first, -1.0)
    side = (begun.shape[1] - 3 * GAP) // 4  # input, completion, beginning, truth

    def column(sheet, number):
        start = number * (side + GAP)
        return sheet[LABEL_HEIGHT : LABEL_HEIGHT + side, start : start + side]

    assert np.array_equal(column(begun, 1), column(begun, 2))
    assert np.array_equal(column(later, 2), column(begun, 2))
    assert not np.array_equal(column(later, 1), column(later, 2))
    resumed = Beginning(tmp_path, is_new=False, is_shown=False)
    assert np.array_equal(grid(resumed, -1.0), later)
    (tmp_path / "samples" / "beginning.png").write_bytes(b"damaged")
    damaged = Beginning(tmp_path, is_new=False, is_shown=False)
    assert grid(damaged, -1.0).shape[1] < later.shape[1]
    grid(Beginning(tmp_path, is_new=True, is_shown=False), 1.0)
    assert not (tmp_path / "samples" / "beginning.png").exists()


def test_a_column_of_each_reference():
    nothing = Beginning(Path("nowhere"), is_new=False, is_shown=False)
    samples = samples_with(nothing, Perfect(), frozen={"teacher": jnp.ones(())})
    _, grid = samples.evaluate(State())
    side = (grid.width - 3 * GAP) // 4  # input, completion, reference, truth
    column = np.asarray(grid)[LABEL_HEIGHT:][:side, 2 * (side + GAP) :][:, :side]
    assert (column == 255).all()


def test_a_run_without_an_average_shows_its_parameters():
    state = State()
    state.params = {"colour": jnp.float32(1.0)}
    with_average, _ = samples_of(Blind()).evaluate(State(colour=1.0))
    without, _ = samples_of(Blind()).evaluate(state)
    assert without == with_average


def test_an_example_to_try_on(tmp_path):
    (tmp_path / "samples").mkdir()
    paths = samples_of(Perfect()).save_example(tmp_path)
    picture, mask = (np.asarray(Image.open(p)) for p in paths)
    np.testing.assert_array_equal(picture, IMAGES[0])
    np.testing.assert_array_equal(mask == 255, MASKS[0, ..., 0] == 0)
