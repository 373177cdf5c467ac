"""Which device computes what, where the program runs on a mesh `(data, space)`.

A batch is split by samples over `data` and its images by rows over `space`. Outside of
a mesh nothing here does anything.
"""

import jax
from jax import lax
from jax.sharding import PartitionSpec

DATA, SPACE = "data", "space"
# Images of fewer rows are not split: their neighbours' rows would cost more than they.
FEWEST_ROWS = 32


def split_samples(x: jax.Array) -> jax.Array:
    """An array of samples, [N, ...]."""
    return _placed(x, PartitionSpec(DATA))


def split_images(x: jax.Array) -> jax.Array:
    """Images or maps of features, [N, H, W, C]."""
    return _placed(x, _spec_of_images(x))


def split_parts(x: jax.Array) -> jax.Array:
    """A batch in parts that are used in turns, [parts, N, ...]."""
    inner = _spec_of_images(x[0]) if x.ndim == 5 else PartitionSpec(DATA)
    return _placed(x, PartitionSpec(None, *inner))


def _spec_of_images(x: jax.Array) -> PartitionSpec:
    spaces = dict(jax.sharding.get_abstract_mesh().shape).get(SPACE, 1)
    rows = x.shape[1]
    if rows < FEWEST_ROWS or rows % spaces:
        return PartitionSpec(DATA)
    return PartitionSpec(DATA, SPACE)


def _placed(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return lax.with_sharding_constraint(x, spec)
