"""MI-GAN at 256 pixels on your own photos, at least 50.

With few photos, training from scratch is slow and overfits: with a pretrained
checkpoint, released or your own, prefer finetune256. A teacher trained on the same
photos (comodgan_folder256) improves quality, as in the paper.

Data      --config.data.source: a folder or zip of photos, each side at least 128
          pixels. --config.data.masks: your own masks with the same names, white in the
          hole; otherwise the paper's masks are drawn. A tenth of the photos, at most
          16, is held out for validation.
Small     Changes for few photos: crops down to 60 % of the square and horizontal flips;
data      a short EMA; an L1 loss, which a small set needs to keep colours; early
          stopping when the held-out hole PSNR has not improved for 100 kimg, which
          keeps the best checkpoint.
Hardware  One GPU. Batches of 16 images.
Length    At most 1,000 kimg, 62,500 steps. Two CPU cores need about two seconds per
          image, which is too slow: try scenes64 there.
Expect    No score at this size: we have not run it to its end. On 50 photos at 64
          pixels, with the networks, masks and learning rate of scenes64: 21.8 dB on 5
          held-out photos after 750 steps; filling with the mean colour has 15.8 dB (one
          run).
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
