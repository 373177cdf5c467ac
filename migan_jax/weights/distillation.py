"""Checkpoints of distillation-guided inpainting: networks from their tensors.

There are no released files. Ours name tensors as the network does. They do not state
settings without tensors, so that these must have their defaults.
"""

import math
import re

from migan_jax.errors import UserError
from migan_jax.models.distillation import DistillationGenerator
from migan_jax.weights.architecture import UnknownNetwork
from migan_jax.weights.tensor_files import Tensors

SIGNATURE = r"encoder\.block3_1\.conv1\.weight"
# The layer that predicts the weights of adaptive convolutions, [K * K, C, 3, 3].
_TAPS = r"(?:completion|decoder\.attention\d)\.taps\.weights\.bias"


def infer_generator(tensors: Tensors) -> DistillationGenerator:
    """Infer a generator. Files do not state its resolution: it is the paper's."""
    stem = tensors.get("encoder.stem.weight")
    if stem is None or not stem.ndim or not len(stem):
        raise UnknownNetwork
    taps = [len(t) for name, t in tensors.items() if re.fullmatch(_TAPS, name)]

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in tensors)

    return DistillationGenerator(
        channels=len(stem),
        completes=has(r"completion\."),
        attends=has(r"decoder\.attention\d\.query\."),
        fuses=has(r"decoder\.attention\d\.taps\."),
        matched=has(r"decoder\.extra\d\."),
        kernel_size=math.isqrt(taps[0]) if taps else DistillationGenerator.kernel_size,
    )


def check_settings_in_files(network: DistillationGenerator) -> Tensors:
    """Return no constants; raise UserError if a file would lose a setting."""
    for field in ("level_hole", "attention_output", "pooled_keys"):
        if getattr(network, field) != getattr(DistillationGenerator, field):
            raise UserError(
                f"A file cannot state that this network has distillation.{field}="
                f"{getattr(network, field)}. Use the workdir instead."
            )
    return {}
