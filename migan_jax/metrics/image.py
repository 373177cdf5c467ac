"""PSNR, SSIM and L1 of pairs of pictures, over all pixels and over the holes alone.

Everything is computed in float64, on the host's processor if JAX may use it: float32
loses the fifth digit of the SSIM of smooth pictures, and figures should not depend on
the accelerator.
"""

from collections.abc import Mapping

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

WHITE = 255.0
# Of SSIM's Gaussian window, as in the paper of 2004: what it reaches over on each side.
MARGIN = 5

# What `image_metrics` returns of each picture.
NAMES = ("psnr", "hole_psnr", "ssim", "hole_ssim", "l1", "hole_l1")


def image_metrics(
    truths: np.ndarray, results: np.ndarray, holes: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Figures of each picture, [N] of each name.

    A figure of the hole is NaN for pictures without one; SSIM is for pictures of less
    than 11 pixels. L1 is a share of the range, 0 to 1. The PSNR of equal pictures is as
    if one value were off by one: infinity has no mean.

    Args:
      truths: uint8, [N, H, W, 3].
      results: the same.
      holes: bool, [N, H, W], True where pixels were not known.
    """
    with jax.enable_x64(True), jax.default_device(_host()):
        figures = _image_metrics(truths, results, holes)
    return {name: np.asarray(figures[name]) for name in NAMES}


def _host() -> jax.Device:
    """A processor, unless JAX was told to use something else alone."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


@jax.jit
def _image_metrics(
    truths: jax.Array, results: jax.Array, holes: jax.Array
) -> dict[str, jax.Array]:
    truths, results = (x.astype(jnp.float64) for x in (truths, results))
    difference = truths - results
    everywhere = jnp.ones_like(holes)
    figures = {}
    for prefix, where in (("", everywhere), ("hole_", holes)):
        figures[f"{prefix}l1"] = _mean(jnp.abs(difference), where) / WHITE
        squares = _mean(difference**2, where)
        least = 1 / (where.sum((1, 2)) * truths.shape[-1])
        error = jnp.maximum(squares, least)
        figures[f"{prefix}psnr"] = 10 * jnp.log10(WHITE**2 / error)
        figures[f"{prefix}ssim"] = _ssim(truths, results, where)
    return figures


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    """Over channels and the pixels that count, [N]; NaN where none does."""
    where = where[..., None]
    count = where.sum((1, 2, 3)) * values.shape[-1]
    return jnp.where(where, values, 0).sum((1, 2, 3)) / count


def _ssim(truths: jax.Array, results: jax.Array, where: jax.Array) -> jax.Array:
    if min(truths.shape[1:3]) <= 2 * MARGIN:
        return jnp.full(len(truths), jnp.nan)
    values = dm_pix.ssim(truths, results, max_val=WHITE, return_map=True)
    return _mean(values, where[:, MARGIN:-MARGIN, MARGIN:-MARGIN])
