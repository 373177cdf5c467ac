"""Co-Mod-GAN at 512 pixels on Places2 (Zhao et al., ICLR 2021): MI-GAN's teacher.

The form that MI-GAN's authors distil from: R1 with respect to all four channels that
the discriminator sees, and no path-length penalty. `losses.l1` adds the original's
L1 term.

Data      as for places512
Hardware  32 images at a time of a network eight times MI-GAN's cost.
Length    25,000 kimg, 781,250 steps.
Expect    FID 8.05, LPIPS .343 on 36,500 validation images (the released teacher's, by
          the MI-GAN paper; this recipe has not been run to its end here).
Command   python -m migan_jax.train --config=comodgan_places512 --workdir=runs/teacher
Then      python -m migan_jax.train --config=places512 --workdir=runs/student \
              --config.teacher=runs/teacher
"""

from migan_jax.config import base_config


def get_config():
    config = base_config()
    config.system = "comodgan"
    config.resolution = 512
    config.optimizer.learning_rate = 2e-3
    config.optimizer.ema_halflife_kimg = 10
    config.data.source = "datasets/places512"
    return config
