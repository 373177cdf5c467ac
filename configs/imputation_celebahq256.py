"""Learnable feature imputation at 256 pixels on CelebA-HQ (Hukkelas et al. 2020).

The default is the paper's final network, row e with 11.5 M parameters. The ladder's
rows a to e and e_conv, which imputation_places256 lists, have half the channels.

Data      27,000 of CelebA-HQ's images:
            python -m migan_jax.prepare celebahq/train datasets/celebahq256 --size=256
Hardware  The paper does not say. `python -m migan_jax.plan` estimates yours.
Length    20,000 kimg, 625,000 steps. The paper does not say; this is that of Places2.
Expect    LPIPS .0522, PSNR 25.29, FID 4.43 with central boxes, .0300, 30.32 and 2.38
          with free-form holes, from the paper. We have not run this recipe to its end.
Command   python -m migan_jax.train --config=imputation_celebahq256 --workdir=runs/imp
"""

from migan_jax.config import base_config, imputation_row


def get_config(variant="final"):
    is_final = variant == "final"
    config = base_config()
    config.system = "imputation"
    config.resolution = 256
    config.total_kimg = 20_000
    config.imputation.update(imputation_row("e" if is_final else variant))
    width = 256 if is_final else 128  # up to 32 pixels
    config.networks.update({"channel_base": 32 * width, "channel_max": width})
    config.optimizer.learning_rate = 1.5e-3 if is_final else 1e-3
    config.optimizer.ema_halflife_kimg = 10.0
    config.data.update(
        {
            "source": "datasets/celebahq256",
            "crop": "whole",
            "mask_kind": "half_box_and_brush",
            "held_out": 64,
        }
    )
    return config
