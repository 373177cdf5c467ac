"""Inception features for FID, KID, P-IDS and U-IDS, computed as in pytorch-fid."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from migan_jax.models.inception import SIZE, Inception

# XLA's library for matrix products halves the time on CPUs.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}


def inception_features(variables: Any, images: jax.Array) -> jax.Array:
    """Map uint8 [N, H, W, 3] of any size to float32 [N, 2048].

    Images are resized to 299 pixels by bilinear interpolation without antialiasing, as
    for published results. It skips pixels of larger images.
    """
    return _compiled(jax.default_backend())(variables, images)


@functools.cache
def _compiled(backend: str) -> Callable[[Any, jax.Array], jax.Array]:
    return jax.jit(
        _features, compiler_options=CPU_OPTIONS if backend == "cpu" else None
    )


def _features(variables: Any, images: jax.Array) -> jax.Array:
    x = images.astype(jnp.float32) / 255
    x = jax.image.resize(
        x, (len(x), SIZE, SIZE, 3), "linear", antialias=False, precision="highest"
    )
    return Inception().apply(variables, 2 * x - 1)
