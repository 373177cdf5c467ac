"""A small network of learnable feature imputation at 64 pixels on drawn scenes.

A demonstration that trains in minutes: row e with a quarter of the released channels.
As in scenes64, holes are thin brush strokes, since the paper's would cover most of such
a small image. The generator also minimises an L1 loss in holes, which the paper does
without: alone, the discriminator teaches too slowly for so few steps. The argument is a
row of the ladder, as in imputation_places256; rows a to d grow.

Hardware  Two CPU cores.
Length    8 kimg, 1,000 steps: nine minutes, one of them for compiling.
Expect    A held-out hole PSNR of 19.2 dB; filling with the mean colour has 14.9 dB.
          It continues edges and large shapes through strokes; wide strokes have grain.
Command   python -m migan_jax.train --config=imputation_scenes64 --workdir=runs/imp
"""

from migan_jax.config import base_config, imputation_row


def get_config(variant="e"):
    config = base_config()
    config.system = "imputation"
    config.resolution = 64
    config.batch_size = 8
    config.total_kimg = 8
    config.imputation.update(imputation_row(variant))
    config.imputation.phase_kimg = 1.0
    config.networks.update({"channel_base": 1024, "channel_max": 64})
    config.networks.dtype = "float32"
    config.optimizer.update({"learning_rate": 2e-3, "ema_halflife_kimg": 0.3})
    config.losses.l1 = 300.0
    config.data.update(
        {"mask_kind": "thin_brush", "draw_masks_on": "host", "held_out": 64}
    )
    config.log_every_steps = 50
    config.save_every_steps = 150
    return config
