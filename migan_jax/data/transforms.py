"""Random keys per sample, and random flips, on the device.

A sample's key depends on its position in the global batch, so random numbers are the
same however the batch is split over devices and processes.
"""

import jax
import jax.numpy as jnp
import numpy as np

# The order of a mirrored face's seven keypoints: nose, then left and right eye, ear and
# shoulder. Other keypoints keep their order.
MIRRORED_ORDER = np.array([0, 2, 1, 4, 3, 6, 5])


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
    flipped = _draw_flips(keys)[:, None, None, None]
    return tuple(jnp.where(flipped, array[:, :, ::-1], array) for array in arrays)


def flip_points(keys: jax.Array, points: jax.Array) -> jax.Array:
    """Flip keypoints [N, K, 2], x and y in [0, 1], like `flip` with the same keys."""
    mirrored = points.at[..., 0].set(1 - points[..., 0])
    if points.shape[1] == len(MIRRORED_ORDER):
        mirrored = mirrored[:, MIRRORED_ORDER]
    return jnp.where(_draw_flips(keys)[:, None, None], mirrored, points)


def _draw_flips(keys: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.bernoulli)(keys)
