"""Depthwise 3x3 convolution, in the form that suits each platform.

Accelerators run a grouped convolution. On a CPU XLA's grouped convolutions are some
twenty times slower than nine shifted multiply-adds, forward and backward
(benchmarks/operations.py measures it), so there the operation brings its derivatives.
With y = A(x, w) and the kernel gradient B(x, dy), the pair is closed:
  d y / d x  -> A(dy, flipped w)     d y / d w  -> B(x, dy)
  d B / d x  -> A(dy, flipped dB)    d B / d dy -> A(x, dB)
which is what makes it differentiable any number of times.
"""

import jax
import jax.numpy as jnp
from jax import lax


def depthwise3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve each channel: x [N, H, W, C], kernel [3, 3, 1, C], zero padding 1."""
    return lax.platform_dependent(x, kernel, cpu=_shifted, default=_grouped_convolution)


def depthwise_weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The kernel's gradient [3, 3, 1, C], summed in at least float32."""
    return lax.platform_dependent(
        x, dy, cpu=_correlated, default=_correlation_by_convolution
    )


def _grouped_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _correlation_by_convolution(x: jax.Array, dy: jax.Array) -> jax.Array:
    # Channels become groups of one "image" each, the batch its input features.
    return lax.conv_general_dilated(
        x,
        dy,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=x.shape[-1],
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


def _pad_by_one(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _shift_and_add(x: jax.Array, kernel: jax.Array) -> jax.Array:
    _, h, w, _ = x.shape
    padded = _pad_by_one(x)
    taps = kernel[:, :, None, None]  # [3, 3, 1, 1, 1, C]
    total = 0.0
    for i in range(3):
        for j in range(3):
            total += padded[:, i : i + h, j : j + w] * taps[i, j]
    return total


def _row_scan(x: jax.Array, dy: jax.Array) -> jax.Array:
    _, h, w, c = x.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    padded = _pad_by_one(x)

    def add_row(taps: list[list[jax.Array]], row: jax.Array):
        gradient = lax.dynamic_slice_in_dim(dy, row, 1, axis=1).astype(dtype)
        window = lax.dynamic_slice_in_dim(padded, row, 3, axis=1).astype(dtype)
        for i in range(3):
            for j in range(3):
                product = window[:, i : i + 1, j : j + w] * gradient
                taps[i][j] += jnp.sum(product, axis=(0, 1, 2))
        return taps, None

    zeros = [[jnp.zeros(c, dtype) for _ in range(3)] for _ in range(3)]
    taps, _ = lax.scan(add_row, zeros, jnp.arange(h))
    return jnp.stack([jnp.stack(row) for row in taps])[:, :, None]


@jax.custom_vjp
def _shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _shift_and_add(x, kernel)


@jax.custom_vjp
def _correlated(x: jax.Array, dy: jax.Array) -> jax.Array:
    return _row_scan(x, dy)


def _shifted_forward(x: jax.Array, kernel: jax.Array):
    return _shifted(x, kernel), (x, kernel)


def _shifted_backward(saved, dy: jax.Array):
    x, kernel = saved
    return _shifted(dy, kernel[::-1, ::-1]), _correlated(x, dy).astype(kernel.dtype)


def _correlated_forward(x: jax.Array, dy: jax.Array):
    return _correlated(x, dy), (x, dy)


def _correlated_backward(saved, gradient: jax.Array):
    x, dy = saved
    kernel = gradient.astype(x.dtype)
    return _shifted(dy, kernel[::-1, ::-1]), _shifted(x, kernel)


_shifted.defvjp(_shifted_forward, _shifted_backward)
_correlated.defvjp(_correlated_forward, _correlated_backward)
