"""Knowledge distillation from the teacher's pyramid (MI-GAN, section 3.3, eq. 4)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

# Coarser levels are not distilled: four at 256 pixels, five at 512.
LOWEST_RESOLUTION = 32


def distillation_loss(
    student: Mapping[int, jax.Array],
    teacher: Mapping[int, jax.Array],
    mask: jax.Array,
) -> jax.Array:
    """Mean absolute difference inside the hole, summed over levels: [N].

    Args:
      student, teacher: each level's own to-RGB, {resolution: [N, r, r, 3]}.
      mask: [N, R, R, 1], 1 where known; a level takes every (R / r)th pixel of it.

    The mean is over all pixels, of the hole or not, as the reference has it.
    """
    total = jnp.zeros(mask.shape[0], mask.dtype)
    for resolution in sorted(student):
        if resolution < LOWEST_RESOLUTION:
            continue
        step = mask.shape[1] // resolution
        hole = 1 - mask[:, ::step, ::step]
        difference = jnp.abs(student[resolution] - teacher[resolution])
        total += jnp.mean(difference * hole, axis=(1, 2, 3))
    return total
