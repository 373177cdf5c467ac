"""Losses against known values and plain loops."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from migan_jax.losses import gan
from migan_jax.losses.distillation import distillation_loss
from migan_jax.losses.perceptual import (
    CODE_WEIGHTS,
    gram_matrix,
    perceptual_loss,
    style_loss,
)
from migan_jax.losses.reconstruction import l1_in_hole, total_variation, weighted_l1

GOLDEN = Path(__file__).parent / "golden"


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0)


REAL, FAKE = np.array([[0.0], [2.0], [-30.0]]), np.array([[1.0], [-3.0], [40.0]])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (gan.logistic_discriminator_loss, lambda r, f: softplus(f) + softplus(-r)),
        (gan.hinge_discriminator_loss, lambda r, f: max(1 - r, 0) + max(1 + f, 0)),
        (gan.wasserstein_critic_loss, lambda r, f: f - r),
    ],
)
def test_discriminator_losses(loss, expected):
    pairs = zip(REAL[:, 0], FAKE[:, 0], strict=True)
    np.testing.assert_allclose(loss(REAL, FAKE), [expected(*p) for p in pairs], 1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (gan.logistic_generator_loss, lambda f: softplus(-f)),
        (gan.hinge_generator_loss, lambda f: -f),
    ],
)
def test_generator_losses(loss, expected):
    np.testing.assert_allclose(loss(FAKE), [expected(f) for f in FAKE[:, 0]], 1e-6)
    patches = np.stack([FAKE, FAKE[::-1]], axis=2)  # two scores per image
    means = [(expected(a) + expected(b)) / 2 for a, b in patches[:, 0]]
    np.testing.assert_allclose(loss(patches), means, 1e-6)


def test_gradients_of_a_linear_critic_are_its_weights():
    weights = np.random.default_rng(0).standard_normal((4, 4, 4)).astype(np.float32)
    x = jnp.ones((3, 4, 4, 4))
    pixels = np.zeros((3, 4, 4, 1), np.float32)
    pixels[1, :2], pixels[2] = 1, 1

    def critic(x):
        return jnp.einsum("nhwc,hwc->n", x, weights)[:, None]

    penalty = gan.r1_penalty(critic, x)
    np.testing.assert_allclose(penalty, [0.5 * (weights**2).sum()] * 3, rtol=1e-6)
    expected = [0, np.linalg.norm(weights[:2]), np.linalg.norm(weights)]
    np.testing.assert_allclose(gan.gradient_norm(critic, x, pixels), expected, 1e-6)


def test_gradient_norm_penalties():
    norm = jnp.array([0.0, 0.5, 1.0, 3.0])
    assert gan.two_sided_penalty(norm).tolist() == [1, 0.25, 0, 4]
    assert gan.one_sided_penalty(norm).tolist() == [0, 0, 0, 2]

    def penalty(slope):  # the critic is constant at slope 0
        points = jnp.ones((1, 2, 2, 1))
        norm = gan.gradient_norm(lambda x: slope * jnp.sum(x)[None], points)
        return jnp.sum(gan.two_sided_penalty(norm))

    assert jax.grad(penalty)(0.0) == 0 and jax.grad(penalty)(1.0) == 4  # never NaN


def test_interpolate():
    real, fake = jnp.ones((3, 1, 1, 1)), -jnp.ones((3, 1, 1, 1))
    points = gan.interpolate(real, fake, jnp.array([0.0, 0.5, 1.0]))
    assert points.ravel().tolist() == [-1, 0, 1]


def test_r1_is_per_sample_and_includes_all_channels():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 2, 4)), jnp.float32)
    penalty = gan.r1_penalty(lambda x: jnp.sum(x**2, axis=(1, 2, 3))[:, None] / 2, x)
    np.testing.assert_allclose(penalty, 0.5 * jnp.sum(x**2, (1, 2, 3)), rtol=1e-6)


def pyramid(rng, *resolutions):
    return {r: rng.standard_normal((2, r, r, 3), np.float32) for r in resolutions}


@pytest.mark.parametrize(("size", "levels"), [(16, 0), (64, 2), (256, 4), (512, 5)])
def test_distillation_sums_over_levels(size, levels):
    student = {r: jnp.ones((1, r, r, 3)) for r in (4, 8, 16, 32, 64, 128, 256, 512)}
    student = {r: image for r, image in student.items() if r <= size}
    teacher = jax.tree.map(jnp.zeros_like, student)
    hole = jnp.zeros((1, size, size, 1))
    assert distillation_loss(student, teacher, hole) == levels


def test_distillation_against_a_loop():
    rng = np.random.default_rng(0)
    student, teacher = (pyramid(rng, 16, 32, 64) for _ in range(2))
    mask = (rng.random((2, 64, 64, 1)) < 0.5).astype(np.float32)
    expected = np.zeros(2)
    for r in (32, 64):
        for n, row, column in np.ndindex(2, r, r):
            known = mask[n, row * 64 // r, column * 64 // r, 0]
            difference = np.abs(student[r] - teacher[r])[n, row, column].mean()
            expected[n] += (1 - known) * difference / r**2
    actual = distillation_loss(student, teacher, jnp.asarray(mask))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_l1_in_hole_is_averaged_over_all_pixels():
    truth = jnp.zeros((1, 4, 4, 3))
    mask = jnp.ones((1, 4, 4, 1)).at[:, :2].set(0)
    assert l1_in_hole(truth + 3, truth, mask) == 1.5
    assert l1_in_hole(truth + 3 * mask, truth, mask) == 0


# DeepGIN's.


def test_gram_matrices_equal_the_reference():
    with np.load(GOLDEN / "deepgin_ops.npz") as arrays:
        first, second = arrays["feat1"], arrays["feat2"]
        expected = {
            name: arrays[name] for name in ("gram1", "gram_mse", "gram_l1_paper")
        }
    gram = gram_matrix(first)
    np.testing.assert_allclose(gram, expected["gram1"], atol=1e-5)
    np.testing.assert_array_equal(gram, gram.transpose(0, 2, 1))
    assert np.linalg.eigvalsh(gram).min() > -1e-6
    layers = [first] * 5, [second] * 5
    for form, name, weight in (
        ("code", "gram_mse", sum(CODE_WEIGHTS)),
        ("paper", "gram_l1_paper", 5),
    ):
        loss = np.mean(style_loss(*layers, form))
        np.testing.assert_allclose(loss, weight * expected[name], rtol=1e-5)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_perceptual_loss_weights_layers(form):
    rng = np.random.default_rng(0)
    shapes = [(2, 4, 4, 3), (2, 2, 2, 5)] + [(2, 1, 1, 7)] * 3
    first, second = ([rng.standard_normal(s) for s in shapes] for _ in range(2))
    weights = CODE_WEIGHTS if form == "code" else (1,) * 5
    for sample, value in enumerate(perceptual_loss(first, second, form)):
        expected = sum(
            w * np.abs(a[sample] - b[sample]).mean()
            for w, a, b in zip(weights, first, second, strict=True)
        )
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_weighted_l1_and_soft_masks():
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 3, 4, 4, 3))
    mask = rng.random((3, 4, 4, 1))
    difference = np.abs(first - second)
    parts = (
        5 * (difference * (1 - mask)).mean((1, 2, 3)),
        (difference * mask).mean((1, 2, 3)),
    )
    loss = weighted_l1(first, second, mask, 5.0)
    np.testing.assert_allclose(loss, sum(parts), rtol=1e-6)
    whole = weighted_l1(first, second, np.ones_like(mask), 5.0)
    np.testing.assert_allclose(whole, difference.mean((1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_total_variation_of_a_ramp(form):
    """Constant down the columns, with steps of 1/4 along the rows."""
    x = np.arange(4.0).reshape(1, 1, 4, 1) / 4 * np.ones((2, 5, 4, 3))
    expected = 1 / 4 if form == "paper" else 2 / 16
    np.testing.assert_allclose(total_variation(x, form), [expected] * 2, rtol=1e-6)
