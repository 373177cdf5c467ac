"""MI-GAN at 256 pixels on FFHQ (Sargsyan et al., ICCV 2023).

Data      FFHQ's 1024-pixel images, without files 00000 to 09999 (validation):
            python -m migan_jax.prepare ffhq/train datasets/ffhq256 --size=256
Hardware  Batches of 32 images. If the memory of a 24 GB GPU is too small, raise
          `microbatches`.
Length    25,600 kimg, 800,000 steps.
Expect    FID 4.99, LPIPS .257 on the 10,000 validation images, from the paper's
          Table 1. We have not run this recipe to its end.
Command   python -m migan_jax.train --config=ffhq256 --workdir=runs/ffhq256
"""

from migan_jax.config import base_config


def get_config():
    config = base_config()
    config.resolution = 256
    config.total_kimg = 25_600
    config.teacher = "comodgan_256_ffhq.pt"
    config.data.source = "datasets/ffhq256"
    return config
