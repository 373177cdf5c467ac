"""Validation samples: metrics, grids, and the example for inpainting."""

import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from migan_jax.data.sheets import GAP, LABEL_HEIGHT
from migan_jax.data.splits import HeldOut
from migan_jax.errors import UserError
from migan_jax.metrics import evaluator
from migan_jax.metrics.evaluator import FeatureNetworks
from migan_jax.metrics.fills import mean_colour
from migan_jax.metrics.image import image_metrics
from migan_jax.metrics.table import Table
from migan_jax.training import processes
from migan_jax.training.feature_networks import open_shared_feature_networks
from migan_jax.training.samples import (
    GRID_ROWS,
    InitialCompletions,
    Samples,
    gather_table,
    make_score,
)
from migan_jax.weights.feature_networks import FILES, FOLDER_VARIABLE

RNG = np.random.default_rng(0)
# One batch and three more images.
IMAGES = RNG.integers(0, 256, (11, 8, 8, 3), np.uint8)
MASKS = RNG.integers(0, 2, (11, 8, 8, 1), np.uint8)
NO_NETWORKS = FeatureNetworks()


class Perfect:
    """A system that returns the truth."""

    def inpaint(self, params, stats, image, mask, key):
        return image

    def references(self, frozen, image, mask, key):
        return {name: image * 0 + colour for name, colour in frozen.items()}


class Uniform(Perfect):
    """A system that fills all holes with one colour."""

    def inpaint(self, params, stats, image, mask, key):
        return jnp.where(mask == 0, params["colour"], image)


class State:
    step, stats, params = 7, {}, {}

    def __init__(self, **ema):
        self.ema = {name: jnp.asarray(value) for name, value in ema.items()}


def make_samples(system, networks=NO_NETWORKS, frozen=None, initial=None):
    initial = initial or InitialCompletions(Path("nowhere"), False, False)
    held_out = HeldOut(IMAGES, MASKS)
    return Samples(system, held_out, frozen or {}, networks, 0, initial)


def test_metrics_of_perfect_completions():
    metrics, grid = make_samples(Perfect()).evaluate(State())
    assert metrics["hole_l1"] == 0 and metrics["hole_psnr"] > 60
    holes = MASKS[..., 0] == 0
    baseline = image_metrics(IMAGES, mean_colour(IMAGES, holes), holes)
    expected = baseline["hole_psnr"].mean()
    assert metrics["mean_colour_psnr"] == pytest.approx(expected, rel=1e-9)
    assert grid.height > GRID_ROWS * 128


def test_metrics_equal_the_evaluators():
    metrics, _ = make_samples(Uniform()).evaluate(State(colour=1.0))
    holes = MASKS[..., 0] == 0
    white = np.where(holes[..., None], np.uint8(255), IMAGES)
    expected = image_metrics(IMAGES, white, holes)
    for name in ("psnr", "hole_psnr", "l1", "hole_l1"):
        np.testing.assert_allclose(metrics[name], expected[name].mean(), rtol=1e-9)
    assert "ssim" not in metrics  # undefined for such small images


def test_metrics_of_non_finite_completions():
    metrics, _ = make_samples(Uniform()).evaluate(State(colour=np.nan))
    assert metrics.pop("mean_colour_psnr") > 0
    assert metrics and not any(np.isfinite(value) for value in metrics.values())


def test_fid_and_kid(monkeypatch):
    """Of completions that equal the images, and of others."""

    def features(variables, images):
        return images.reshape(len(images), -1) @ variables

    monkeypatch.setattr(evaluator, "inception_features", features)
    mix = RNG.normal(size=(8 * 8 * 3, 4)).astype(np.float32)
    networks = FeatureNetworks(inception=mix)
    same, _ = make_samples(Perfect(), networks).evaluate(State())
    other, _ = make_samples(Uniform(), networks).evaluate(State(colour=1.0))
    assert abs(same["fid_11"]) < 1e-3 * other["fid_11"]
    assert same["kid"] < 0 < other["kid"]
    for name in ("fid", "kid"):
        score = make_score(name, len(IMAGES))
        assert score.of(same) > score.of(other) > score.of({})
    ssim = make_score("ssim", 0)
    assert ssim.of({"ssim": 0.9}) > ssim.of({})
    with pytest.raises(UserError, match=r"best_by is kid.*data\.held_out"):
        make_score("kid", 0)


def test_processes_merge_their_tables(monkeypatch):
    """Two of three processes have measured the same batch."""
    rng = np.random.default_rng(0)
    metrics = {"psnr": rng.normal(20, 3, 11), "l1": rng.random(11) / 3}
    features = rng.normal(size=(2, 11, 5)).astype(np.float32)
    ratios = rng.random(11)

    def table(rows):
        names = tuple(str(index) for index in range(11)[rows])
        local = {name: values[rows] for name, values in metrics.items()}
        return Table(names, ratios[rows], local, *features[:, rows])

    tables = [table(slice(8)), table(slice(8, 11)), table(slice(8))]
    sent = []
    monkeypatch.setattr(processes, "all_gather", lambda rows, name: sent.append(rows))
    for local in tables:
        with pytest.raises(TypeError):
            gather_table(local, "step 1")
    rows = np.concatenate(sent[::-1])
    monkeypatch.setattr(processes, "all_gather", lambda *_: rows)
    for local in tables:
        whole = gather_table(local, "step 1")
        assert whole.names == table(slice(11)).names
        for name, values in metrics.items():
            np.testing.assert_array_equal(whole.metrics[name], values)
        np.testing.assert_array_equal([whole.real, whole.fake], features)
        np.testing.assert_array_equal(whole.ratios, ratios)


def test_missing_feature_weights(caplog):
    """Only those that best_by needs are an error; others are silently skipped."""
    caplog.set_level(0)
    assert (
        open_shared_feature_networks("hole_psnr") == NO_NETWORKS and not caplog.records
    )
    with pytest.raises(UserError, match=r"best_by is fid, but .*pt_inception"):
        open_shared_feature_networks("fid")


def test_unreadable_feature_weights(monkeypatch, tmp_path):
    """For example without PyTorch."""
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    file = FILES["inception"]._replace(size=len(content), sha256=digest)
    monkeypatch.setitem(FILES, "inception", file)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "inception.safetensors").write_bytes(content)
    assert open_shared_feature_networks("hole_psnr") == NO_NETWORKS
    with pytest.raises(
        UserError, match=r"best_by is kid, but .*inception\.safetensors"
    ):
        open_shared_feature_networks("kid")


def test_column_of_initial_completions(tmp_path):
    """It never changes, also after resuming. A new run replaces it."""
    (tmp_path / "samples").mkdir()

    def grid(initial, colour):
        samples = make_samples(Uniform(), initial=initial)
        return np.asarray(samples.evaluate(State(colour=colour))[1])

    initial = InitialCompletions(tmp_path, is_new=True, is_shown=True)
    first, later = grid(initial, 1.0), grid(initial, -1.0)
    side = (first.shape[1] - 3 * GAP) // 4  # input, completion, initial, truth

    def column(sheet, index):
        start = index * (side + GAP)
        return sheet[LABEL_HEIGHT : LABEL_HEIGHT + side, start : start + side]

    assert np.array_equal(column(first, 1), column(first, 2))
    assert np.array_equal(column(later, 2), column(first, 2))
    assert not np.array_equal(column(later, 1), column(later, 2))
    resumed = InitialCompletions(tmp_path, is_new=False, is_shown=False)
    assert np.array_equal(grid(resumed, -1.0), later)
    (tmp_path / "samples" / "beginning.png").write_bytes(b"damaged")
    damaged = InitialCompletions(tmp_path, is_new=False, is_shown=False)
    assert grid(damaged, -1.0).shape[1] < later.shape[1]
    grid(InitialCompletions(tmp_path, is_new=True, is_shown=False), 1.0)
    assert not (tmp_path / "samples" / "beginning.png").exists()


def test_column_of_each_reference():
    samples = make_samples(Perfect(), frozen={"teacher": jnp.ones(())})
    _, grid = samples.evaluate(State())
    side = (grid.width - 3 * GAP) // 4  # input, completion, reference, truth
    column = np.asarray(grid)[LABEL_HEIGHT:][:side, 2 * (side + GAP) :][:, :side]
    assert (column == 255).all()


def test_parameters_are_evaluated_without_an_ema():
    state = State()
    state.params = {"colour": jnp.float32(1.0)}
    with_ema, _ = make_samples(Uniform()).evaluate(State(colour=1.0))
    without, _ = make_samples(Uniform()).evaluate(state)
    assert without == with_ema


def test_example_for_inpainting(tmp_path):
    (tmp_path / "samples").mkdir()
    paths = make_samples(Perfect()).save_example(tmp_path)
    image, mask = (np.asarray(Image.open(p)) for p in paths)
    np.testing.assert_array_equal(image, IMAGES[0])
    np.testing.assert_array_equal(mask == 255, MASKS[0, ..., 0] == 0)
