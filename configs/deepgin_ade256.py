"""DeepGIN at 256 pixels on a part of ADE20K (Li et al. 2020; AIM 2020 challenge).

Lengths count source pictures, as in deepgin_celebahq256, which explains the samples.

Data      The challenge's 10,330 images of ADE20K, squeezed to squares as in the paper:
            python -m migan_jax.prepare ade20k/train datasets/ade
          and VGG-19's public weights; a message says where to get them.
Hardware  The paper has two RTX 2080 Ti, 2.5 days. Batches of 4 pictures, 12 samples.
Length    1,136 kimg, 284,075 steps: 10 epochs of warm-up, 100 of both players.
Expect    No score: the paper evaluates this network on other data. We have not run this
          recipe to its end.
Command   python -m migan_jax.train --config=deepgin_ade256 --workdir=runs/deepgin_ade
"""

from migan_jax.config import base_config

EPOCH = 10.33  # kimg


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
            "source": "datasets/ade",
            "crop": "whole",
            "mask_kind": "deepgin",
            "held_out": 64,
        }
    )
    return config
