"""Public weights of the feature networks of metrics and of perceptual losses.

This package neither includes nor downloads them. It finds the files by size and SHA-256
in a few folders, under any name.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, path_aware_map

from migan_jax.errors import UserError
from migan_jax.files import sha256_of
from migan_jax.models.inception import SIZE, Inception
from migan_jax.models.vgg import NETWORKS, Features, narrow
from migan_jax.weights.tensor_files import Tensors, read_tensors

# The environment variable with the only folder to search; without it, `folders`.
FOLDER_VARIABLE = "MIGAN_JAX_FEATURES"
# Inception's batch norms.
_EPSILON = 1e-3
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
RANDOM_DIVISOR = 8  # of the channels of random networks


class PublicWeights(NamedTuple):
    """A published file."""

    name: str
    size: int  # bytes
    sha256: str
    source: str
    metrics: tuple[str, ...]  # those that need it


FILES = {
    "inception": PublicWeights(
        "pt_inception-2015-12-05-6726825d.pth",
        95_628_359,
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
        ("fid", "kid", "p_ids", "u_ids"),
    ),
    "alex": PublicWeights(
        "alexnet-owt-7be5be79.pth",
        244_408_911,
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        ("lpips_alex",),
    ),
    "vgg": PublicWeights(
        "vgg16-397923af.pth",
        553_433_881,
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        ("lpips_vgg",),
    ),
    "vgg19": PublicWeights(
        "vgg19-dcbb9e9d.pth",
        574_673_361,
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        (),
    ),
    "alex_lpips": PublicWeights(
        "alex.pth",
        6_009,
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        "https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1",
        ("lpips_alex",),
    ),
    "vgg_lpips": PublicWeights(
        "vgg.pth",
        7_289,
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1",
        ("lpips_vgg",),
    ),
}


def folders() -> list[Path]:
    """Return the folders to search: the user's, or else our own and PyTorch's."""
    if FOLDER_VARIABLE in os.environ:
        return [Path(os.environ[FOLDER_VARIABLE])]
    cache = Path.home() / ".cache"
    return [cache / "migan_jax", cache / "torch" / "hub" / "checkpoints"]


def find(name: str) -> Path:
    """Return the path of a file in `FILES`; a UserError says how to get it."""
    file = FILES[name]
    for path in _files_of_size(file.size):
        if sha256_of(path) == file.sha256:
            return path
    named = [folder / file.name for folder in folders()]
    wrong = [path for path in named if path.is_file()]
    if wrong:
        raise UserError(
            f"{wrong[0]} is not the published file, whose SHA-256 is {file.sha256}. "
            f"Download it again from {file.source}."
        )
    raise UserError(
        f"{file.name} was not found (SHA-256 {file.sha256}). Download it from "
        f"{file.source} and put it into {folders()[0]}."
    )


def _files_of_size(size: int) -> Iterator[Path]:
    for folder in folders():
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.is_file() and path.stat().st_size == size:
                    yield path


def load_inception(path: Path) -> Any:
    """Load `Inception`'s variables from pytorch-fid's file, with folded batch norms."""
    tensors = read_tensors(path)
    params = _abstract_params(Inception(), SIZE)
    arrays = {}
    for layer in _layers(params):
        prefix = ".".join(layer[:-1])
        weight, scale, bias, mean, variance = (
            _get_tensor(path, tensors, f"{prefix}.{name}").astype(np.float64)
            for name in ("conv.weight", *(f"bn.{x}" for x in _BATCH_NORM))
        )
        gain = scale / np.sqrt(variance + _EPSILON)
        arrays[*layer, "kernel"] = weight.transpose(2, 3, 1, 0) * gain
        arrays[*layer, "bias"] = bias - mean * gain
    return _make_variables(path, params, arrays)


def load_perceptual(name: str, path: Path, weights: Path) -> tuple[Any, list[Any]]:
    """Load the variables of a network of LPIPS and the channel weights of its layers.

    Args:
      name: alex or vgg.
      path: torchvision's file.
      weights: LPIPS' file.
    """
    linear = read_tensors(weights)
    taps = sum(layer.tap for layer in NETWORKS[name].layers)
    names = (f"lin{tap}.model.1.weight" for tap in range(taps))
    channels = [
        jnp.asarray(_get_tensor(weights, linear, name).reshape(-1)) for name in names
    ]
    return load_features(name, path), channels


def load_features(name: str, path: Path) -> Any:
    """Load the variables of a network of `models/vgg.py` from torchvision's file."""
    tensors = read_tensors(path)
    params = _abstract_params(NETWORKS[name], 64)  # any size that is large enough
    arrays = {}
    for layer in _layers(params):
        weight = _get_tensor(path, tensors, f"{layer[0]}.weight")
        arrays[*layer, "kernel"] = weight.transpose(2, 3, 1, 0)
        arrays[*layer, "bias"] = _get_tensor(path, tensors, f"{layer[0]}.bias")
    return _make_variables(path, params, arrays)


def outline_features(name: str) -> Any:
    """Return the shapes of these variables."""
    return {"params": _abstract_params(NETWORKS[name], 64)}


def random_features(name: str) -> tuple[Features, Any]:
    """Return a network with few channels and seeded random weights, for tests."""
    network = narrow(NETWORKS[name], RANDOM_DIVISOR)
    make = jax.jit(lambda key: network.init(key, jnp.zeros((1, 64, 64, 3))))
    return network, make(jax.random.key(0))


def _abstract_params(network: Any, size: int) -> Any:
    """Return the shapes of the network's parameters."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)["params"]


def _layers(params: Any) -> list[tuple[str, ...]]:
    """Return the paths of all layers with a kernel."""
    return [path[:-1] for path in flatten_dict(params) if path[-1] == "kernel"]


def _get_tensor(path: Path, tensors: Tensors, name: str) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{path} is not the published file: it has no tensor {name}.")
    return tensors[name]


def _make_variables(
    path: Path, params: Any, arrays: dict[tuple[str, ...], np.ndarray]
) -> Any:
    """Arrange arrays as the network's variables in float32, and check their shapes."""

    def get(keys: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        array = arrays[keys]
        if array.shape != leaf.shape:
            raise UserError(
                f"{path} is not the published file: {'.'.join(keys[:-1])} has the "
                f"shape {array.shape} instead of {leaf.shape}."
            )
        return jnp.asarray(array, jnp.float32)

    return {"params": path_aware_map(get, params)}
