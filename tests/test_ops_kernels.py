"""Kernels of re-parametrised convolutions: join and normalise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from migan_jax.ops.conv import join_kernels, normalise_kernel


def test_join_kernels(float64):
    kernels = np.random.default_rng(0).standard_normal((5, 3, 3, 2, 4))
    expected = np.zeros((3, 3, 2, 4))
    for kernel in kernels:
        expected += kernel / np.sqrt(5)
    joined = jax.jit(join_kernels)(kernels)
    assert joined.dtype == np.float64
    np.testing.assert_allclose(joined, expected, atol=1e-14)

    weights = np.random.default_rng(1).standard_normal(expected.shape)
    gradient = jax.grad(lambda k: jnp.sum(join_kernels(k) * weights))(kernels)
    for each in gradient:
        np.testing.assert_allclose(each, weights / np.sqrt(5), atol=1e-14)


def test_joining_one_kernel_does_not_change_it():
    kernel = np.random.default_rng(0).standard_normal((1, 1, 1, 3, 2), np.float32)
    np.testing.assert_array_equal(join_kernels(kernel), kernel[0])


@pytest.mark.parametrize("shape", [(3, 3, 1, 4), (1, 1, 5, 3), (1, 1, 1, 1)])
def test_normalise_kernel(shape, float64):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(shape)
    expected = np.zeros(shape)
    for o in range(shape[-1]):
        norm = np.sqrt(sum(value**2 for value in kernel[..., o].ravel()) + 1e-8)
        expected[..., o] = kernel[..., o] / norm
    normalised = jax.jit(normalise_kernel)(kernel)
    assert normalised.dtype == np.float64
    np.testing.assert_allclose(normalised, expected, rtol=1e-13)
    check_grads(jax.jit(normalise_kernel), (kernel,), order=2, modes=["rev"])


def test_normalise_kernel_of_zeros_is_zero():
    zeros = np.zeros((3, 3, 2, 2), np.float32)
    value, gradient = jax.value_and_grad(lambda k: jnp.sum(normalise_kernel(k)))(zeros)
    assert value == 0
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("function", [join_kernels, normalise_kernel])
def test_half_precision_kernels_become_float32(function):
    kernels = jnp.full((2, 1, 1, 4, 1), 0.3, jnp.bfloat16)
    kernels = kernels if function is join_kernels else kernels[0]
    assert function(kernels).dtype == jnp.float32
