"""Convolutions of MI-GAN (section 3.1) and of the StyleGAN2 family (Co-Mod-GAN).

Kernels are [kh, kw, I, O]. Inputs may be half precision while kernels are float32: the
kernel is cast to the input's dtype, but its gradient is summed and returned in float32.
(A plain cast would round it, and data-parallel training would all-reduce it in half
precision.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from migan_jax.ops.depthwise import depthwise3x3, depthwise_kernel_gradient
from migan_jax.ops.precision import at_least_float32, broadcast_like, full_precision

# Kernels.


def join_kernels(kernels: jax.Array) -> jax.Array:
    """Join n re-parametrisation kernels [n, kh, kw, I, O]: their sum / sqrt(n)."""
    return jnp.sum(at_least_float32(kernels), axis=0) * (kernels.shape[0] ** -0.5)


def normalise_kernel(kernel: jax.Array) -> jax.Array:
    """Normalise the kernel of every output channel to unit norm."""
    kernel = at_least_float32(kernel)
    square = jnp.sum(kernel**2, axis=(0, 1, 2), keepdims=True)
    return kernel / jnp.sqrt(square + 1e-8)


# Convolutions whose kernel gradient is in at least float32.


def conv_depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 depthwise convolution, zero padding 1; kernel [3, 3, 1, C]."""
    return _depthwise(x, kernel)


def conv_pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution as a matrix product; kernel [1, 1, I, O]."""
    return _matrix_product(x, kernel)


def conv(x: jax.Array, kernel: jax.Array, padding: int, strides: int = 1) -> jax.Array:
    """Dense convolution with symmetric zero padding."""
    return _dense(kernel.shape[0], strides, padding, dilation=1)(x, kernel)


def conv_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution, stride 2, no padding: H -> 2H + 1 for a 3x3 kernel.

    The kernel is not flipped (scatter convention): input pixel i adds kernel[k] to
    output pixel 2i + k.
    """
    size = kernel.shape[0]
    scatter = _dense(size, strides=1, padding=size - 1, dilation=2)
    return scatter(x, kernel[::-1, ::-1])


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
    mean_square = jnp.mean(kernel**2, axis=(0, 1, 2), keepdims=True)
    kernel = kernel * lax.rsqrt(mean_square)
    styles = styles * lax.rsqrt(jnp.mean(styles**2))
    power = jnp.sum(kernel**2, axis=(0, 1))  # [I, O]
    squares = jnp.matmul(styles**2, power, precision=full_precision(styles))
    norm = lax.rsqrt(squares + 1e-8)  # [N, O]
    y = convolve(x * broadcast_like(styles[:, None, None], x), kernel)
    return y * broadcast_like(norm[:, None, None], y)


def _with_kernel_gradient(
    apply: Callable[[jax.Array, jax.Array], jax.Array],
    kernel_gradient: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Run `apply(x, kernel)` in x's dtype, its kernel gradient in at least float32.

    `apply` is bilinear. It and its transpose (in x) have the same kernel gradient and
    are each other's derivatives in x, so derivatives of any order keep this precision.
    """

    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return apply(x, kernel.astype(x.dtype))

    def run_transposed(x: jax.Array, dy: jax.Array, kernel: jax.Array) -> jax.Array:
        (dx,) = jax.vjp(lambda x: run(x, kernel), x)[1](dy)  # only x's shape matters
        return dx

    def backward(saved, dy: jax.Array):
        x, kernel = saved
        gradient = kernel_gradient(x, dy).astype(kernel.dtype)
        return transposed(x, dy, kernel), gradient

    def backward_transposed(saved, dx: jax.Array):
        x, dy, kernel = saved
        gradient = kernel_gradient(dx, dy).astype(kernel.dtype)
        return jnp.zeros_like(x), convolve(dx, kernel), gradient

    convolve, transposed = jax.custom_vjp(run), jax.custom_vjp(run_transposed)
    convolve.defvjp(lambda *args: (convolve(*args), args), backward)
    transposed.defvjp(lambda *args: (transposed(*args), args), backward_transposed)
    return convolve


def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    contraction = (((3,), (0,)), ((), ()))
    return lax.dot_general(x, kernel[0, 0], contraction, precision=full_precision(x))


def _pointwise_kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
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


def _dense(
    kernel_size: int, strides: int, padding: int, dilation: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Make a dense convolution of this geometry, with a float32 kernel gradient."""

    def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(strides, strides),
            padding=((padding, padding), (padding, padding)),
            lhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=full_precision(x),
        )

    def end_padding(size: int, window: int) -> int:
        """Padding at the end with which the kernel gradient has kernel_size taps."""
        span = (window - 1) * strides + 1
        return kernel_size - 1 + span - ((size - 1) * dilation + 1) - padding

    def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
        # The gradient sums over the batch, which takes the role of input channels.
        return lax.conv_general_dilated(
            x,
            dy,
            window_strides=(1, 1),
            padding=[(padding, end_padding(x.shape[i], dy.shape[i])) for i in (1, 2)],
            lhs_dilation=(dilation, dilation),
            rhs_dilation=(strides, strides),
            dimension_numbers=("CHWN", "IHWO", "HWNC"),
            precision=full_precision(x),
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )

    return _with_kernel_gradient(apply, kernel_gradient)


_depthwise = _with_kernel_gradient(depthwise3x3, depthwise_kernel_gradient)
_matrix_product = _with_kernel_gradient(_pointwise, _pointwise_kernel_gradient)
