"""Losses of a classifier's features: perceptual and style (DeepGIN, section 3.4).

Each takes the features of a completion and of the truth, a list of [N, h, w, C], and
returns one value per sample. The paper and its code differ: in the code, deeper layers
have larger weights (`CODE_WEIGHTS`), and the style loss squares differences.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from migan_jax.ops.precision import at_least_float32, full_precision

Form = Literal["paper", "code"]
FeatureMaps = Sequence[jax.Array]

CODE_WEIGHTS = 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0


def perceptual_loss(features: FeatureMaps, truth: FeatureMaps, form: Form) -> jax.Array:
    """Return the mean absolute differences of features, summed over layers: [N]."""
    differences = [
        jnp.mean(jnp.abs(at_least_float32(a) - at_least_float32(b)), axis=(1, 2, 3))
        for a, b in zip(features, truth, strict=True)
    ]
    return _sum_over_layers(differences, form)


def style_loss(features: FeatureMaps, truth: FeatureMaps, form: Form) -> jax.Array:
    """Return the mean differences of Gram matrices, summed over layers: [N]."""
    change = jnp.abs if form == "paper" else jnp.square
    differences = [
        jnp.mean(change(gram_matrix(a) - gram_matrix(b)), axis=(1, 2))
        for a, b in zip(features, truth, strict=True)
    ]
    return _sum_over_layers(differences, form)


def style_l1(features: FeatureMaps, truth: FeatureMaps, fold_batch: bool) -> jax.Array:
    """Return the mean absolute differences of Gram matrices: a scalar (Suin et al.).

    Each layer has half the weight of the one before. With `fold_batch`, channels are
    also multiplied with those of the batch's other images, as in Chang et al.'s code.
    """
    total = jnp.zeros((), jnp.float32)
    for layer, maps in enumerate(zip(features, truth, strict=True), 1):
        ours, theirs = (gram_matrix(_fold(x) if fold_batch else x) for x in maps)
        total += jnp.mean(jnp.abs(ours - theirs)) / 2**layer
    return total


def _fold(x: jax.Array) -> jax.Array:
    """Turn a batch into channels of one image: [N, h, w, C] -> [1, h, w, N * C]."""
    n, h, w, c = x.shape
    return x.transpose(1, 2, 0, 3).reshape(1, h, w, n * c)


def gram_matrix(features: jax.Array) -> jax.Array:
    """Return the products of all pairs of channels, averaged: [N, C, C]."""
    features = at_least_float32(features)
    _, h, w, c = features.shape
    products = jnp.einsum(
        "nhwc,nhwd->ncd", features, features, precision=full_precision(features)
    )
    return products / (c * h * w)


def _sum_over_layers(values: list[jax.Array], form: Form) -> jax.Array:
    weights = CODE_WEIGHTS if form == "code" else [1.0] * len(values)
    return sum(w * value for w, value in zip(weights, values, strict=True))
