"""The public weights of the networks with which metrics look at pictures.

They do not come with this package, and it downloads nothing: files are found by their
size and SHA-256, whatever they are called, where they may already be.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from migan_jax.errors import UserError
from migan_jax.files import sha256_of
from migan_jax.models.inception import SIZE, Inception
from migan_jax.models.perceptual import NETWORKS
from migan_jax.weights.reading import Tensors, read_tensors

FOLDER = "MIGAN_JAX_FEATURES"  # of the environment: the only place to look, if set
_EPSILON = 1e-3  # of the batch norms


class Published(NamedTuple):
    """A file as its authors publish it."""

    name: str
    size: int  # bytes
    sha256: str
    source: str
    metrics: tuple[str, ...]  # that need it


FILES = {
    "inception": Published(
        "pt_inception-2015-12-05-6726825d.pth",
        95_628_359,
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
        ("fid", "kid", "p_ids", "u_ids"),
    ),
    "alex": Published(
        "alexnet-owt-7be5be79.pth",
        244_408_911,
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        ("lpips_alex",),
    ),
    "vgg": Published(
        "vgg16-397923af.pth",
        553_433_881,
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        ("lpips_vgg",),
    ),
    "alex_lpips": Published(
        "alex.pth",
        6_009,
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        "https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1",
        ("lpips_alex",),
    ),
    "vgg_lpips": Published(
        "vgg.pth",
        7_289,
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        "https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1",
        ("lpips_vgg",),
    ),
}


def folders() -> list[Path]:
    """Where to look: a folder of one's own choice, or else ours and PyTorch's."""
    if FOLDER in os.environ:
        return [Path(os.environ[FOLDER])]
    cache = Path.home() / ".cache"
    return [cache / "migan_jax", cache / "torch" / "hub" / "checkpoints"]


def find(name: str) -> Path:
    """The published file of that name in `FILES`; a UserError says where to put it."""
    file = FILES[name]
    for path in _files_of(file.size):
        if sha256_of(path) == file.sha256:
            return path
    named = [folder / file.name for folder in folders()]
    wrong = [str(path) for path in named if path.is_file()]
    if wrong:
        raise UserError(
            f"{wrong[0]} is not the published file, whose SHA-256 is {file.sha256}: "
            f"take it anew from {file.source}."
        )
    raise UserError(
        f"{file.name} was not found (SHA-256 {file.sha256}): take it from "
        f"{file.source} and put it into {folders()[0]}."
    )


def _files_of(size: int) -> Iterator[Path]:
    for folder in folders():
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.is_file() and path.stat().st_size == size:
                    yield path


def load_inception(path: Path) -> Any:
    """Variables of `Inception` from pytorch-fid's file, batch norms folded in."""
    tensors = read_tensors(path)
    params = _abstract(Inception(), SIZE)
    found = {}
    for layer in _layers(params):
        prefix = ".".join(layer[:-1])
        weight, scale, bias, mean, variance = (
            _tensor(path, tensors, f"{prefix}.{name}").astype(np.float64)
            for name in ("conv.weight", *(f"bn.{x}" for x in _NORM))
        )
        gain = scale / np.sqrt(variance + _EPSILON)
        found[layer] = {
            "kernel": weight.transpose(2, 3, 1, 0) * gain,
            "bias": bias - mean * gain,
        }
    return _variables(path, params, found)


_NORM = ("weight", "bias", "running_mean", "running_var")


def load_perceptual(name: str, path: Path, weights: Path) -> tuple[Any, list[Any]]:
    """Variables of a network of LPIPS, and its weights of channels, layer by layer.

    Args:
      name: alex or vgg.
      path: torchvision's file.
      weights: LPIPS' file.
    """
    tensors = read_tensors(path)
    params = _abstract(NETWORKS[name], 64)  # any size that is not too small
    found = {
        layer: {
            "kernel": _tensor(path, tensors, f"{layer[0]}.weight").transpose(
                2, 3, 1, 0
            ),
            "bias": _tensor(path, tensors, f"{layer[0]}.bias"),
        }
        for layer in _layers(params)
    }
    linear = read_tensors(weights)
    taps = sum(layer.tap for layer in NETWORKS[name].layers)
    channels = [
        jnp.asarray(_tensor(weights, linear, f"lin{tap}.model.1.weight").reshape(-1))
        for tap in range(taps)
    ]
    return _variables(path, params, found), channels


def _abstract(network: Any, size: int) -> Any:
    """Shapes of its parameters."""
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), picture)["params"]


def _layers(params: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of everything that has a kernel."""
    if "kernel" in params:
        yield path
        return
    for name, below in params.items():
        yield from _layers(below, (*path, name))


def _tensor(path: Path, tensors: Tensors, name: str) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{path} has no tensor {name}: it is not the published file.")
    return tensors[name]


def _variables(path: Path, params: Any, found: dict[tuple[str, ...], Any]) -> Any:
    """Found tensors where they belong, float32, if their shapes are right."""

    def place(keys: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        *layer, name = (key.key for key in keys)
        array = found[tuple(layer)][name]
        if array.shape != leaf.shape:
            raise UserError(
                f"{path} is not the published file: {'.'.join(layer)} has the shape "
                f"{array.shape} instead of {leaf.shape}."
            )
        return jnp.asarray(array, jnp.float32)

    return {"params": jax.tree_util.tree_map_with_path(place, params)}
