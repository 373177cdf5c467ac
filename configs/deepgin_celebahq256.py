"""DeepGIN at 256 pixels on CelebA-HQ (Li et al. 2020), and the ladder of its Table 1.

  variant      parameters  PSNR   FID     LPIPS
  coarse_only  8.168 M     31.55  23.824  .182
  std          40.850 M    31.34  19.436  .191
  std_sa       41.376 M    31.60  18.239  .180
  std_mssa     42.892 M    32.66  12.843  .148
  dil_mssa     42.892 M    32.71  12.548  .149
  spd_mssa     42.892 M    32.88  12.335  .143
  full         42.930 M    33.26  11.424  .132   the default

Lengths count source pictures. Each gives three samples: a random 256-pixel sub-image of
the 512-pixel picture, with a box, a cellular automaton and a brush as holes.

Data      27,000 of CelebA-HQ's images:
            python -m migan_jax.prepare celebahq/train datasets/celebahq512 --size=512
          and VGG-19's public weights; a message says where to get them.
Hardware  The paper has two RTX 2080 Ti, 6 days. Batches of 4 pictures, 12 samples.
Length    2,970 kimg, 742,500 steps: 10 epochs of warm-up, 100 of both players.
Expect    The scores above on 3,000 test images, from the paper. We have not run this
          recipe to its end.
Command   python -m migan_jax.train --config=deepgin_celebahq256 --workdir=runs/deepgin
Then      python -m migan_jax.train --config=deepgin_celebahq256:std_mssa ...
"""

from migan_jax.config import base_config

EPOCH = 27.0  # kimg


def get_config(variant="full"):
    config = base_config()
    config.system = "deepgin"
    config.resolution = 256
    config.batch_size = 4
    config.total_kimg = 110 * EPOCH
    config.deepgin.update(
        {
            "variant": variant,
            "warmup_kimg": 10 * EPOCH,
            "constant_kimg": 10 * EPOCH,
            "decay_kimg": 90 * EPOCH,
        }
    )
    config.optimizer.update(
        {
            "learning_rate": 1e-4,
            "discriminator_learning_rate": 4e-4,
            "b1": 0.5,
            "b2": 0.999,
            "ema_halflife_kimg": 0.0,
        }
    )
    config.data.update(
        {
            "source": "datasets/celebahq512",
            "crop": "whole",
            "mask_kind": "deepgin",
            "held_out": 64,
        }
    )
    return config
