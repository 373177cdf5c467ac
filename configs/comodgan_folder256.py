"""Co-Mod-GAN at 256 pixels on your own photos: a teacher for folder256.

Two commands train the teacher and then distil a MI-GAN from it. The sample grids of the
second run also show the teacher's completions.

Data      As for folder256.
Hardware  One GPU. Batches of 16 images; the network costs eight times MI-GAN's.
Length    At most 1,000 kimg, 62,500 steps, with early stopping as in folder256.
Expect    No score: we have not run this recipe to its end.
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
