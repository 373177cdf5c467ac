"""MI-GAN at 512 pixels on Places2 (Sargsyan et al., ICCV 2023), the paper's run.

Distilled from Co-Mod-GAN: the authors' comodgan_512_places2.pt, or your own from the
recipe comodgan_places512.

Data      Places365-Standard, high-resolution images, of which squares are resized:
            python -m migan_jax.prepare places365/train datasets/places512 --size=512
Hardware  32 images at a time; on fewer devices raise `parts`, on a pod of more than 32
          chips some share an image by themselves (`mesh.space`).
Length    25,000 kimg, 781,250 steps.
Expect    FID 10.00, LPIPS .345 on 36,500 validation images (the paper's Table 2; this
          recipe has not been run to its end here).
Command   python -m migan_jax.train --config=places512 --workdir=runs/places512
"""

from migan_jax.config import base_config


def get_config():
    config = base_config()
    config.resolution = 512
    config.teacher = "comodgan_512_places2.pt"
    config.data.source = "datasets/places512"
    return config
