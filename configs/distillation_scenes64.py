"""A small distillation-guided network at 64 pixels on drawn scenes; needs no data.

A demonstration that trains in minutes, without accelerator: a quarter of the channels,
the auxiliary network first, then guidance with exact hypergradients. It has no style
loss, since VGG would take most of the time, and no adversary. As in scenes64, holes are
thin brush strokes. The argument is a row of the ladder, as in distillation_places256.

Hardware  Two CPU cores.
Length    6 kimg, 1,500 steps, the first 200 of the auxiliary network: 15 minutes.
Expect    18.5 dB in held-out holes; filling with the mean colour has 14.9 dB. Fills are
          soft, and often grey.
Command   python -m migan_jax.train --config=distillation_scenes64 --workdir=runs/guided
"""

from migan_jax.config import base_config, distillation_row


def get_config(variant="net8"):
    config = base_config()
    config.system = "distillation"
    config.resolution = 64
    config.batch_size = 4
    config.total_kimg = 6
    config.distillation.update(distillation_row(variant))
    config.distillation.update(
        {
            "channels": 16,
            "initial": "he",  # 0.02 would be little for so few channels
            "style": 0.0,
            "adversarial": 0.0,
            "confidence_size": 17,  # a quarter of the size, as the paper's
            "pretraining_kimg": 0.8,
            "meta_every": 16,
            "meta_delay_kimg": 0.4,
        }
    )
    config.optimizer.update(
        # At 1e-3, a network's first steps can saturate its output for good.
        {"learning_rate": 3e-4, "b1": 0.9, "b2": 0.99, "ema_halflife_kimg": 0.5}
    )
    config.networks.dtype = "float32"
    config.data.update({"mask_kind": "thin_brush", "held_out": 64})
    config.log_every_steps = 50
    config.save_every_steps = 250
    return config
