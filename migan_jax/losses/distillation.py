"""Knowledge distillation, in holes only: of images, of features and of attention.

MI-GAN (section 3.3, equation 4) learns from its teacher's pyramid of images;
distillation-guided inpainting (Suin et al., ICCV 2021, equations 2, 3 and 9) from the
features and the attention of a network that sees the truth.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from migan_jax.ops.precision import at_least_float32

# Lower levels are not distilled. This leaves four levels at 256 pixels, five at 512.
MIN_DISTILLED_RESOLUTION = 32


def distillation_loss(
    student: Mapping[int, jax.Array], teacher: Mapping[int, jax.Array], mask: jax.Array
) -> jax.Array:
    """Return the mean absolute difference in the hole, summed over levels: [N].

    Args:
      student, teacher: to-RGB outputs by level, {resolution: [N, r, r, 3]}.
      mask: [N, R, R, 1], 1 where known; level r uses every (R / r)-th pixel.

    The mean is over all pixels, known ones included, as in the reference.
    """
    total = jnp.zeros(mask.shape[0], mask.dtype)
    for resolution in sorted(student):
        if resolution < MIN_DISTILLED_RESOLUTION:
            continue
        step = mask.shape[1] // resolution
        hole = 1 - mask[:, ::step, ::step]
        difference = jnp.abs(student[resolution] - teacher[resolution])
        total += jnp.mean(difference * hole, axis=(1, 2, 3))
    return total


# Of features and attention (Suin et al., ICCV 2021). How terms are averaged is ours.

Reduction = Literal["pixels", "holes", "sum"]


def feature_distance(
    features: jax.Array,
    target: jax.Array,
    weights: jax.Array,
    hole: jax.Array,
    reduction: Reduction = "pixels",
) -> jax.Array:
    """Return the weighted squared distance of features in holes (equations 2 and 3).

    Args:
      features, target: [N, h, w, C].
      weights: [N, C], of the channels, which are summed.
      hole: [N, h, w, 1], 1 in holes.
      reduction: average over all "pixels", over those of each image's "holes", or take
        the "sum" over pixels; then average over images.
    """
    features, target = at_least_float32(features), at_least_float32(target)
    squares = (features - target) ** 2 * weights[:, None, None] * hole
    if reduction == "holes":
        pixels = jnp.sum(hole, axis=(1, 2, 3))
        return jnp.mean(jnp.sum(squares, axis=(1, 2, 3)) / jnp.maximum(pixels, 1))
    total = jnp.sum(squares) / len(hole)
    return total if reduction == "sum" else total / hole[0].size


def attention_transfer(
    distance: jax.Array,
    importance: jax.Array,
    hole: jax.Array,
    reduction: Reduction = "holes",
) -> jax.Array:
    """Return the weighted distance of attentions in holes (equation 9).

    Args:
      distance: [N, h, w, 1], each pixel's squared difference of both attentions.
      importance: [N, h, w, 1], its weight.
      hole, reduction: as in `feature_distance`, but all "holes" together.
    """
    total = jnp.sum(at_least_float32(importance * distance) * hole)
    if reduction == "holes":
        return total / jnp.maximum(jnp.sum(hole), 1)
    return total / (len(hole) if reduction == "sum" else hole.size)
