"""Leaky ReLU with gain and clamp, against a loop over scalars."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from migan_jax.ops.activation import lrelu_agc

GAINS = pytest.mark.parametrize("gain", [1.0, math.sqrt(0.5)])
# On both sides of zero and of the clamps, at x = 181.02 and -905.1.
VALUES = [-1e30, -2000.0, -905.2, -905.0, -7.5, -1e-3, 0.0, 1e-3, 1.0, 181.0, 181.1]
VALUES += [400.0, 1e30]


def activate(x, gain):
    """Reference value and derivative at one number."""
    slope = math.sqrt(2) * gain * (1 if x > 0 else 0.2)
    if abs(x * slope) > 256 * gain:
        return math.copysign(256 * gain, x), 0.0
    return x * slope, slope


@GAINS
def test_value_and_gradient(gain, float64):
    x = np.array(VALUES)
    expected = np.array([activate(value, gain) for value in VALUES])

    value, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda x: lrelu_agc(x, gain))))(
        x
    )

    assert value.dtype == slope.dtype == np.float64
    np.testing.assert_allclose(value, expected[:, 0], rtol=1e-14)
    np.testing.assert_allclose(slope, expected[:, 1], rtol=1e-14)


def test_gradient_at_zero_is_the_negative_slope():
    # As in PyTorch; the mean of both slopes would be .85.
    for zero in (0.0, -0.0):
        slope = jax.grad(lrelu_agc)(jnp.float32(zero))
        np.testing.assert_allclose(slope, 0.2 * math.sqrt(2), rtol=1e-6)


def test_gain_defaults_to_one():
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    np.testing.assert_array_equal(lrelu_agc(x), lrelu_agc(x, 1.0))


def test_second_derivative_is_zero():
    x = np.array([v for v in VALUES if v], np.float32)
    second = jax.jit(jax.vmap(jax.grad(jax.grad(lrelu_agc))))(x)
    np.testing.assert_array_equal(second, np.zeros_like(x))


@GAINS
def test_infinities_are_clipped(gain):
    clipped = lrelu_agc(np.array([-np.inf, np.inf], np.float32), gain)
    np.testing.assert_allclose(clipped, [-256 * gain, 256 * gain], rtol=1e-6)


def test_nan_propagates():
    assert np.isnan(lrelu_agc(jnp.float32(np.nan)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@GAINS
def test_keeps_the_dtype(dtype, gain):
    x = jnp.asarray([-30.0, -1.0, 0.0, 0.5, 3.0, 300.0], dtype)
    exact = [activate(float(value), gain)[0] for value in x]

    value, gradient = jax.value_and_grad(lambda x: jnp.sum(lrelu_agc(x, gain)))(x)

    assert value.dtype == gradient.dtype == dtype
    # The constant and the product are rounded.
    tolerance = 2 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        lrelu_agc(x, gain).astype(np.float32), exact, rtol=tolerance
    )
