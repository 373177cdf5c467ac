"""Edges of images, repeated or reflected; the gradient of `jnp.pad` is slow on CPUs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def pad_edges(x: jax.Array, padding: int) -> jax.Array:
    """Replicate the edges of images [N, H, W, C]."""

    def repeat(x: jax.Array, end: int, axis: int) -> jax.Array:
        shape = list(x.shape)
        shape[axis] = padding
        return jnp.broadcast_to(jax.lax.index_in_dim(x, end, axis), shape)

    return _pad(
        x, lambda x, axis: repeat(x, 0, axis), lambda x, axis: repeat(x, -1, axis)
    )


def pad_reflected(x: jax.Array, padding: int) -> jax.Array:
    """Reflect images [N, H, W, C] at their edge pixels, which are not repeated."""

    def reflect(x: jax.Array, start: int, axis: int) -> jax.Array:
        rows = jax.lax.slice_in_dim(x, start, start + padding, axis=axis)
        return jnp.flip(rows, axis)

    def after(x: jax.Array, axis: int) -> jax.Array:
        return reflect(x, x.shape[axis] - 1 - padding, axis)

    return _pad(x, lambda x, axis: reflect(x, 1, axis), after)


def _pad(
    x: jax.Array,
    before: Callable[[jax.Array, int], jax.Array],
    after: Callable[[jax.Array, int], jax.Array],
) -> jax.Array:
    for axis in (1, 2):
        x = jnp.concatenate([before(x, axis), x, after(x, axis)], axis)
    return x
