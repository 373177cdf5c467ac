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
    # Devices that share an image share out its queries.
    keys, values = (split_samples(x.reshape(n, h * w, -1)) for x in (keys, values))

    @jax.checkpoint
    def attend_block(block: jax.Array) -> jax.Array:
        """Attend from some rows of the queries, [N, rows, W, C]."""
        precision = full_precision(block)
        precise = jnp.promote_types(block.dtype, jnp.float32)
        scores = jnp.einsum(
            "nhwc,nkc->nhwk",
            split_like(block, queries),
            keys,
            precision=precision,
            preferred_element_type=precise,
        )
        weights = jax.nn.softmax(scores).astype(values.dtype)
        return jnp.einsum("nhwk,nkd->nhwd", weights, values, precision=precision)

    # The fewest blocks of equal size that fit; else one for every row.
    counts = (b for b in range(1, h) if h % b == 0 and (h * w) ** 2 <= b * MAX_SCORES)
    blocks = next(counts, h)
    if blocks == 1:
        return attend_block(queries)
    # Every block takes some rows of each device that an image is split over.
    rows = jnp.moveaxis(queries.reshape(n, h // blocks, blocks, w, c), 2, 0)
    attended = jnp.moveaxis(jax.lax.map(attend_block, rows), 0, 2)
    return attended.reshape(n, h, w, -1)
