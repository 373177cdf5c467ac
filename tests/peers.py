"""The packages behind published metrics, with random weights in their networks.

The installed torchvision may not match the installed PyTorch. Its networks are plain
Python, but importing it registers operators, which then have to be defined first.
"""

import importlib
import importlib.util
import sys
import warnings
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("torchvision", "pytorch_fid", "lpips"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)

_operators = torch.library.Library("torchvision", "FRAGMENT")


def _import_torchvision():
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor dets, Tensor scores, float x) -> Tensor")
        for module in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[module]
        return importlib.import_module("torchvision")


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchvision = _import_torchvision()
    lpips = importlib.import_module("lpips")
    fid_inception = importlib.import_module("pytorch_fid.inception")


def randomise(network):
    """He initialisation, which keeps features' magnitude, and random norms."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if tensor.ndim == 4:
                fan_in = tensor[0].numel()
                tensor.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            elif "running_var" in name or ".bn.weight" in name:
                tensor.uniform_(0.7, 1.3, generator=generator)
            elif tensor.ndim == 1:
                tensor.uniform_(-0.2, 0.2, generator=generator)
    return network.eval()


def make_inception():
    """Return pytorch-fid's network and its inner one, whose weights its file holds."""
    load = "load_state_dict"
    with (
        warnings.catch_warnings(),
        mock.patch.object(fid_inception, f"{load}_from_url"),
        mock.patch.object(torch.nn.Module, load),
    ):
        warnings.simplefilter("ignore")
        inner = randomise(fid_inception.fid_inception_v3())
    with mock.patch.object(fid_inception, "fid_inception_v3", lambda: inner):
        return fid_inception.InceptionV3().eval(), inner


def make_lpips(name):
    """Return torchvision's network, and the package's LPIPS with the same weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[
            name
        ](weights=None)
        whole = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
    randomise(network)
    features = dict(network.named_parameters())
    with torch.no_grad():
        for key, value in whole.net.named_parameters():
            value.copy_(features["features." + key.split(".", 1)[1]])
        for index in range(whole.L):
            weight = getattr(whole, f"lin{index}").model[1].weight
            weight.copy_(
                torch.from_numpy(np.random.default_rng(index).random(weight.shape))
            )
    return network, whole.eval()


def to_torch(images):
    """Convert uint8 [N, H, W, 3] to [N, 3, H, W] in [0, 1]."""
    nchw = np.moveaxis(images, -1, 1).astype(np.float32)
    return torch.from_numpy(nchw / np.float32(255))
