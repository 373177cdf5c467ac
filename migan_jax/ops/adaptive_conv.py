"""Adaptive convolution: each pixel has its own taps (Suin et al. 2021, equation 6)."""

import itertools
import math

import jax
import jax.numpy as jnp

from migan_jax.ops.partition import split_images, split_samples
from migan_jax.ops.precision import at_least_float32


def adaptive_conv(x: jax.Array, weights: jax.Array, offsets: jax.Array) -> jax.Array:
    """Return the sum over K * K taps of weight * x(pixel + tap + offset).

    All channels share weights and offsets. Between pixels x is bilinear, and outside
    of the image it is 0. Both derivatives exist but where positions are whole numbers.

    Args:
      x: [N, H, W, C].
      weights: [N, H, W, K * K], in the order of rows of the window.
      offsets: [N, H, W, 2 * K * K], alternately down and right, in pixels.
    """
    n, h, w, c = x.shape
    taps = weights.shape[-1]
    size = math.isqrt(taps)
    # Devices that share an image share out its output, but each reads all of it.
    pixels = split_samples(x.reshape(n, h * w, c))
    # Half precision could not tell positions apart.
    weights, offsets = (at_least_float32(a) for a in (weights, offsets))
    dtype = offsets.dtype
    reach = jnp.arange(size, dtype=dtype) - size // 2
    window = jnp.stack(jnp.meshgrid(reach, reach, indexing="ij"), -1).reshape(taps, 2)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), -1)
    grid = grid.astype(dtype)[None]

    # Taps follow one another, and the backward pass reads their pixels again.
    @jax.checkpoint
    def read(pixels: jax.Array, weight: jax.Array, offset: jax.Array) -> jax.Array:
        """Return one tap's term, given its whole offset [N, H, W, 2]."""
        position = grid + offset
        first = jnp.floor(jax.lax.stop_gradient(position))
        after = position - first
        shares = 1 - after, after  # of the pixels before and after, on both axes
        term = jnp.zeros((n, h, w, c), dtype)
        for down, right in itertools.product((0, 1), repeat=2):
            row, column = first[..., 0] + down, first[..., 1] + right
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            index = jnp.clip(row, 0, h - 1) * w + jnp.clip(column, 0, w - 1)
            index = index.astype(jnp.int32).reshape(n, h * w)
            value = jax.vmap(lambda image, at: image[at])(pixels, index)
            share = weight * inside * shares[down][..., 0] * shares[right][..., 1]
            term += split_images(value.reshape(n, h, w, c)) * share[..., None]
        return term

    def add(total: jax.Array, tap: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + read(pixels, *tap), None

    offsets = offsets.reshape(n, h, w, taps, 2) + window[None, None, None]
    weights, offsets = jnp.moveaxis(weights, -1, 0), jnp.moveaxis(offsets, 3, 0)
    total = split_images(jnp.zeros((n, h, w, c), dtype))
    total, _ = jax.lax.scan(add, total, (weights, offsets))
    return total.astype(x.dtype)
