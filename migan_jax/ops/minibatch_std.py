"""Minibatch standard deviation (Karras et al. 2018, section 3), grouped by stride."""

import jax
import jax.numpy as jnp
from jax import lax

from migan_jax.ops.precision import at_least_float32

GROUP_SIZE = 4


@jax.named_scope("batch_statistics")
def append_minibatch_std(x: jax.Array, batches: int = 1) -> jax.Array:
    """Append one channel, the mean deviation of each sample's group: [N, H, W, C + 1].

    Sample i is grouped with the samples congruent to i modulo N / group, as in the
    reference. A group has GROUP_SIZE samples, or the whole batch if that is smaller.
    Several batches whose samples take turns have the groups that each would have.
    """
    n, h, w, c = x.shape
    group = min(GROUP_SIZE, n // batches)
    if n % group:
        raise ValueError(
            f"The discriminator cannot split a batch of {n} into groups: use a batch "
            f"size that is a multiple of {group}."
        )
    # The barrier keeps XLA from adding half-precision samples of several devices.
    wide = lax.optimization_barrier(at_least_float32(x))
    grouped = wide.reshape(group, n // group, h, w, c)
    std = jnp.mean(
        jnp.sqrt(jnp.var(grouped, axis=0) + 1e-8), axis=(1, 2, 3)
    )  # [N / group]
    channel = jnp.tile(std, group)[:, None, None, None]
    channel = jnp.broadcast_to(channel, (n, h, w, 1)).astype(x.dtype)
    return jnp.concatenate([x, channel], axis=-1)
