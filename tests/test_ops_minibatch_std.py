"""Minibatch standard deviation against a loop over groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from migan_jax.ops.minibatch_std import append_minibatch_std

SHAPES = pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (2, 3, 1, 2),
        (3, 1, 2, 4),
        (4, 2, 3, 5),
        (8, 1, 1, 3),
        (12, 2, 2, 1),
    ],
    ids=lambda shape: "x".join(map(str, shape)),
)


def deviations(x):
    """Reference: the deviation among samples congruent modulo N / group, per sample."""
    n, h, w, c = x.shape
    stride = n // min(4, n)
    result = np.zeros(n)
    for i in range(n):
        group = [x[k] for k in range(n) if k % stride == i % stride]
        assert len(group) == min(4, n)
        mean = sum(group) / len(group)
        variance = sum((sample - mean) ** 2 for sample in group) / len(group)
        result[i] = np.sqrt(variance + 1e-8).sum() / (h * w * c)
    return result


@SHAPES
def test_value(shape, float64):
    x = np.random.default_rng(0).standard_normal(shape)
    y = jax.jit(append_minibatch_std)(x)
    assert y.dtype == np.float64
    assert y.shape == (*shape[:3], shape[3] + 1)
    np.testing.assert_array_equal(y[..., :-1], x)
    expected = np.broadcast_to(deviations(x)[:, None, None], shape[:3])
    np.testing.assert_allclose(y[..., -1], expected, rtol=1e-12)


def test_derivatives_against_finite_differences(float64):
    x = np.random.default_rng(1).standard_normal((8, 1, 1, 2))
    check_grads(jax.jit(append_minibatch_std), (x,), order=2, modes=["rev"])


def test_gradient_of_the_reference(float64):
    rng = np.random.default_rng(2)
    x, direction = rng.standard_normal((2, 8, 2, 2, 3))
    weights = rng.standard_normal(8)

    def loss(x):
        return jnp.sum(append_minibatch_std(x)[:, 0, 0, -1] * weights)

    gradient = jax.jit(jax.grad(loss))(x)

    step = 1e-5 * direction
    slope = (deviations(x + step) - deviations(x - step)) @ weights / 2e-5
    np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-7)


def test_equal_samples_have_a_finite_gradient():
    x = np.ones((4, 2, 2, 3), np.float32)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(append_minibatch_std(x)))(x)
    np.testing.assert_allclose(value, 48 + 16 * 1e-4, rtol=1e-6)
    assert np.all(np.isfinite(gradient))


def test_a_sample_affects_only_its_group():
    x = np.random.default_rng(3).standard_normal((12, 2, 2, 3)).astype(np.float32)
    changed = x.copy()
    changed[4] *= 3
    before, after = (append_minibatch_std(a)[:, 0, 0, -1] for a in (x, changed))
    affected = np.flatnonzero(before != after)
    np.testing.assert_array_equal(affected, [1, 4, 7, 10])


@pytest.mark.parametrize("batch", [5, 6, 10])
def test_batch_that_does_not_split_into_groups_raises(batch):
    with pytest.raises(ValueError, match=rf"\b{batch}\b.*\b4\b"):
        append_minibatch_std(np.zeros((batch, 2, 2, 1), np.float32))


def test_half_precision_is_computed_in_float32():
    # 256 + {0, 2}: a mean in bfloat16 would be 256 and the deviation sqrt(2).
    x = jnp.full((4, 1, 1, 1), 256.0, jnp.bfloat16).at[1::2].add(2)
    y = append_minibatch_std(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y[..., -1].astype(np.float32), 1)


@pytest.mark.parametrize("samples", [2, 8])
def test_batches_that_take_turns_have_groups_of_their_own(samples):
    batches = np.random.default_rng(4).standard_normal((2, samples, 2, 2, 3))
    together = np.stack(batches.astype(np.float32), axis=1).reshape(-1, 2, 2, 3)
    y = append_minibatch_std(together, batches=2).reshape(samples, 2, 2, 2, 4)
    for index, batch in enumerate(batches.astype(np.float32)):
        np.testing.assert_allclose(y[:, index], append_minibatch_std(batch), rtol=1e-6)
