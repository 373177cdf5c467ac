"""A small network of learnable feature imputation at 64 pixels on drawn scenes.

TODO

Hardware  Two CPU cores.
Length    12 kimg, 1,500 steps
Expect    TODO
Command   python -m migan_jax.train --config=imputation_scenes64 --workdir=runs/imp
"""

from migan_jax.config import base_config, imputation_row


def get_config(variant="e"):
    config = base_config()
    config.system = "imputation"
    config.resolution = 64
    config.batch_size = 8
    config.total_kimg = 12
    config.imputation.update(imputation_row(variant))
    config.networks.update(
        {"channel_base": 1024, "channel_max": 64, "dtype": "float32"}
    )
    config.optimizer.update({"learning_rate": 2e-3, "ema_halflife_kimg": 0.3})
    config.losses.l1 = 100.0
    config.data.update({"mask_kind": "thin_brush", "held_out": 64})
    config.data.draw_masks_on = "host"
    config.log_every_steps = 50
    config.save_every_steps = 150
    return config
