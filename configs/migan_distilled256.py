"""MI-GAN at 256 pixels on Places2 with a guided encoder, which nobody has tried.

As places256 without a teacher; but an auxiliary network of MI-GAN's layout, which sees
the whole image and is trained first, guides the encoder (Suin et al., ICCV 2021; the
MI-GAN paper has no such guidance). The network that is
exported is the same: 5.87 M parameters, the same ONNX graph.

migan_distilled256             cross- and self-distillation, no teacher
migan_distilled256:teacher     a Co-Mod-GAN's images, too, as in MI-GAN's paper
migan_distilled256:completion  completion blocks in the encoder; no ONNX export

Data      As for places256.
Hardware  Batches of 32 images, in one piece: unrolled steps know no microbatches.
Length    30,300 kimg, 946,875 steps; the first 9,375 of the auxiliary network.
Expect    Unknown. We have not run this recipe.
Command   python -m migan_jax.train --config=migan_distilled256 --workdir=runs/guided
"""

from migan_jax.config import base_config
from migan_jax.errors import UserError

VARIANTS = ("guided", "teacher", "completion")


def get_config(variant="guided"):
    if variant not in VARIANTS:
        raise UserError(
            f"migan_distilled256 has no variant {variant!r}. Choose from "
            f"{', '.join(VARIANTS)}."
        )
    config = base_config()
    config.resolution = 256
    config.total_kimg = 30_300
    config.data.source = "datasets/places256"
    config.distillation.update(
        {
            "cross_distillation": True,
            "self_distillation": True,
            "completion": variant == "completion",
            # One, so that both players take as many steps.
            "unrolled_steps": 1,
            "meta_every": 4,
            "pretraining_kimg": 300.0,
            "meta_delay_kimg": 30.0,
        }
    )
    if variant == "teacher":
        config.teacher = "comodgan_256_places2.pt"
    return config
