"""Reconstruction losses, one value per sample."""

from typing import Literal

import jax
import jax.numpy as jnp

from migan_jax.ops.edges import pad_reflected


def l1_in_hole(completion: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the absolute difference in holes, averaged over all pixels: [N]."""
    return _mean(jnp.abs(completion - truth) * (1 - mask))


def weighted_l1(
    completion: jax.Array, truth: jax.Array, mask: jax.Array, hole_weight: float
) -> jax.Array:
    """Return the absolute difference with another weight in holes, [N] (DeepGIN).

    Args:
      mask: [N, H, W, 1], 1 where known; it may be soft.
    """
    difference = jnp.abs(completion - truth)
    return hole_weight * _mean(difference * (1 - mask)) + _mean(difference * mask)


def total_variation(x: jax.Array, form: Literal["paper", "code"]) -> jax.Array:
    """Return the difference of neighbouring pixels, [N] (DeepGIN, section 3.4).

    The paper has mean absolute differences, its code twice the mean squares.
    """
    change = jnp.abs if form == "paper" else lambda x: 2 * x**2
    down, right = x[:, 1:] - x[:, :-1], x[:, :, 1:] - x[:, :, :-1]
    return _mean(change(down)) + _mean(change(right))


CONFIDENCE_STEPS = 7


def confidence(hole: jax.Array, size: int = 65) -> jax.Array:
    """Return how well known pixels determine each pixel of a hole, [N, H, W, 1].

    (GMCNN, Wang et al. 2018.) It is high at the hole's border, low inside, and 0
    outside. In each step, a pixel of the hole gets the mean of a box around it, where
    known pixels count 1. GMCNN's Gaussian kernel is so wide that it is a box, too.
    """
    hole = jax.lax.stop_gradient(hole)
    known = 1 - hole
    trust = jnp.zeros_like(hole)
    for _ in range(CONFIDENCE_STEPS):
        x = pad_reflected(trust + known, size // 2)
        for window in ((1, size, 1, 1), (1, 1, size, 1)):
            x = jax.lax.reduce_window(
                x, 0.0, jax.lax.add, window, (1, 1, 1, 1), "VALID"
            )
        trust = x / size**2 * hole
    return trust


def spatially_varying_l1(
    output: jax.Array,
    truth: jax.Array,
    hole: jax.Array,
    trust: jax.Array,
    hole_weight: float,
    valid_weight: float,
) -> jax.Array:
    """Return the absolute difference, in holes times `trust`: a scalar (GMCNN).

    Args:
      hole: [N, H, W, 1], 1 in holes.
      trust: [N, H, W, 1], their `confidence`.
    """
    difference = jnp.abs(output - truth)

    def mean(weights: jax.Array, region: jax.Array) -> jax.Array:
        pixels = jnp.maximum(jnp.sum(region), 1)
        return jnp.sum(difference * weights) / (pixels * output.shape[-1])

    known = 1 - hole
    return hole_weight * mean(trust, hole) + valid_weight * mean(known, known)


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2, 3))
