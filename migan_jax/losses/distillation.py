"""Knowledge distillation from the teacher's pyramid (MI-GAN, section 3.3, eq. 4)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

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
