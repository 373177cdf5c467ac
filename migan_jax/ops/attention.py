"""Self-attention between all pixels of a feature map, in blocks of queries.

The scores of n pixels are n * n numbers: 16 GiB for a map of 256 x 256 pixels. Each
query needs only its own row of them, so blocks of queries follow one another, and the
backward pass computes their scores again.
"""

import jax
import jax.numpy as jnp

from migan_jax.ops.partition import split_like, split_samples
from migan_jax.ops.precision import full_precision

MAX_SCORES = 1 << 22  # per sample; a row of queries may take more


def attend(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Return softmax(queries . keys) . values for all pixels, without scaling.

    Args:
      queries, keys: [N, H, W, C].
      values: [N, H, W, D].
    """
    n, h, w, c = queries.shape
    whole = queries
    # Devices that share an image share out its queries.
    keys, values = (split_samples(x.reshape(n, h * w, -1)) for x in (keys, values))

    @jax.checkpoint
    def attend_block(queries: jax.Array) -> jax.Array:
        """Attend from rows of queries, [N, rows, W, C]."""
        queries = split_like(queries, whole)
        precision = full_precision(queries)
        precise = jnp.promote_types(queries.dtype, jnp.float32)
        scores = jnp.einsum(
            "nhwc,nkc->nhwk",
            queries,
            keys,
            precision=precision,
            preferred_element_type=precise,
        )
        weights = jax.nn.softmax(scores).astype(values.dtype)
        return jnp.einsum("nhwk,nkd->nhwd", weights, values, precision=precision)

    divisors = (b for b in range(1, h + 1) if h % b == 0)
    blocks = next((b for b in divisors if _fits(h // b * w, h * w)), h)
    if blocks == 1:
        return attend_block(queries)
    # Every block takes some rows of each device that an image is split over.
    rows = jnp.moveaxis(queries.reshape(n, h // blocks, blocks, w, c), 2, 0)
    attended = jnp.moveaxis(jax.lax.map(attend_block, rows), 0, 2)
    return attended.reshape(n, h, w, -1)


def _fits(queries: int, keys: int) -> bool:
    return queries * keys <= MAX_SCORES
