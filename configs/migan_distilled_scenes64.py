"""A small MI-GAN at 64 pixels on drawn scenes, with a guided encoder; needs no data.

As scenes64, but before the adversarial training, an auxiliary network of MI-GAN's
layout learns to reconstruct whole images. Then its features guide those of MI-GAN's
encoder in holes (cross-distillation), as do the encoder's own deeper ones
(self-distillation). The network that is exported is the same.

migan_distilled_scenes64             as described above
migan_distilled_scenes64:completion  with completion blocks in the encoder, too
migan_distilled_scenes64:plain       without guidance, to compare: scenes64

Hardware  Two CPU cores.
Length    14 kimg, 1,750 steps, the first 250 of the auxiliary network.
Expect    Not measured yet; scenes64 reaches 20.3 dB, the mean colour has 14.9 dB.
Command   python -m migan_jax.train --config=migan_distilled_scenes64 --workdir=runs/d
"""

from migan_jax.config import base_config
from migan_jax.errors import UserError

VARIANTS = ("guided", "completion", "plain")


def get_config(variant="guided"):
    if variant not in VARIANTS:
        raise UserError(
            f"migan_distilled_scenes64 has no variant {variant!r}. Choose from "
            f"{', '.join(VARIANTS)}."
        )
    config = base_config()
    config.resolution = 64
    config.batch_size = 8
    config.total_kimg = 14
    config.networks.update({"channel_base": 1024, "channel_max": 128})
    config.networks.dtype = "float32"
    config.losses.l1 = 100.0
    config.optimizer.learning_rate = 4e-3
    config.optimizer.ema_halflife_kimg = 0.3
    config.distillation.update(
        {
            "cross_distillation": variant != "plain",
            "self_distillation": variant != "plain",
            "completion": variant == "completion",
            # One, so that both players take as many steps.
            "unrolled_steps": 1,
            "meta_every": 4,
            "pretraining_kimg": 2.0,
            "meta_delay_kimg": 1.0,
        }
    )
    config.data.update(
        {"mask_kind": "thin_brush", "draw_masks_on": "host", "held_out": 64}
    )
    config.log_every_steps = 50
    config.save_every_steps = 150
    return config
