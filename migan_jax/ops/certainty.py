"""Certainties of feature maps: [N, H, W], at least float32 (Hukkelas et al. 2020).

Without an axis for one channel, which a TPU would pad to 128.
"""

import jax
import jax.numpy as jnp

from migan_jax.ops.depthwise import depthwise
from migan_jax.ops.precision import broadcast_like
from migan_jax.ops.resample import pad_images


def weigh(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Multiply all channels of [N, H, W, C] by one weight per pixel, [N, H, W]."""
    return x * broadcast_like(weights[..., None], x)


def mean_in_window(certainty: jax.Array, size: int) -> jax.Array:
    """Average over windows of size x size, with zeros beyond the image."""
    padded = pad_images(certainty, size // 2)
    _, h, w = certainty.shape
    rows = sum(padded[:, i : i + h] for i in range(size))
    return sum(rows[:, :, j : j + w] for j in range(size)) / size**2


def convolve_certainty(certainty: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve with a kernel [K, K, 1, 1], zero padding."""
    size = len(kernel)
    padded = pad_images(certainty, size // 2)
    _, h, w = certainty.shape
    return sum(
        kernel[i, j, 0, 0] * padded[:, i : i + h, j : j + w]
        for i in range(size)
        for j in range(size)
    )


def impute(
    x: jax.Array,
    certainty: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    epsilon: float,
) -> jax.Array:
    """Replace uncertain features by estimates from the certain ones around them.

    The estimate is a depthwise convolution of x * certainty, divided by the mean
    certainty plus epsilon (equation 4): certainty * x + (1 - certainty) * estimate.
    With an epsilon of 0, it is 0 where nothing is certain.
    """
    estimate = depthwise(weigh(x, certainty), kernel)
    if bias is not None:
        estimate += broadcast_like(bias[None, None, None], estimate)
    support = mean_in_window(certainty, len(kernel)) + epsilon
    support = jnp.where(support > 0, support, 1)
    return weigh(x, certainty) + weigh(estimate, (1 - certainty) / support)
