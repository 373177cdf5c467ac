"""Learnable feature imputation at 128 pixels on FDF's faces (Hukkelas et al. 2020).

It fills faces, given the seven keypoints of each. The argument is a row of Table 1:

  variant  adds                                               LPIPS  PSNR   FID
  a        plain convolutions, the standard gradient penalty  .1036  22.52  6.15
  b        the penalty in holes; known pixels are pasted      .0757  23.92  1.83
  c        the generator reads keypoints as numbers           .0733  24.01  1.76
  d        imputed convolutions                               .0739  23.95  1.66
  e        no growth, sums of all levels, shortcuts, numbers  .0728  24.01  1.49
           in the discriminator, too; the default
  e_conv   e with plain convolutions

Rows a to d grow from 8 pixels to 128 in 9,600 kimg, with batches of up to 256.

Data      FDF's images, masks of the faces' boxes, and keypoints: a JSON file with
          {"NAME": [[x, y], ...]} in pixels: the nose, then both sides' eye, ear and
          shoulder, always in the same order.
            python -m migan_jax.prepare fdf/train datasets/fdf128 --size=128
Hardware  The paper does not say. `python -m migan_jax.plan` estimates yours.
Length    20,000 kimg, 625,000 steps of batches of 32; fewer with growth.
Expect    The scores above, from the paper. We have not run this recipe to its end.
Command   python -m migan_jax.train --config=imputation_fdf128 --workdir=runs/fdf
"""

from migan_jax.config import base_config, imputation_row


def get_config(variant="e"):
    config = base_config()
    config.system = "imputation"
    config.resolution = 128
    config.total_kimg = 20_000
    config.imputation.update(imputation_row(variant))
    config.imputation.points = 7
    config.networks.update({"channel_base": 4096, "channel_max": 128})
    config.optimizer.ema_halflife_kimg = 10.0
    config.data.update(
        {
            "source": "datasets/fdf128",
            "masks": "fdf/masks",
            "mask_hole": "white",
            "points": "fdf/points.json",
            "crop": "whole",
            "held_out": 64,
        }
    )
    return config
