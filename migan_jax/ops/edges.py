"""Edges of images, repeated or reflected; the gradient of `jnp.pad` is slow on CPUs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def pad_edges(x: jax.Array, padding: int) -> jax.Array:
    """Repeat the edges of images [N, H, W, C]."""
    return _pad(x, lambda x, end, axis: _repeat(x, end, axis, padding))


def pad_reflected(x: jax.Array, padding: int) -> jax.Array:
    """Reflect images [N, H, W, C] at their edge pixels, which are not repeated.

    As with `np.pad`, a single pixel is.
    """

    def reflect(x: jax.Array, end: int, axis: int) -> jax.Array:
        length = x.shape[axis]
        if length == 1:
            return _repeat(x, end, axis, padding)
        start = length - 1 - padding if end else 1
        rows = jax.lax.slice_in_dim(x, start, start + padding, axis=axis)
        return jnp.flip(rows, axis)

    return _pad(x, reflect)


def _repeat(x: jax.Array, end: int, axis: int, times: int) -> jax.Array:
    shape = list(x.shape)
    shape[axis] = times
    return jnp.broadcast_to(jax.lax.index_in_dim(x, end, axis), shape)


def _pad(x: jax.Array, extend: Callable[[jax.Array, int, int], jax.Array]) -> jax.Array:
    """Add what `extend` returns for the first (0) and last (-1) end of both axes."""
    for axis in (1, 2):
        x = jnp.concatenate([extend(x, 0, axis), x, extend(x, -1, axis)], axis)
    return x
