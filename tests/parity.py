"""Compare Flax networks with their PyTorch twins under released names.

A twin with random weights is converted to Flax by its tensor names, and gradients are
compared under these names, so that a wrong mapping cannot cancel out.
"""

import jax
import numpy as np
import torch
from variables import (
    entries,
    relative_l2,  # noqa: F401  # re-exported
)

from migan_jax.families import from_tensors


def randomise(twin, dtype, seed=0):
    """Randomise all parameters, noise and averages, but not filter taps."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor, scale):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)

    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            fused = name.endswith(".weight") and parameter.ndim == 4 and is_fused(twin)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            fill(parameter, 1 / fan_in**0.5 if fused else 1)
            if name.endswith(".bias"):
                parameter.mul_(0.5)
            if name.startswith("mapping.") and name.endswith(".weight"):
                parameter.mul_(100)  # divided by the learning-rate multiplier
        for name, buffer in twin.named_buffers():
            if name.endswith(("noise_const", "w_avg")):
                fill(buffer, 1)
    return twin.to(dtype).eval()


def is_fused(twin):
    return any("filter_const" in name for name, _ in twin.named_buffers())


def to_arrays(twin):
    """The twin's state dict as NumPy arrays."""
    return {name: tensor.numpy() for name, tensor in twin.state_dict().items()}


def flax_of(twin):
    return from_tensors(to_arrays(twin))


def inputs_like(shape, dtype, seed, scale=1.0):
    """Draw one random input: NHWC for Flax, NCHW for PyTorch."""
    array = np.random.default_rng(seed).standard_normal(shape) * scale
    nhwc = array.astype(dtype)
    nchw = np.moveaxis(nhwc, -1, 1) if nhwc.ndim == 4 else nhwc
    return nhwc, torch.from_numpy(np.ascontiguousarray(nchw)).requires_grad_()


def nhwc(tensor):
    array = tensor.detach().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def by_name(network, params):
    """Return a tree of parameters or gradients under released names."""
    named = {}
    for entry in entries(network):
        if entry.collection == "params":
            leaf = params
            for key in entry.path:
                leaf = leaf[key]
            named |= entry.to_tensors(jax.device_get(leaf))
    return named
