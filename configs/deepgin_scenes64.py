"""A small DeepGIN at 64 pixels on drawn scenes; needs no data and no accelerator.

A demonstration that trains in minutes: a quarter of the channels, the L1 warm-up, then
adversarial training, without VGG's losses, which would take most of the time. As in
scenes64, holes are thin brush strokes: the paper's three kinds would cover most of such
a small image. Adam has other decays than the paper's, which suit few steps, and there
is an EMA. The argument is a row of the ladder, as in deepgin_celebahq256.

Hardware  Two CPU cores.
Length    12 kimg, 2,000 steps: nine to ten minutes, one of them for compiling.
Expect    A held-out hole PSNR of 17.9 dB; filling with the mean colour has 14.9 dB. It
          continues brightness and broad shapes; colours and textures take longer.
Command   python -m migan_jax.train --config=deepgin_scenes64 --workdir=runs/deepgin
"""

from migan_jax.config import base_config


def get_config(variant="full"):
    config = base_config()
    config.system = "deepgin"
    config.resolution = 64
    config.batch_size = 6
    config.total_kimg = 12
    config.deepgin.update(
        {
            "variant": variant,
            "channels": 16,
            "discriminator_channels": 4,
            "subsampling": 1,  # scenes are drawn at the network's size
            "warmup_kimg": 5.0,
            "decay_kimg": 7.0,
            "perceptual": 0.0,
            "style": 0.0,
        }
    )
    config.optimizer.update(
        {
            "learning_rate": 5e-4,
            "discriminator_learning_rate": 4e-4,
            "b1": 0.9,
            "b2": 0.99,
            "ema_halflife_kimg": 0.5,
        }
    )
    config.networks.dtype = "float32"
    config.data.update({"mask_kind": "thin_brush", "held_out": 64})
    config.log_every_steps = 50
    config.save_every_steps = 250
    return config
