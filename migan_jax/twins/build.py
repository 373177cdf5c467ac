"""Building, loading and running the PyTorch twin of a Flax network."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from migan_jax.errors import UserError
from migan_jax.models.comodgan import CoModGANGenerator
from migan_jax.models.discriminators import CoModGANDiscriminator, MIGANDiscriminator
from migan_jax.models.migan import MIGANGenerator
from migan_jax.twins.comodgan import TorchCoModGANGenerator
from migan_jax.twins.discriminators import (
    TorchCoModGANDiscriminator,
    TorchMIGANDiscriminator,
)
from migan_jax.twins.layers import Upsampling
from migan_jax.twins.migan import TorchMIGANGenerator

NETWORKS_WITH_TWIN = (
    MIGANGenerator,
    CoModGANGenerator,
    MIGANDiscriminator,
    CoModGANDiscriminator,
)


def check_has_twin(network: object) -> None:
    """Raise UserError if the network's family has no twins."""
    if not isinstance(network, NETWORKS_WITH_TWIN):
        raise UserError(
            f"{type(network).__name__} has no PyTorch twin to check it with."
        )


def build_twin(network: object, upsampling: Upsampling = "efficient") -> nn.Module:
    """Return an untrained twin in evaluation mode, with the released names."""
    sizes = dict(
        resolution=network.resolution,
        channel_base=network.channel_base,
        channel_max=network.channel_max,
    )
    match network:
        case MIGANGenerator():
            if network.completes:
                raise UserError(
                    "This MI-GAN has completion blocks, which have no PyTorch twin "
                    "and no ONNX form. Train without distillation.completion."
                )
            fused = network.reparam.form == "fused"
            kernels = None if fused else network.reparam.kernels
            twin = TorchMIGANGenerator(
                **sizes, num_kernels=kernels, upsampling=upsampling
            )
        case CoModGANGenerator():
            codes = dict(
                z_dim=network.z_dim,
                w_dim=network.w_dim,
                encoder_dim=network.encoder_dim,
            )
            twin = TorchCoModGANGenerator(**sizes, **codes, upsampling=upsampling)
        case MIGANDiscriminator():
            kernels = network.reparam.kernels
            twin = TorchMIGANDiscriminator(**sizes, num_kernels=kernels)
        case CoModGANDiscriminator():
            twin = TorchCoModGANDiscriminator(**sizes)
    return twin.eval()


def load_twin(network: object, tensors: Mapping[str, np.ndarray]) -> nn.Module:
    """Return a twin with `tensors` loaded strictly, in float32."""
    twin = build_twin(network)
    state = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in tensors.items()}
    twin.load_state_dict(state, strict=True)
    return twin


def run_twin(
    network: object, tensors: Mapping[str, np.ndarray], *inputs: np.ndarray
) -> np.ndarray:
    """Return a twin's output for `tensors`, in float32; images are NHWC."""
    twin = load_twin(network, tensors)
    images, *codes = (torch.from_numpy(array) for array in inputs)
    with torch.no_grad():
        output = twin(images.permute(0, 3, 1, 2), *codes)
    return (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).numpy()
