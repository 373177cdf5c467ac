"""Fine-tune a MI-GAN of 512 pixels on your own photos.

It begins with a generator that is good already: released, or one of yours. Released
files hold no discriminator, and a new one knows nothing: what it asks of the generator
at first is noise. So it learns alone for 4 kimg, then both learn slowly, beside an L1
term that holds on to what the generator could do before. The EMA begins anew at the
generator's weights.

Data      as for folder256
Options   --init-from=runs/mine brings that run's discriminator too: then no warm-up
          is needed (--config.optimizer.warmup_kimg=0), and its levels next to the
          picture can be kept as they are (--config.optimizer.frozen_levels=3).
Hardware  8 images at a time, for one GPU.
Length    at most 200 kimg, 25,000 steps; it stops when the held-out hole PSNR has not
          risen for 40 kimg, and the best checkpoint is kept.
Expect    no figure: it has been run on small scenes only, where no held-out figure fell
          by a decibel (tests/test_train_finetuning.py).
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
