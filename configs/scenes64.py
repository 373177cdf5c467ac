"""A small MI-GAN at 64 pixels on drawn scenes; needs no data and no accelerator.

A demonstration that trains in minutes. Holes are thin brush strokes: the paper's
strokes have a fixed width and would cover most of such a small image. The generator
also minimises an L1 loss in holes (Co-Mod-GAN's optional term). Batches are small: with
the same number of images, twice the steps gained a third of a decibel.

scenes64              as described above
scenes64:baseline     the paper's losses only: one kernel per convolution, no teacher
scenes64:reparam      nine kernels, no teacher
scenes64:reparam_kd   nine kernels, and a teacher in runs/scenes_teacher
scenes64:teacher      that teacher, a small Co-Mod-GAN with the L1 loss

Hardware  Two CPU cores.
Length    12 kimg, 1,500 steps: four to seven minutes, one of them for compiling.
Expect    A held-out hole PSNR of 20.3 dB; filling with the mean colour has 14.9 dB. It
          continues lines and textures through strokes; wide strokes are slightly grey.
Command   python -m migan_jax.train --config=scenes64 --workdir=runs/scenes
"""

from migan_jax.config import base_config
from migan_jax.errors import UserError

VARIANTS = ("l1", "baseline", "reparam", "reparam_kd", "teacher")


def get_config(variant="l1"):
    if variant not in VARIANTS:
        raise UserError(
            f"scenes64 has no variant {variant!r}. Choose from {', '.join(VARIANTS)}."
        )
    config = base_config()
    config.resolution = 64
    config.batch_size = 8
    config.total_kimg = 12
    config.networks.update({"channel_base": 1024, "channel_max": 128})
    config.networks.dtype = "float32"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.ema_halflife_kimg = 0.3
    config.data.mask_kind = "thin_brush"
    config.data.draw_masks_on = "host"
    config.data.held_out = 64
    config.log_every_steps = 50
    config.save_every_steps = 150
    if variant in ("l1", "teacher"):
        config.losses.l1 = 100.0
    if variant == "baseline":
        config.reparam.kernels = 1
    if variant == "reparam_kd":
        config.teacher = "runs/scenes_teacher"
    if variant == "teacher":
        config.system = "comodgan"
        config.comodgan.update({"z_dim": 64, "w_dim": 64, "encoder_dim": 64})
    return config
