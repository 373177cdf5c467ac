"""What is done to a batch on the device: a key for each sample, and flips.

A sample's key is that of its place in the global batch, so that a batch that is split
over devices or processes draws what the whole batch would.
"""

import jax
import jax.numpy as jnp


def sample_keys(
    key: jax.Array, number: jax.Array | int, samples: jax.Array
) -> jax.Array:
    """One key for each of `samples`, which are places in the global batch, [N].

    `number` is a step's, or a use's.
    """
    key = jax.random.fold_in(key, number)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, samples)


def flip(keys: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Mirror each sample or not, left to right, with even chances.

    Args:
      keys: one for each sample.
      arrays: [N, H, W, C], of which a sample's are mirrored together.
    """
    mirrored = jax.vmap(jax.random.bernoulli)(keys)[:, None, None, None]
    return tuple(jnp.where(mirrored, array[:, :, ::-1], array) for array in arrays)
