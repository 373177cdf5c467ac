"""Co-Mod-GAN at 256 pixels on your own photos: a teacher for folder256.

Two commands make a distilled MI-GAN of a folder. The second one's completions are
compared with the first one's in every sample grid.

Data      as for folder256
Hardware  16 images at a time of a network eight times MI-GAN's cost, for one GPU.
Length    at most 1,000 kimg, 62,500 steps; it stops as folder256 does.
Expect    no figure: this recipe has not been run to its end here.
Command   python -m migan_jax.train --config=comodgan_folder256 \
              --workdir=runs/teacher --config.data.source=photos
Then      python -m migan_jax.train --config=folder256 --workdir=runs/mine \
              --config.data.source=photos --config.teacher=runs/teacher
"""

from migan_jax.config import base_config


def get_config():
    config = base_config()
    config.system = "comodgan"
    config.resolution = 256
    config.batch_size = 16
    config.total_kimg = 1000
    config.losses.l1 = 5.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.ema_halflife_kimg = 5
    config.data.source = "photos"
    config.data.crop_scale = 0.6
    config.data.held_out = 16
    config.save_every_steps = 500
    config.patience_kimg = 100
    return config
