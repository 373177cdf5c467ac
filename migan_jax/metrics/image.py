"""PSNR, SSIM and L1 of image pairs, over all pixels and over the holes alone.

Computed in float64, on the CPU if JAX may use it: float32 loses the fifth digit of the
SSIM of smooth images, and metrics should not depend on the accelerator.
"""

from collections.abc import Mapping

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

WHITE = 255.0
SSIM_RADIUS = 5  # pixels, of SSIM's Gaussian window (Wang et al., 2004)

NAMES = ("psnr", "hole_psnr", "ssim", "hole_ssim", "l1", "hole_l1")


def image_metrics(
    truths: np.ndarray, results: np.ndarray, holes: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Return the metrics of each pair by name, [N] each.

    Hole metrics are NaN for images without a hole, SSIM for images below 11 pixels. L1
    is a fraction of the range, 0 to 1. The PSNR of equal images is that of one value
    off by one, since infinity has no mean.

    Args:
      truths: uint8, [N, H, W, 3].
      results: the same.
      holes: bool, [N, H, W], True where pixels were unknown.
    """
    with jax.enable_x64(True), jax.default_device(_cpu()):
        metrics = _image_metrics(truths, results, holes)
    return {name: np.asarray(metrics[name]) for name in NAMES}


def _cpu() -> jax.Device:
    """Return the CPU, or the default device where JAX_PLATFORMS excludes the CPU."""
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
    metrics = {}
    for prefix, where in (("", everywhere), ("hole_", holes)):
        metrics[f"{prefix}l1"] = _mean(jnp.abs(difference), where) / WHITE
        squares = _mean(difference**2, where)
        min_error = 1 / (where.sum((1, 2)) * truths.shape[-1])
        error = jnp.maximum(squares, min_error)
        metrics[f"{prefix}psnr"] = 10 * jnp.log10(WHITE**2 / error)
        metrics[f"{prefix}ssim"] = _ssim(truths, results, where)
    return metrics


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    """Average over channels and the selected pixels, [N]; NaN without any."""
    where = where[..., None]
    count = where.sum((1, 2, 3)) * values.shape[-1]
    return jnp.where(where, values, 0).sum((1, 2, 3)) / count


def _ssim(truths: jax.Array, results: jax.Array, where: jax.Array) -> jax.Array:
    if min(truths.shape[1:3]) <= 2 * SSIM_RADIUS:
        return jnp.full(len(truths), jnp.nan)
    values = dm_pix.ssim(truths, results, max_val=WHITE, return_map=True)
    return _mean(values, where[:, SSIM_RADIUS:-SSIM_RADIUS, SSIM_RADIUS:-SSIM_RADIUS])
