"""MI-GAN at 256 pixels on Places2, and the paper's ablation ladder (Table 4).

places256:baseline    one kernel per convolution, no teacher    FID 14.94, LPIPS .407
places256:reparam     nine kernels, no teacher                  FID 12.22, LPIPS .400
places256:reparam_kd  nine kernels and a teacher, the default   FID 11.83, LPIPS .394

Data      Places365-Standard, "small images (256 x 256)":
            python -m migan_jax.prepare places365_small/train datasets/places256
Hardware  Batches of 32 images. If the memory of a 24 GB GPU is too small, raise
          `microbatches`.
Length    30,000 kimg, 937,500 steps.
Expect    The scores above on 36,500 validation images, from the paper. We have not run
          this recipe to its end.
Command   python -m migan_jax.train --config=places256 --workdir=runs/places256
"""

from migan_jax.config import base_config
from migan_jax.errors import UserError

VARIANTS = ("baseline", "reparam", "reparam_kd")


def get_config(variant="reparam_kd"):
    if variant not in VARIANTS:
        raise UserError(
            f"places256 has no variant {variant!r}. Choose from {', '.join(VARIANTS)}."
        )
    config = base_config()
    config.resolution = 256
    config.total_kimg = 30_000
    config.data.source = "datasets/places256"
    if variant == "baseline":
        config.reparam.kernels = 1
    if variant == "reparam_kd":
        config.teacher = "comodgan_256_places2.pt"
    return config
