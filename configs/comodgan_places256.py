"""Co-Mod-GAN at 256 pixels on Places2 (Zhao et al., ICLR 2021): MI-GAN's teacher.

As trained by MI-GAN's authors: R1 with respect to all four input channels of the
discriminator, no path-length penalty, and no L1 loss (`losses.l1` adds the original's).

Data      As for places256.
Hardware  Batches of 32 images; the network costs eight times MI-GAN's.
Length    25,000 kimg, 781,250 steps.
Expect    FID 9.32, LPIPS .397 on 36,500 validation images for the released
          teacher, from the MI-GAN paper. We have not run this recipe to its end.
Command   python -m migan_jax.train --config=comodgan_places256 --workdir=runs/teacher
Then      python -m migan_jax.train --config=places256 --workdir=runs/student \
              --config.teacher=runs/teacher
"""

from migan_jax.config import base_config


def get_config():
    config = base_config()
    config.system = "comodgan"
    config.resolution = 256
    config.optimizer.learning_rate = 2e-3
    config.optimizer.ema_halflife_kimg = 10
    config.data.source = "datasets/places256"
    return config
