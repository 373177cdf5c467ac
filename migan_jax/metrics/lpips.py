"""LPIPS: perceptual distance of images (Zhang et al., 2018), version 0.1."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from migan_jax.models.vgg import NETWORKS

# ImageNet's mean and standard deviation, for images in [-1, 1].
_SHIFT = np.array([[[[-0.030, -0.088, -0.188]]]], np.float32)
_SCALE = np.array([[[[0.458, 0.448, 0.450]]]], np.float32)


@partial(jax.jit, static_argnums=0)
def lpips(
    name: str,
    variables: Any,
    weights: list[jax.Array],
    truths: jax.Array,
    results: jax.Array,
) -> jax.Array:
    """Return the distance of each pair, [N].

    Args:
      name: alex or vgg.
      variables: of that network.
      weights: channel weights of every tapped layer, [channels] each.
      truths: uint8, [N, H, W, 3].
      results: the same.
    """
    taps = []
    for images in (truths, results):
        x = images.astype(jnp.float32) / 127.5 - 1
        taps.append(NETWORKS[name].apply(variables, (x - _SHIFT) / _SCALE))
    distance = jnp.zeros(len(truths), jnp.float32)
    for truth, result, weight in zip(*taps, weights, strict=True):
        squares = (_normalise(truth) - _normalise(result)) ** 2
        weighted = jnp.sum(squares * weight[None, None, None], axis=-1)
        distance += jnp.mean(weighted, axis=(1, 2))
    return distance


def _normalise(features: jax.Array) -> jax.Array:
    length = jnp.sqrt(jnp.sum(features**2, axis=-1, keepdims=True))
    return features / (length + 1e-10)
