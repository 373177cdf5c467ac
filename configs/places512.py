"""MI-GAN at 512 pixels on Places2 (Sargsyan et al., ICCV 2023), as in the paper.

Distilled from a Co-Mod-GAN: the authors' comodgan_512_places2.pt, or your own, trained
with comodgan_places512.

Data      Places365-Standard, high-resolution images, cropped to squares and resized:
            python -m migan_jax.prepare places365/train datasets/places512 --size=512
Hardware  Batches of 32 images. If memory is too small, raise `microbatches`. More than
          32 chips share images (`mesh.space`). docs/plans.md: what fits, and how long
          it would take.
Length    25,000 kimg, 781,250 steps.
Expect    FID 10.00, LPIPS .345 on 36,500 validation images, from the paper's Table 2.
          We have not run this recipe to its end.
Command   python -m migan_jax.train --config=places512 --workdir=runs/places512
"""

from migan_jax.config import base_config


def get_config():
    config = base_config()
    config.resolution = 512
    config.teacher = "comodgan_512_places2.pt"
    config.data.source = "datasets/places512"
    return config
