"""Convolutions of MI-GAN (section 3.1) and of the StyleGAN2 family (Co-Mod-GAN).

Kernels are [kh, kw, I, O]; their gradients are in at least float32 (ops/bilinear.py).
`conv_dense` serves networks of plain convolutions, whose feature maps are images, never
strips.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from migan_jax.ops.bilinear import Operation, bilinear
from migan_jax.ops.depthwise import depthwise
from migan_jax.ops.partition import Strips, per_strip
from migan_jax.ops.precision import at_least_float32, broadcast_like, full_precision
from migan_jax.ops.resample import fir_filter

# Kernels.


def join_kernels(kernels: jax.Array) -> jax.Array:
    """Join n re-parametrisation kernels [n, kh, kw, I, O]: their sum / sqrt(n)."""
    return jnp.sum(at_least_float32(kernels), axis=0) * (kernels.shape[0] ** -0.5)


def normalise_kernel(kernel: jax.Array) -> jax.Array:
    """Normalise the kernel of every output channel to unit norm."""
    kernel = at_least_float32(kernel)
    square = jnp.sum(kernel**2, axis=(0, 1, 2), keepdims=True)
    return kernel / jnp.sqrt(square + 1e-8)


# Convolutions.


def conv_depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution, zero padding; kernel [K, K, 1, C]."""
    return depthwise(x, kernel)


def conv_pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution as a matrix product; kernel [1, 1, I, O]."""
    return _matrix_product.apply(x, kernel)


def conv_to_float32(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution with float32 results, as if half-precision x were float32.

    For few output channels: it makes one product in bfloat16 of what would be several.
    """
    if x.dtype != jnp.bfloat16:
        return conv_pointwise(at_least_float32(x), kernel)
    return _exact_product(x, kernel)


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Dense convolution, zero padding 1."""
    return _same.apply(x, kernel)


def conv_down(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """FIR filter and 3x3 convolution with stride 2: halves height and width."""
    return _down.apply(x, kernel)


def conv_up(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed 3x3 convolution and FIR filter: doubles height and width.

    The kernel is not flipped (scatter convention): input pixel i adds kernel[k] to
    pixel 2i + k of what is filtered.
    """
    return _down.transpose(x, _swap_channels(kernel))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv_dense(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    dilation: int = 1,
    padding: int = 0,
) -> jax.Array:
    """Dense convolution of images, with dilated taps and zero padding."""
    return _dense(x, kernel.astype(x.dtype), stride, dilation, padding)


def demodulated_conv(
    x: jax.Array,
    kernel: jax.Array,
    styles: jax.Array,
    convolve: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Modulated convolution with per-sample demodulation (StyleGAN2, Equations 1-3).

    `styles` [N, I] scale the input channels of a kernel shared by all samples; output
    channels are divided by the norm of the scaled kernel. Both are applied to
    activations, so that the convolution has one kernel for all samples.
    """
    kernel = at_least_float32(kernel)
    styles = at_least_float32(styles)
    power = jnp.sum(kernel**2, axis=(0, 1))  # [I, O]
    scale = lax.rsqrt(jnp.mean(power, axis=0) / math.prod(kernel.shape[:2]))  # [O]
    kernel, power = kernel * scale[None, None, None], power * scale[None] ** 2
    styles = styles * lax.rsqrt(jnp.mean(styles**2))
    squares = jnp.matmul(styles**2, power, precision=full_precision(styles))
    norm = lax.rsqrt(squares + 1e-8)  # [N, O]
    styles, norm = per_strip(styles), per_strip(norm)
    y = convolve(x * broadcast_like(styles[:, None, None], x), kernel)
    return y * broadcast_like(norm[:, None, None], y)


# Their forms. With a halo, x has rows beyond the image, in place of padding.


def _swap_channels(kernel: jax.Array) -> jax.Array:
    return kernel.swapaxes(2, 3)


def _pointwise(strips: Strips | None, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _multiply(x, kernel, x.dtype)


def _pointwise_transpose(
    strips: Strips | None, dy: jax.Array, kernel: jax.Array
) -> jax.Array:
    return _multiply(dy, _swap_channels(kernel), dy.dtype)


def _multiply(x: jax.Array, kernel: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Multiply each pixel with a kernel [1, 1, I, O]; return this dtype."""

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.dot_general(
            x,
            kernel[0, 0],
            (((3,), (0,)), ((), ())),
            precision=full_precision(x),
            preferred_element_type=dtype,
        )

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _convolve(x, kernel, rows=0, columns=0, dtype=dtype)

    # A TPU lays out the inputs of convolutions and of matrix products in different
    # ways. Next to other convolutions, products would double the passes over memory.
    return lax.platform_dependent(x, kernel, tpu=convolution, default=product)


def _pointwise_kernel_gradient(
    strips: Strips | None, x: jax.Array, dy: jax.Array
) -> jax.Array:
    # Flattened, XLA on CPU needs no transposed copy. Elsewhere keep the axes, so that
    # an image sharded by rows stays sharded.
    product = lax.platform_dependent(
        x, dy, cpu=_outer_product_flat, default=_outer_product
    )
    return product[None, None]


def _outer_product(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Sum of outer products over all axes but the last, [I, O]."""
    axes = tuple(range(x.ndim - 1))
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    pairs = ((axes, axes), ((), ()))
    return lax.dot_general(
        x, dy, pairs, precision=full_precision(x), preferred_element_type=dtype
    )


def _outer_product_flat(x: jax.Array, dy: jax.Array) -> jax.Array:
    return _outer_product(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]))


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    rows: int,
    columns: int,
    strides: int = 1,
    dilation: int = 1,
    dtype: DTypeLike | None = None,
    taps: int = 1,
) -> jax.Array:
    """Convolve with zero padding by rows and columns; return x's or another dtype.

    `dilation` puts zeros between pixels of x, `taps` between those of the kernel.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=((rows, rows), (columns, columns)),
        lhs_dilation=(dilation, dilation),
        rhs_dilation=(taps, taps),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=full_precision(x),
        preferred_element_type=dtype,
    )


def _convolve_batches(
    x: jax.Array,
    dy: jax.Array,
    rows: int,
    columns: int,
    strides: int = 1,
    taps: int = 1,
) -> jax.Array:
    """Return the kernel gradient of `_convolve`, in at least float32."""
    # It sums over the batch, which takes the role of input channels.
    return lax.conv_general_dilated(
        x,
        dy,
        window_strides=(taps, taps),
        padding=((rows, rows), (columns, columns)),
        rhs_dilation=(strides, strides),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        precision=full_precision(x),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


def _same3x3(x: jax.Array, kernel: jax.Array, halo: int) -> jax.Array:
    return _convolve(x, kernel, rows=1 - halo, columns=1)


def _same3x3_gradient(x: jax.Array, dy: jax.Array, halo: int) -> jax.Array:
    return _convolve_batches(x, dy, rows=1 - halo, columns=1)


def _filter_and_convolve(x: jax.Array, kernel: jax.Array, halo: int) -> jax.Array:
    filtered = fir_filter(x, padding=2, halo=halo)
    return _convolve(filtered, kernel, rows=0, columns=0, strides=2)


def _filter_and_convolve_gradient(x: jax.Array, dy: jax.Array, halo: int) -> jax.Array:
    filtered = fir_filter(x, padding=2, halo=halo)
    return _convolve_batches(filtered, dy, rows=0, columns=0, strides=2)


def _scatter_and_filter(x: jax.Array, kernel: jax.Array, halo: int) -> jax.Array:
    """The transpose of `_filter_and_convolve`."""
    flipped = _swap_channels(kernel[::-1, ::-1])
    scattered = _convolve(x, flipped, rows=2 - halo, columns=2, dilation=2)
    return fir_filter(scattered, padding=1, halo=halo)


def _dense(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int, padding: int
) -> jax.Array:
    return _convolve(x, kernel, padding, padding, stride, taps=dilation)


def _dense_forward(
    x: jax.Array, kernel: jax.Array, *geometry: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv_dense(x, kernel, *geometry), (x, kernel)


def _dense_backward(
    stride: int,
    dilation: int,
    padding: int,
    saved: tuple[jax.Array, jax.Array],
    dy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    cast = kernel.astype(x.dtype)
    _, transpose = jax.vjp(lambda x: _dense(x, cast, stride, dilation, padding), x)
    height, width = kernel.shape[:2]
    # The stride may leave rows over, which would make further taps.
    dkernel = _convolve_batches(x, dy, padding, padding, stride, dilation)
    return transpose(dy)[0], dkernel[:height, :width].astype(kernel.dtype)


conv_dense.defvjp(_dense_forward, _dense_backward)


def _with_halo(function: Callable[..., jax.Array], halo: int) -> Operation:
    """Run `function(x, other, halo)` on images, or on strips with a halo."""

    def run(strips: Strips | None, x: jax.Array, other: jax.Array) -> jax.Array:
        if strips is None:
            return function(x, other, 0)
        return function(strips.add_halo(x, halo), other, halo)

    return run


def _same3x3_transpose(dy: jax.Array, kernel: jax.Array, halo: int) -> jax.Array:
    return _same3x3(dy, _swap_channels(kernel[::-1, ::-1]), halo)


_matrix_product = bilinear(_pointwise, _pointwise_transpose, _pointwise_kernel_gradient)
_same = bilinear(
    _with_halo(_same3x3, 1),
    _with_halo(_same3x3_transpose, 1),
    _with_halo(_same3x3_gradient, 1),
)
_down = bilinear(
    _with_halo(_filter_and_convolve, 2),
    _with_halo(_scatter_and_filter, 1),
    _with_halo(_filter_and_convolve_gradient, 2),
)


# Products of bfloat16 and float32: a float32 number is the sum of three in bfloat16.


def bfloat16_parts(x: jax.Array, count: int) -> list[jax.Array]:
    """Return the most significant parts of float32 numbers."""
    parts = []
    for _ in range(count):
        # Unlike a cast and its inverse, XLA does not leave it out.
        part = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return parts


def _sum_parts(x: jax.Array) -> jax.Array:
    """Add the results of three parts, which lie side by side in the channels."""
    return jnp.sum(x.reshape(*x.shape[:-1], 3, -1), axis=-2)


@jax.custom_vjp
def _exact_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    parts = jnp.concatenate(bfloat16_parts(kernel, 3), axis=-1)
    return _sum_parts(_multiply(x, parts, jnp.float32))


def _exact_product_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _exact_product(x, kernel), (x, kernel)


def _exact_product_backward(
    saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    parts = jnp.concatenate(bfloat16_parts(dy, 3), axis=-1)
    dkernel = _sum_parts(_pointwise_kernel_gradient(None, x, parts))
    # dx is rounded to bfloat16: products of the two first parts are precise enough.
    (d0, d1), (k0, k1) = bfloat16_parts(dy, 2), bfloat16_parts(kernel, 2)
    factors = jnp.concatenate([d0, d0, d1], axis=-1)
    kernels = _swap_channels(jnp.concatenate([k0, k1, k0], axis=-1))
    return _multiply(factors, kernels, x.dtype), dkernel


_exact_product.defvjp(_exact_product_forward, _exact_product_backward)
