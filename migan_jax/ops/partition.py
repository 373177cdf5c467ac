"""Sharding constraints on a mesh `(data, space)`; no-ops outside of a mesh.

A batch is sharded by samples over `data`, and its images by rows over `space`.
"""

import jax
from jax import lax
from jax.sharding import PartitionSpec

DATA, SPACE = "data", "space"
# Smaller images are not split by rows: exchanging border rows would cost more.
MIN_ROWS = 32


def split_samples(x: jax.Array) -> jax.Array:
    """Shard an array of samples, [N, ...]."""
    return _constrain(x, PartitionSpec(DATA))


def split_images(x: jax.Array) -> jax.Array:
    """Shard images or feature maps, [N, H, W, C]."""
    return _constrain(x, _image_spec(x))


def split_microbatches(x: jax.Array) -> jax.Array:
    """Shard a batch of microbatches, [microbatches, N, ...]."""
    inner = _image_spec(x[0]) if x.ndim == 5 else PartitionSpec(DATA)
    return _constrain(x, PartitionSpec(None, *inner))


def _image_spec(x: jax.Array) -> PartitionSpec:
    spaces = dict(jax.sharding.get_abstract_mesh().shape).get(SPACE, 1)
    rows = x.shape[1]
    if rows < MIN_ROWS or rows % spaces:
        return PartitionSpec(DATA)
    return PartitionSpec(DATA, SPACE)


def _constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return lax.with_sharding_constraint(x, spec)
