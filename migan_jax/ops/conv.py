"""Convolutions of MI-GAN (section 3.1) and of the StyleGAN2 family (Co-Mod-GAN).

Kernels are [kh, kw, I, O]. Inputs may be half precision while kernels stay float32:
then the kernel is cast to the input's dtype, and its gradient is summed and returned in
float32 (a plain cast would round it, and a data-parallel step would all-reduce halves).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from migan_jax.ops.depthwise import depthwise3x3, depthwise_weight_gradient
from migan_jax.ops.precision import at_least_float32, full_precision, spread_like

# Kernels.


def join_kernels(kernels: jax.Array) -> jax.Array:
    """The one kernel that n re-parametrisation kernels [n, kh, kw, I, O] stand for."""
    return jnp.sum(at_least_float32(kernels), axis=0) * (kernels.shape[0] ** -0.5)


def normalise_kernel(kernel: jax.Array) -> jax.Array:
    """Weight normalisation: every output channel's kernel gets (nearly) unit norm."""
    kernel = at_least_float32(kernel)
    square = jnp.sum(kernel**2, axis=(0, 1, 2), keepdims=True)
    return kernel / jnp.sqrt(square + 1e-8)


# Convolutions whose kernel gradient is at least float32.


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

    The kernel is applied as stored, which is the scatter convention: input pixel i adds
    kernel[k] to output pixel 2i + k.
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
    channels are divided by the norm of the scaled kernel. Both factors are applied to
    activations, so the convolution itself is an ordinary one.
    """
    kernel = at_least_float32(kernel)
    styles = at_least_float32(styles)
    mean_square = jnp.mean(kernel**2, axis=(0, 1, 2), keepdims=True)
    kernel = kernel * lax.rsqrt(mean_square)
    styles = styles * lax.rsqrt(jnp.mean(styles**2))
    power = jnp.sum(kernel**2, axis=(0, 1))  # [I, O]
    squares = jnp.matmul(styles**2, power, precision=full_precision(styles))
    norm = lax.rsqrt(squares + 1e-8)  # [N, O]
    y = convolve(x * spread_like(styles[:, None, None], x), kernel)
    return y * spread_like(norm[:, None, None], y)


def _with_kernel_gradient(
    apply: Callable[[jax.Array, jax.Array], jax.Array],
    kernel_gradient: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Run `apply(x, kernel)` in x's dtype, the kernel's gradient in at least float32.

    The map is linear in both, so with its transpose (in x) it is closed: each one's
    kernel gradient is the same correlation, and any order of derivative keeps it.
    """

    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return apply(x, kernel.astype(x.dtype))

    def run_transposed(x: jax.Array, dy: jax.Array, kernel: jax.Array) -> jax.Array:
        (dx,) = jax.vjp(lambda x: run(x, kernel), x)[1](dy)  # x: only its shape counts
        return dx

    def backward(saved, dy: jax.Array):
        x, kernel = saved
        gradient = kernel_gradient(x, dy).astype(kernel.dtype)
        return transposed(x, dy, kernel), gradient

    def backward_transposed(saved, dx: jax.Array):
        x, dy, kernel = saved
        gradient = kernel_gradient(dx, dy).astype(kernel.dtype)
        return jnp.zeros_like(x), wrapped(dx, kernel), gradient

    wrapped, transposed = jax.custom_vjp(run), jax.custom_vjp(run_transposed)
    wrapped.defvjp(lambda *args: (wrapped(*args), args), backward)
    transposed.defvjp(lambda *args: (transposed(*args), args), backward_transposed)
    return wrapped


def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    contraction = (((3,), (0,)), ((), ()))
    return lax.dot_general(x, kernel[0, 0], contraction, precision=full_precision(x))


def _pointwise_kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    # Flattened, XLA's CPU needs no transposed copy; unflattened, an image that is split
    # over devices by rows stays split.
    product = lax.platform_dependent(x, dy, cpu=_product_of_rows, default=_product)
    return product[None, None]


def _product(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Sum of outer products over all axes but the last, [I, O]."""
    axes = tuple(range(x.ndim - 1))
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    pairs = ((axes, axes), ((), ()))
    return lax.dot_general(
        x,
        dy,
        pairs,
        precision=full_precision(x),
        preferred_element_type=dtype,
    )


def _product_of_rows(x: jax.Array, dy: jax.Array) -> jax.Array:
    return _product(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]))


def _dense(
    kernel_size: int, strides: int, padding: int, dilation: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A dense convolution of given geometry, with its float32 kernel gradient."""

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

    def far_padding(size: int, window: int) -> int:
        """What makes correlating input and output gradient give kernel_size taps."""
        span = (window - 1) * strides + 1
        return kernel_size - 1 + span - ((size - 1) * dilation + 1) - padding

    def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
        # The batch is what is summed over: it takes the place of the input features.
        return lax.conv_general_dilated(
            x,
            dy,
            window_strides=(1, 1),
            padding=[(padding, far_padding(x.shape[i], dy.shape[i])) for i in (1, 2)],
            lhs_dilation=(dilation, dilation),
            rhs_dilation=(strides, strides),
            dimension_numbers=("CHWN", "IHWO", "HWNC"),
            precision=full_precision(x),
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )

    return _with_kernel_gradient(apply, kernel_gradient)


_depthwise = _with_kernel_gradient(depthwise3x3, depthwise_weight_gradient)
_matrix_product = _with_kernel_gradient(_pointwise, _pointwise_kernel_gradient)
