"""The losses of Suin et al. (ICCV 2021) against golden values and plain cases."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from migan_jax.losses.distillation import attention_transfer, feature_distance
from migan_jax.losses.perceptual import style_l1
from migan_jax.losses.reconstruction import confidence, spatially_varying_l1

GOLDEN = Path(__file__).parent / "golden" / "distillation_ops.npz"
REDUCTIONS = ("pixels", "holes", "sum")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture
def features(golden):
    """Return one level's features, their target, channel weights and hole."""
    target = golden["cd/x_an"] @ golden["cd/gamma"]
    return tuple(
        map(jnp.array, (golden["cd/x"], target, golden["cd/rho"], golden["cd/m"]))
    )


@pytest.fixture
def attention(golden):
    """Return the distances of attention weights, the queries' importance and hole."""
    distances = ((golden["att/rA"] - golden["att/r"]) ** 2).sum(2)
    queries = distances, golden["att/t"], golden["att/hole"]
    return tuple(jnp.array(x.reshape(2, 4, 5, 1)) for x in queries)


@pytest.fixture
def images():
    """Return an output, its truth and a square hole per sample."""
    output, truth = np.random.default_rng(0).random((2, 3, 16, 16, 3), np.float32)
    return output, truth, jnp.zeros((3, 16, 16, 1)).at[:, 4:12, 4:12].set(1)


def assert_twice_differentiable(loss, x):
    """Check that the gradient and that of its squared norm are finite and not 0."""
    gradient = jax.grad(loss)
    assert np.isfinite(gradient(x)).all() and np.any(gradient(x))
    assert np.isfinite(jax.grad(lambda x: jnp.sum(gradient(x) ** 2))(x)).all()


def test_weights_of_channels_are_a_softmax_of_pooled_features(golden):
    logits = golden["cd/x_an"].mean((1, 2)) @ golden["cd/rho_w"] + golden["cd/rho_b"]
    np.testing.assert_allclose(jax.nn.softmax(logits), golden["cd/rho"], rtol=1e-5)


def test_feature_distance_equals_golden_values(golden, features):
    total = feature_distance(*features, "sum")
    np.testing.assert_allclose(total, golden["cd/loss_sum_batchmean"], rtol=1e-6)
    holes = feature_distance(*features, "holes")  # per sample, then over the batch
    np.testing.assert_allclose(holes, golden["cd/loss_mean_hole"], rtol=1e-6)
    np.testing.assert_allclose(feature_distance(*features), total / 36, rtol=1e-6)


def test_attention_transfer_equals_golden_values(golden, attention):
    total = attention_transfer(*attention, "sum")
    np.testing.assert_allclose(total, golden["att/loss_sum_batchmean"], rtol=1e-6)
    holes = attention_transfer(*attention)  # over all of the batch's
    np.testing.assert_allclose(holes, golden["att/loss_mean_hole"], rtol=1e-6)
    pixels = attention_transfer(*attention, "pixels")
    np.testing.assert_allclose(pixels, total / 20, rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_distillation_is_of_holes_only(reduction, features, attention):
    x, target, weights, hole = features
    assert feature_distance(x, x, weights, hole, reduction) == 0
    elsewhere = jnp.where(hole > 0, x, target + 9)
    assert feature_distance(elsewhere, target, weights, hole, reduction) == (
        feature_distance(x, target, weights, hole, reduction)
    )
    distances, importance, hole = attention
    assert attention_transfer(0 * distances, importance, hole, reduction) == 0
    elsewhere = jnp.where(hole > 0, distances, 9)
    assert attention_transfer(elsewhere, importance, hole, reduction) == (
        attention_transfer(distances, importance, hole, reduction)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("without", [[0], [0, 1]])
def test_distillation_without_holes(reduction, without, features, attention):
    for loss, (x, *others, hole) in (
        (feature_distance, features),
        (attention_transfer, attention),
    ):
        hole = hole.at[jnp.array(without)].set(0)
        value, gradient = jax.value_and_grad(loss)(x, *others, hole, reduction)
        assert np.isfinite(gradient).all() and not np.any(gradient[0])
        assert value == 0 if len(without) == 2 else value > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_distillation_is_twice_differentiable(reduction, features, attention):
    x, *others = features
    assert_twice_differentiable(lambda x: feature_distance(x, *others, reduction), x)
    distances, importance, hole = attention
    assert_twice_differentiable(
        lambda t: attention_transfer(distances, t**2, hole, reduction), importance
    )


def test_distillation_of_half_precision_is_float32(features, attention):
    for loss, arguments in (
        (feature_distance, features),
        (attention_transfer, attention),
    ):
        value = loss(*(x.astype(jnp.bfloat16) for x in arguments))
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, loss(*arguments), rtol=0.02)


def test_confidence_equals_golden_values(golden):
    weights = confidence(golden["gmcnn/mask"])
    np.testing.assert_allclose(weights, golden["gmcnn/weight"], rtol=1e-5)


def test_confidence_falls_inside_a_disc():
    row, column = np.indices((48, 48)) - 24
    hole = (np.hypot(row, column) <= 18).astype(np.float32)[None, :, :, None]
    weights = np.asarray(confidence(hole, size=9))
    assert weights.min() == 0 and weights.max() < 1
    assert not np.any(weights[hole == 0]) and np.all(weights[hole == 1] > 0)
    radius = weights[0, 24, 24:43, 0]  # from the centre to the border
    assert np.all(np.diff(radius) > 0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_confidence_without_a_border(value):
    """Confidence comes from known pixels: without any, it is 0."""
    assert not np.any(confidence(jnp.full((1, 8, 8, 1), value), size=5))


def test_confidence_has_no_gradient(images):
    *_, hole = images
    gradient = jax.grad(lambda hole: jnp.sum(confidence(hole, size=5)))(hole)
    assert not np.any(gradient)


def test_spatially_varying_l1(images):
    output, truth, hole = images
    weights = confidence(hole, size=5)
    difference = np.abs(output - truth)
    holes = (difference * weights).mean() * 4  # a quarter of the pixels
    known = difference[np.broadcast_to(hole, difference.shape) == 0].mean()
    loss = spatially_varying_l1(output, truth, hole, weights, 1.4, 1.2)
    np.testing.assert_allclose(loss, 1.4 * holes + 1.2 * known, rtol=1e-5)
    assert spatially_varying_l1(truth, truth, hole, weights, 1.4, 1.2) == 0
    elsewhere = jnp.where(hole > 0, truth, 9)
    assert spatially_varying_l1(elsewhere, truth, hole, weights, 1.4, 0.0) == 0
    assert_twice_differentiable(
        lambda x: spatially_varying_l1(x, truth, hole, weights, 1.4, 1.2), output
    )


def test_spatially_varying_l1_without_holes_or_known_pixels(images):
    output, truth, hole = images
    mean = np.abs(output - truth).mean()
    for region, expected in ((0 * hole, 1.2 * mean), (0 * hole + 1, 1.4 * mean)):
        loss = jax.value_and_grad(spatially_varying_l1)
        value, gradient = loss(output, truth, region, region, 1.4, 1.2)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert np.isfinite(gradient).all()


def test_style_l1_equals_golden_values(golden):
    first, second = golden["style/f1"], golden["style/f2"]
    folded = golden["style/l1_gram_batchfold"]
    loss = style_l1([first], [second], True)
    np.testing.assert_allclose(loss, folded / 2, rtol=1e-5)
    layers = style_l1([first] * 3, [second] * 3, True)
    np.testing.assert_allclose(layers, folded * 7 / 8, rtol=1e-5)


@pytest.mark.parametrize("fold_batch", [False, True])
def test_style_l1(fold_batch, golden):
    first, second = jnp.array(golden["style/f1"]), golden["style/f2"]
    assert style_l1([first], [first], fold_batch) == 0
    alone = style_l1([first[:1]], [second[:1]], fold_batch)
    pair = style_l1([first], [second], fold_batch)
    other = style_l1([first[1:]], [second[1:]], fold_batch)
    assert np.isclose(pair, (alone + other) / 2, rtol=1e-5) != fold_batch
    assert_twice_differentiable(lambda x: style_l1([x], [second], fold_batch), first)
