"""Depthwise 3x3 convolution, in the form that suits each platform.

Accelerators run a grouped convolution (the compiler's choice for TPUs; not measured on
GPUs yet). On a CPU XLA's grouped convolutions are some
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

from migan_jax.ops.precision import at_least_float32, full_precision
from migan_jax.ops.resample import pad_by_one


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
        precision=full_precision(x),
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
        precision=full_precision(x),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


def _shift_and_add(x: jax.Array, kernel: jax.Array) -> jax.Array:
    _, h, w, _ = x.shape
    padded = pad_by_one(x)
    taps = kernel[:, :, None, None]  # [3, 3, 1, 1, 1, C]
    total = 0.0
    for i in range(3):
        for j in range(3):
            window = at_least_float32(padded[:, i : i + h, j : j + w])
            total += window * at_least_float32(taps[i, j])
    return total.astype(x.dtype)


def _row_by_row(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Nine sums over the image, carried along its rows so that they stay in cache."""
    n, h, w, c = x.shape
    padded = pad_by_one(x)
    taps = [(i, j) for i in range(3) for j in range(3)]

    def add_row(index: int, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        image, row = index // h, index % h
        window = lax.dynamic_slice(padded, (image, row, 0, 0), (1, 3, w + 2, c))
        gradient = lax.dynamic_slice(dy, (image, row, 0, 0), (1, 1, w, c))[0, 0]
        window, gradient = at_least_float32(window[0]), at_least_float32(gradient)
        return tuple(
            total + window[i, j : j + w] * gradient
            for total, (i, j) in zip(sums, taps, strict=True)
        )

    zero = at_least_float32(jnp.zeros((w, c), x.dtype))
    sums = lax.fori_loop(0, n * h, add_row, (zero,) * 9, unroll=min(4, n * h))
    return jnp.stack([jnp.sum(total, axis=0) for total in sums]).reshape(3, 3, 1, c)


@jax.custom_vjp
def _shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _shift_and_add(x, kernel)


@jax.custom_vjp
def _correlated(x: jax.Array, dy: jax.Array) -> jax.Array:
    return _row_by_row(x, dy)


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
