"""Distillation-guided inpainting at 256 pixels on CelebA (Suin et al. 2021).

The default is the paper's final network, 13 M parameters, with an adversarial term. The
rows of its Table 3 have none (PSNR in dB on Places2, holes of 30 to 40 %):

  variant   parts                                                    PSNR
  baseline  plain convolutions, as many parameters                   22.36
  net1      cross-distillation                                       22.84
  net2      self-distillation                                        22.79
  net3      both                                                     22.98
  net4      both, completion blocks                                  23.54
  net5      completion blocks                                        22.54
  net6      net4 and attention                                       23.62
  net7      net6 and attention transfer                              24.08
  net8      net7 and adaptive convolutions fused with attention      24.21

There is no public code. Settings that the paper leaves open are marked as ours in
migan_jax/config.py. First the auxiliary network is trained alone, for 300 kimg.

Data      CelebA's training images, aligned; the largest square is enlarged.
            python -m migan_jax.prepare celeba/train datasets/celeba256 --size=256
          Without NVIDIA's irregular masks, similar ones are drawn. With them:
            --config.data.masks=FOLDER --config.data.mask_pairing=random
Hardware  The paper used one RTX 2080 Ti. `python -m migan_jax.plan` estimates yours.
Length    2,700 kimg, 450,000 steps of 6 images.
Expect    PSNR 34.14, 31.36, 28.49, 25.07 and SSIM .981, .941, .943, .902 for holes of
          10-20, 20-30, 30-40, 40-50 %.
          Numbers are from the paper. We have not run this recipe to its end.
Command   python -m migan_jax.train --config=distillation_celeba256 --workdir=runs/a
Then      python -m migan_jax.train --config=distillation_celeba256:net4 ...
"""

from migan_jax.config import base_config, distillation_row


def get_config(variant="final"):
    config = base_config()
    config.system = "distillation"
    config.resolution = 256
    config.batch_size = 6
    config.total_kimg = 2_700
    config.distillation.update(distillation_row(variant))
    config.optimizer.update(
        {"learning_rate": 1e-4, "b1": 0.9, "b2": 0.999, "ema_halflife_kimg": 0.0}
    )
    config.data.update(
        {
            "source": "datasets/celeba256",
            "mask_kind": "irregular",
            "held_out": 64,
        }
    )
    return config
