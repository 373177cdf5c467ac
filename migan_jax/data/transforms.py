"""Random keys per sample, and random flips, on the device.

A sample's key depends on its position in the global batch, so random numbers are the
same however the batch is split over devices and processes.
"""

import jax
import jax.numpy as jnp


def sample_keys(
    key: jax.Array, index: jax.Array | int, samples: jax.Array
) -> jax.Array:
    """Make one key per sample.

    Args:
      index: of the step, or of the use.
      samples: positions in the global batch, [N].
    """
    key = jax.random.fold_in(key, index)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, samples)


def flip(keys: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Flip each sample horizontally with probability 1/2.

    Args:
      keys: one per sample.
      arrays: [N, H, W, C]; a sample's arrays are flipped together.
    """
    flipped = jax.vmap(jax.random.bernoulli)(keys)[:, None, None, None]
    return tuple(jnp.where(flipped, array[:, :, ::-1], array) for array in arrays)
