"""The activation of MI-GAN and Co-Mod-GAN: leaky ReLU with gain and clamp."""

import math
from functools import partial

import jax
import jax.numpy as jnp

NEGATIVE_SLOPE = 0.2
CLAMP = 256.0


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def lrelu_agc(x: jax.Array, gain: float = 1.0) -> jax.Array:
    """Leaky ReLU (0.2), times sqrt(2) * gain, clipped to +-256 * gain.

    Its gradient is computed from its output, as in the reference, so that its input
    need not be stored. At 0 it is the negative slope.
    """
    return jnp.clip(_scale(x > 0, x, gain), -CLAMP * gain, CLAMP * gain)


def _scale(is_positive: jax.Array, x: jax.Array, gain: float) -> jax.Array:
    scale = math.sqrt(2.0) * gain
    return jnp.where(is_positive, x * scale, x * (NEGATIVE_SLOPE * scale))


def _forward(x: jax.Array, gain: float) -> tuple[jax.Array, jax.Array]:
    y = lrelu_agc(x, gain)
    return y, y


def _backward(gain: float, y: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(jnp.abs(y) < CLAMP * gain, _scale(y > 0, dy, gain), 0),)


lrelu_agc.defvjp(_forward, _backward)
