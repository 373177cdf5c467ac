"""A small distillation-guided network at 64 pixels on drawn scenes; needs no data.

A demonstration that trains in minutes, without accelerator: a quarter of the channels,
the auxiliary network first, then guidance with exact hypergradients. It has no style
loss, since VGG would take most of the time, and no adversary. As in scenes64, holes are
thin brush strokes. The argument is a row of the ladder, as in distillation_places256.

Hardware  Two CPU cores.
Length    7 kimg, 875 steps, the first 250 of the auxiliary network: about 20 minutes.
Expect    Not run to its end at this rate yet. After 280 steps, net3 had 16.4 dB in the
          holes it was trained on; filling with the mean colour has 14.9 dB.
Command   python -m migan_jax.train --config=distillation_scenes64 --workdir=runs/guided
"""

from migan_jax.config import base_config, distillation_row


def get_config(variant="net8"):
    config = base_config()
    config.system = "distillation"
    config.resolution = 64
    config.batch_size = 8
    config.total_kimg = 7
    config.distillation.update(distillation_row(variant))
    config.distillation.update(
        {
            "channels": 16,
            "initial": "he",  # 0.02 would be little for so few channels
            "style": 0.0,
            "adversarial": 0.0,
            "confidence_size": 17,  # a quarter of the size, as the paper's
            "pretraining_kimg": 2.0,
            "meta_every": 8,
            "meta_delay_kimg": 1.0,
        }
    )
    config.optimizer.update(
        # At 1e-3, the first steps saturate the output, and nothing is learnt.
        {"learning_rate": 3e-4, "b1": 0.9, "b2": 0.99, "ema_halflife_kimg": 0.5}
    )
    config.networks.dtype = "float32"
    config.data.update({"mask_kind": "thin_brush", "held_out": 64})
    config.log_every_steps = 25
    config.save_every_steps = 125
    return config
