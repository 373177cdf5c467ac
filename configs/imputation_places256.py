"""Learnable feature imputation at 256 pixels on Places2 (Hukkelas et al. 2020).

The default is the paper's final network, row e with 11.5 M parameters. The rows of its
Table 1 have half the channels:

  variant  adds                                                 LPIPS  PSNR   FID
  a        plain convolutions, the standard gradient penalty    did not converge
  b        the penalty in holes; known pixels are pasted        .1619  20.99  7.96
  c        (for faces with keypoints; here the same as b)
  d        imputed convolutions                                 .1563  21.21  6.81
  e        no growth, sums of all levels, shortcuts             .1491  21.42  5.24
  e_conv   e with plain convolutions

Rows a to d grow from 8 pixels to 256 in 12,000 kimg, with batches of up to 256.

Data      Places2's training images; ones with a shorter side below 256 are enlarged.
            python -m migan_jax.prepare places2/train datasets/places256 --size=256
Hardware  The paper does not say. `python -m migan_jax.plan` estimates yours.
Length    20,000 kimg, 625,000 steps of batches of 32; fewer with growth.
Expect    LPIPS .1412, PSNR 21.70, FID 3.99 with central boxes, .0597, 27.33 and .94
          with free-form holes, from the paper. We have not run this recipe to its end.
Command   python -m migan_jax.train --config=imputation_places256 --workdir=runs/imp
Then      python -m migan_jax.train --config=imputation_places256:e_conv ...
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
            "source": "datasets/places256",
            "crop": "native",
            "mask_kind": "half_box_and_brush",
            "held_out": 64,
        }
    )
    return config
