"""Reconstruction losses, one value per sample."""

from typing import Literal

import jax
import jax.numpy as jnp


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


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2, 3))
