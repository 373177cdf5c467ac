"""Depthwise convolution of odd sizes, in the fastest form for each platform.

TPUs run a grouped convolution, which their compiler fuses with its neighbours. On CPUs
XLA's grouped convolutions are about twenty times slower than shifted multiply-adds
(benchmarks/operations.py). On GPUs they are calls of cuDNN, which nothing is fused
with: so bias, noise and activation take further passes over memory, and the kernel
gradient takes copies in float32. GPUs run the multiply-adds, too. Derivatives have the
same forms (ops/bilinear.py).
"""

import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from migan_jax.ops.bilinear import Bilinear, bilinear
from migan_jax.ops.partition import Strips, is_split_by_rows, sum_samples
from migan_jax.ops.precision import at_least_float32, full_precision
from migan_jax.ops.resample import pad_images


def _apply(strips: Strips | None, x: jax.Array, kernel: jax.Array) -> jax.Array:
    if strips is not None:
        reach = _reach(kernel)
        return _grouped_convolution(strips.add_halo(x, reach), kernel, halo=reach)
    return lax.platform_dependent(
        x, kernel, tpu=_grouped_convolution, default=_shift_and_add
    )


def _transpose(strips: Strips | None, dy: jax.Array, kernel: jax.Array) -> jax.Array:
    return _apply(strips, dy, kernel[::-1, ::-1])


def _kernel_gradient(
    size: int, strips: Strips | None, x: jax.Array, dy: jax.Array
) -> jax.Array:
    def sum_over_batch(x: jax.Array, dy: jax.Array) -> jax.Array:
        if strips is not None:
            return _kernel_gradient_convolution(size, x, dy, halo=size // 2)
        return lax.platform_dependent(
            x,
            dy,
            cpu=partial(_kernel_gradient_by_rows, size),
            tpu=partial(_kernel_gradient_convolution, size),
            default=partial(_kernel_gradient_sums, size),
        )

    split_by_rows = is_split_by_rows(x) if strips is None else strips.devices > 1
    if strips is not None:
        x = strips.add_halo(x, size // 2)
    if split_by_rows:
        return sum_over_batch(x, dy)
    # XLA would add the same gradient of all devices that hold the same images.
    return sum_samples(sum_over_batch, x, dy)


@functools.cache
def _of_size(size: int) -> Bilinear:
    return bilinear(_apply, _transpose, partial(_kernel_gradient, size))


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve each channel: x [N, H, W, C], kernel [K, K, 1, C], K odd, zero padding.

    The result has x's size.
    """
    return _of_size(len(kernel)).apply(x, kernel)


def depthwise_kernel_gradient(x: jax.Array, dy: jax.Array, size: int = 3) -> jax.Array:
    """Return the kernel's gradient [K, K, 1, C], summed in at least float32."""
    return _of_size(size).kernel_gradient(x, dy)


def _reach(kernel: jax.Array) -> int:
    return len(kernel) // 2


# TPUs. With a halo, x has rows beyond the image, in place of padding.


def _grouped_convolution(x: jax.Array, kernel: jax.Array, halo: int = 0) -> jax.Array:
    reach = _reach(kernel)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((reach - halo, reach - halo), (reach, reach)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=full_precision(x),
    )


def _kernel_gradient_convolution(
    size: int, x: jax.Array, dy: jax.Array, halo: int = 0
) -> jax.Array:
    reach = size // 2
    # Channels become groups of one "image" each, samples become its input channels.
    return lax.conv_general_dilated(
        x,
        dy,
        window_strides=(1, 1),
        padding=((reach - halo, reach - halo), (reach, reach)),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=x.shape[-1],
        precision=full_precision(x),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


# CPUs and GPUs.


def _windows(x: jax.Array, size: int) -> list[jax.Array]:
    """Return x shifted by each tap, in at least float32."""
    _, h, w, _ = x.shape
    padded = pad_images(x, size // 2)
    return [
        at_least_float32(padded[:, i : i + h, j : j + w])
        for i in range(size)
        for j in range(size)
    ]


def _shift_and_add(x: jax.Array, kernel: jax.Array) -> jax.Array:
    size = len(kernel)
    taps = at_least_float32(kernel).reshape(size**2, 1, 1, 1, -1)
    products = (x * tap for x, tap in zip(_windows(x, size), taps, strict=True))
    return sum(products).astype(x.dtype)


def _kernel_gradient_sums(size: int, x: jax.Array, dy: jax.Array) -> jax.Array:
    # XLA computes nine short sums in one pass over x and dy, but only two long ones.
    n, h, w, c = x.shape
    short = math.gcd(w, 16)
    products = (window * at_least_float32(dy) for window in _windows(x, size))
    sums = [jnp.sum(p.reshape(n, h, w // short, short, c), axis=3) for p in products]
    sums = lax.optimization_barrier(sums)
    totals = jnp.stack([jnp.sum(s, axis=(0, 1, 2)) for s in sums])
    return totals.reshape(size, size, 1, c)


def _kernel_gradient_by_rows(size: int, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Accumulate the taps' sums row by row, so that they stay in cache."""
    n, h, w, c = x.shape
    padded = pad_images(x, size // 2)

    def sum_taps(first: jax.Array | int, columns: int) -> jax.Array:
        """Return the sums of the taps in some columns: [size, columns, C]."""
        taps = [(i, j) for i in range(size) for j in range(columns)]

        def add_row(index: int, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            image, row = index // h, index % h
            window = lax.dynamic_slice(
                padded, (image, row, first, 0), (1, size, w + columns - 1, c)
            )
            gradient = lax.dynamic_slice(dy, (image, row, 0, 0), (1, 1, w, c))[0, 0]
            window, gradient = at_least_float32(window[0]), at_least_float32(gradient)
            return tuple(
                total + window[i, j : j + w] * gradient
                for total, (i, j) in zip(sums, taps, strict=True)
            )

        zero = at_least_float32(jnp.zeros((w, c), x.dtype))
        sums = (zero,) * len(taps)
        sums = lax.fori_loop(0, n * h, add_row, sums, unroll=min(4, n * h))
        totals = jnp.stack([jnp.sum(total, axis=0) for total in sums])
        return totals.reshape(size, columns, c)

    if size == 3:
        return sum_taps(0, size)[:, :, None]
    # All taps of larger kernels at once would take twice as long to compile.
    by_column = lax.map(lambda first: sum_taps(first, 1)[:, 0], jnp.arange(size))
    return by_column.swapaxes(0, 1)[:, :, None]
