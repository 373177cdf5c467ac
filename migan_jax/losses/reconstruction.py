"""Distances between a completion and the truth."""

import jax
import jax.numpy as jnp


def l1_in_hole(completion: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean absolute difference over all pixels, of which only holes count: [N]."""
    return jnp.mean(jnp.abs(completion - truth) * (1 - mask), axis=(1, 2, 3))
