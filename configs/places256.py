"""MI-GAN at 256 pixels on Places2, and the paper's ablation ladder (Table 4).

places256:baseline    one kernel per convolution, no teacher    FID 14.94, LPIPS .407
places256:reparam     nine kernels, no teacher                  FID 12.22, LPIPS .400
places256:reparam_kd  nine kernels and a teacher, the default   FID 11.83, LPIPS .394

Data      Places365-Standard, "small images (256 x 256)":
            python -m migan_jax.prepare places365_small/train datasets/places256
Hardware  32 images at a time; on one GPU of 24 GB raise `parts` if memory is short.
Length    30,000 kimg, 937,500 steps.
Expect    the figures above on 36,500 validation images (the paper's; this recipe has
          not been run to its end here).
Command   python -m migan_jax.train --config=places256 --workdir=runs/places256
"""

from migan_jax.config import base_config
from migan_jax.errors import UserError

RUNGS = ("baseline", "reparam", "reparam_kd")


def get_config(rung="reparam_kd"):
    if rung not in RUNGS:
        raise UserError(f"places256 has {', '.join(RUNGS)}, but not {rung!r}.")
    config = base_config()
    config.resolution = 256
    config.total_kimg = 30_000
    config.data.source = "datasets/places256"
    if rung == "baseline":
        config.reparam.kernels = 1
    if rung == "reparam_kd":
        config.teacher = "comodgan_256_places2.pt"
    return config
