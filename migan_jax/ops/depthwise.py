"""Depthwise 3x3 convolution, in the fastest form for each platform.

Accelerators run a grouped convolution (the compiler's choice for TPUs; not measured on
GPUs yet). On CPUs, XLA's grouped convolutions are about twenty times slower than nine
shifted multiply-adds, forward and backward (benchmarks/operations.py). So the CPU form
defines its derivatives. With y = A(x, w) and the kernel gradient B(x, dy):
  dy/dx -> A(dy, flipped w)     dy/dw  -> B(x, dy)
  dB/dx -> A(dy, flipped dB)    dB/ddy -> A(x, dB)
A and B need only each other, so the convolution is differentiable to any order.
"""

import jax
import jax.numpy as jnp
from jax import lax

from migan_jax.ops.precision import at_least_float32, full_precision
from migan_jax.ops.resample import pad_by_one


def depthwise3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve each channel: x [N, H, W, C], kernel [3, 3, 1, C], zero padding 1."""
    return lax.platform_dependent(
        x, kernel, cpu=_shift_and_add, default=_grouped_convolution
    )


def depthwise_kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Return the kernel's gradient [3, 3, 1, C], summed in at least float32."""
    return lax.platform_dependent(
        x, dy, cpu=_kernel_gradient_by_rows, default=_kernel_gradient_convolution
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


def _kernel_gradient_convolution(x: jax.Array, dy: jax.Array) -> jax.Array:
    # Channels become groups of one "image" each, samples become its input channels.
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


@jax.custom_vjp
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


@jax.custom_vjp
def _kernel_gradient_by_rows(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Accumulate nine sums row by row, so that they stay in cache."""
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


def _convolution_backward(saved, dy: jax.Array):
    x, kernel = saved
    dx = _shift_and_add(dy, kernel[::-1, ::-1])
    return dx, _kernel_gradient_by_rows(x, dy).astype(kernel.dtype)


def _kernel_gradient_backward(saved, dkernel: jax.Array):
    x, dy = saved
    kernel = dkernel.astype(x.dtype)
    return _shift_and_add(dy, kernel[::-1, ::-1]), _shift_and_add(x, kernel)


_shift_and_add.defvjp(
    lambda *args: (_shift_and_add(*args), args), _convolution_backward
)
_kernel_gradient_by_rows.defvjp(
    lambda *args: (_kernel_gradient_by_rows(*args), args), _kernel_gradient_backward
)
