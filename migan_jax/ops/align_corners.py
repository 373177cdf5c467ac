"""Bilinear resizing that maps corner pixels to corner pixels (DeepGIN's resizing).

Output pixel i of n' samples position i * (n - 1) / (n' - 1) of n pixels, without an
antialiasing filter. `jax.image.resize` aligns the edges of corner pixels instead.
"""

import jax
import jax.numpy as jnp
import numpy as np

from migan_jax.ops.precision import at_least_float32, full_precision


def resize_align_corners(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resize images [N, H, W, C]; for few channels, or to twice the size."""
    for axis, size in ((1, height), (2, width)):
        x = _double(x, axis) if size == 2 * x.shape[axis] else _resize(x, axis, size)
    return x


def _double(x: jax.Array, axis: int) -> jax.Array:
    """Double one axis: each pixel becomes two, mixed with the one before and after."""
    n = x.shape[axis]
    index = jnp.arange(n, dtype=jnp.promote_types(x.dtype, jnp.float32))
    shape = [1] * x.ndim
    shape[axis] = n
    before, after = (w.reshape(shape) / (2 * n - 1) for w in (index, n - 1 - index))
    precise = at_least_float32(x)
    # The pixels beyond the edges have weight 0.
    left, right = (jnp.roll(precise, shift, axis) for shift in (1, -1))
    pair = precise + before * (left - precise), precise + after * (right - precise)
    pair = jnp.stack([half.astype(x.dtype) for half in pair], axis=axis + 1)
    return pair.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


def _resize(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Resize one axis by a matrix product, whose gradient needs no scatter."""
    n = x.shape[axis]
    if size == n:
        return x
    position = np.arange(size) * (n - 1) / max(size - 1, 1)
    # Two neighbours of each position: the others have weight 0.
    weights = np.maximum(1 - np.abs(position[:, None] - np.arange(n)), 0)
    precise = at_least_float32(x)
    y = jnp.tensordot(
        jnp.asarray(weights, precise.dtype),
        precise,
        axes=(1, axis),
        precision=full_precision(precise),
    )
    return jnp.moveaxis(y, 0, axis).astype(x.dtype)
