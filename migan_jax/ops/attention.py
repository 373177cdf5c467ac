"""Attention of the pixels of a feature map to others, in blocks of queries.

The scores of n pixels are n * n numbers: 16 GiB for a map of 256 x 256 pixels. Each
query needs only its own row of them, so blocks of queries follow one another, and the
backward pass computes their scores again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from migan_jax.ops.partition import split_like, split_samples
from migan_jax.ops.precision import full_precision

MAX_SCORES = 1 << 22  # per sample; a row of queries may take more


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Return softmax(queries . keys) . values for all queries, without scaling.

    Args:
      queries: [N, H, W, C].
      keys: [N, h, w, C].
      values: [N, h, w, D].
    """
    keys, values = (_share_out(x) for x in (keys, values))

    def attend_block(block: jax.Array) -> jax.Array:
        weights = _attention_weights(block, keys).astype(values.dtype)
        precision = full_precision(block)
        return jnp.einsum("nhwk,nkd->nhwd", weights, values, precision=precision)

    return _map_queries(attend_block, keys.shape[1], queries)


def attention_distance(
    queries: jax.Array,
    keys: jax.Array,
    other_queries: jax.Array,
    other_keys: jax.Array,
) -> jax.Array:
    """Return each query's squared difference of two attentions: [N, H, W, 1].

    That is the sum over keys of the squared differences of softmax(queries . keys).
    """
    keys, other_keys = _share_out(keys), _share_out(other_keys)

    def compare_block(block: jax.Array, other: jax.Array) -> jax.Array:
        difference = _attention_weights(block, keys) - _attention_weights(
            other, other_keys
        )
        return jnp.sum(difference**2, axis=-1, keepdims=True)

    return _map_queries(compare_block, keys.shape[1], queries, other_queries)


def _share_out(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H * W, C], for devices that share out an image's queries."""
    n, h, w, c = x.shape
    return split_samples(x.reshape(n, h * w, c))


def _attention_weights(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Return the weights of keys [N, K, C] for queries: [N, H, W, K], float32."""
    scores = jnp.einsum(
        "nhwc,nkc->nhwk",
        queries,
        keys,
        precision=full_precision(queries),
        preferred_element_type=jnp.promote_types(queries.dtype, jnp.float32),
    )
    return jax.nn.softmax(scores)


def _map_queries(
    function: Callable[..., jax.Array], keys: int, *queries: jax.Array
) -> jax.Array:
    """Run a function of some rows of the queries, [N, rows, W, C], for all rows."""
    n, h, w, _ = queries[0].shape

    @jax.checkpoint
    def run(*blocks: jax.Array) -> jax.Array:
        return function(
            *(split_like(a, b) for a, b in zip(blocks, queries, strict=True))
        )

    # The fewest blocks of equal size that fit; else one for every row.
    counts = (b for b in range(1, h) if h % b == 0 and h * w * keys <= b * MAX_SCORES)
    blocks = next(counts, h)
    if blocks == 1:
        return run(*queries)
    # Every block takes some rows of each device that an image is split over.
    rows = [
        jnp.moveaxis(x.reshape(n, h // blocks, blocks, w, -1), 2, 0) for x in queries
    ]
    results = jnp.moveaxis(jax.lax.map(lambda rows: run(*rows), rows), 0, 2)
    return results.reshape(n, h, w, -1)
