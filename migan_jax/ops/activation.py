"""The activation of MI-GAN and Co-Mod-GAN: leaky ReLU with gain and clamp."""

import math

import jax
import jax.numpy as jnp

NEGATIVE_SLOPE = 0.2
CLAMP = 256.0


def lrelu_agc(x: jax.Array, gain: float = 1.0) -> jax.Array:
    """Leaky ReLU (0.2), times sqrt(2) * gain, clipped to +-256 * gain.

    With `where` the gradient at x = 0 is the negative slope, as in PyTorch; with
    `maximum` it would be the mean of both slopes.
    """
    scale = math.sqrt(2.0) * gain
    y = jnp.where(x > 0, x * scale, x * (NEGATIVE_SLOPE * scale))
    return jnp.clip(y, -CLAMP * gain, CLAMP * gain)
