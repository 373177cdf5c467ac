"""The PyTorch twin of a Flax network."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from migan_jax.errors import UserError
from migan_jax.models import comodgan as flax_comodgan
from migan_jax.models import discriminators as flax_discriminators
from migan_jax.models import migan as flax_migan
from migan_jax.twins import comodgan, discriminators, migan
from migan_jax.twins.layers import Upsampling

TWINNED = (
    flax_migan.Generator,
    flax_comodgan.Generator,
    flax_discriminators.MIGANDiscriminator,
    flax_discriminators.CoModGANDiscriminator,
)


def refuse_without_twin(network: object) -> None:
    """UserError for a network of a family that has no twins."""
    if not isinstance(network, TWINNED):
        raise UserError(
            f"There is no PyTorch twin of a {type(network).__name__} to check with."
        )


def build_twin(network: object, upsampling: Upsampling = "efficient") -> nn.Module:
    """An untrained twin in evaluation mode, with the names of the network's files."""
    sizes = dict(
        resolution=network.resolution,
        channel_base=network.channel_base,
        channel_max=network.channel_max,
    )
    match network:
        case flax_migan.Generator():
            fused = network.reparam.form == "fused"
            kernels = None if fused else network.reparam.kernels
            twin = migan.Generator(**sizes, num_kernels=kernels, upsampling=upsampling)
        case flax_comodgan.Generator():
            codes = dict(
                z_dim=network.z_dim,
                w_dim=network.w_dim,
                encoder_dim=network.encoder_dim,
            )
            twin = comodgan.Generator(**sizes, **codes, upsampling=upsampling)
        case flax_discriminators.MIGANDiscriminator():
            kernels = network.reparam.kernels
            twin = discriminators.MIGANDiscriminator(**sizes, num_kernels=kernels)
        case flax_discriminators.CoModGANDiscriminator():
            twin = discriminators.CoModGANDiscriminator(**sizes)
    return twin.eval()


def load_twin(network: object, tensors: Mapping[str, np.ndarray]) -> nn.Module:
    """Loaded strictly, in float32."""
    twin = build_twin(network)
    state = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in tensors.items()}
    twin.load_state_dict(state, strict=True)
    return twin


def run_twin(
    network: object, tensors: Mapping[str, np.ndarray], *inputs: np.ndarray
) -> np.ndarray:
    """Output of a twin loaded strictly with `tensors`, in float32; images are NHWC."""
    twin = load_twin(network, tensors)
    images, *codes = (torch.from_numpy(array) for array in inputs)
    with torch.no_grad():
        output = twin(images.permute(0, 3, 1, 2), *codes)
    return (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).numpy()
