"""Features of pictures for FID, KID, P-IDS and U-IDS, as pytorch-fid prepares them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from migan_jax.models.inception import SIZE, Inception

# XLA's library for products of matrices, which on CPUs takes half the time.
ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}


def inception_features(variables: Any, pictures: jax.Array) -> jax.Array:
    """Uint8 [N, H, W, 3] of any size -> float32 [N, 2048].

    Pictures are brought to 299 pixels by bilinear interpolation between the four
    nearest ones. That skips pixels of larger pictures; published figures are so.
    """
    return _compiled(jax.default_backend())(variables, pictures)


@functools.cache
def _compiled(backend: str) -> Callable[[Any, jax.Array], jax.Array]:
    return jax.jit(_features, compiler_options=ON_CPU if backend == "cpu" else None)


def _features(variables: Any, pictures: jax.Array) -> jax.Array:
    x = pictures.astype(jnp.float32) / 255
    x = jax.image.resize(
        x, (len(x), SIZE, SIZE, 3), "linear", antialias=False, precision="highest"
    )
    return Inception().apply(variables, 2 * x - 1)
