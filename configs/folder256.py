"""MI-GAN at 256 pixels on your own photos, from 50 of them on.

With few photos, training from nothing takes long and ends in their repetition: if there
is a released checkpoint, or one of yours, finetune256 is the better recipe. A teacher
trained on the same photos (comodgan_folder256) raises quality, as in the paper.

Data      --config.data.source, a folder or zip with photos, each side at least 128
          pixels. --config.data.masks, own masks of the same names, white where the
          hole is; otherwise the paper's are drawn. A tenth of the photos, 16 at most,
          is held out to watch the run by.
Small     What changes for few photos: crops down to 60 % of the square and mirrored
data      pictures; a short EMA; an L1 term, which a small set needs to keep colours;
          the run stops when the held-out hole PSNR has not risen for 100 kimg, and its
          best checkpoint is kept.
Hardware  16 images at a time, for one GPU.
Length    at most 1,000 kimg, 62,500 steps. Two CPU cores need about two seconds an
          image, which is too slow for it: try scenes64 there.
Expect    no figure at this size: it has not been run to its end here. From 50 photos,
          with the networks, masks and learning rate of scenes64 at 64 pixels: 21.8 dB
          on 5 held-out ones after 750 steps, where the mean colour has 15.8 (one run).
Command   python -m migan_jax.train --config=folder256 --workdir=runs/mine \
              --config.data.source=photos
"""

from migan_jax.config import base_config


def get_config():
    config = base_config()
    config.resolution = 256
    config.batch_size = 16
    config.total_kimg = 1000
    config.losses.l1 = 5.0
    config.optimizer.ema_halflife_kimg = 5
    config.data.source = "photos"
    config.data.crop_scale = 0.6
    config.data.held_out = 16
    config.save_every_steps = 500
    config.patience_kimg = 100
    return config
