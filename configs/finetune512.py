"""Fine-tune MI-GAN at 512 pixels on your own photos.

It starts from a pretrained generator, released or your own. Released files contain no
discriminator, and the gradients of a randomly initialised one are noise. So the
discriminator first trains alone for 4 kimg. Then both train with a small learning rate
and an L1 loss, which preserves what the generator has learned. The EMA starts from the
pretrained weights.

Data      As for folder256.
Options   --init-from=runs/mine also loads that run's discriminator. It needs no warm-up
          (--config.optimizer.warmup_kimg=0), and its highest resolutions can be frozen
          (--config.optimizer.frozen_levels=3).
Hardware  One GPU. Batches of 8 images.
Length    At most 200 kimg, 25,000 steps. It stops when the held-out hole PSNR has not
          improved for 40 kimg, and keeps the best checkpoint.
Expect    No score: we have run it on small scenes only, where the held-out PSNR never
          fell by a decibel (tests/test_train_finetuning.py).
Command   python -m migan_jax.train --config=finetune512 --workdir=runs/tuned \
              --init-from=migan_512_places2.pt --config.data.source=photos
"""

from migan_jax.config import base_config


def get_config():
    config = base_config()
    config.resolution = 512
    config.batch_size = 8
    config.total_kimg = 200
    config.losses.l1 = 10.0
    config.optimizer.learning_rate = 2e-4
    config.optimizer.ema_halflife_kimg = 2
    config.optimizer.warmup_kimg = 4
    config.data.source = "photos"
    config.data.crop_scale = 0.6
    config.data.held_out = 16
    config.save_every_steps = 250
    config.patience_kimg = 40
    return config
