"""Reconstruction losses."""

import jax
import jax.numpy as jnp


def l1_in_hole(completion: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the absolute difference in holes, averaged over all pixels: [N]."""
    return jnp.mean(jnp.abs(completion - truth) * (1 - mask), axis=(1, 2, 3))
