"""Parameter names of the released checkpoints, and how our trees map onto them.

A network's own abstract tree is walked, so the map covers exactly what the network has;
a file that has more or less is reported whole, every misfit at once. Names differ
between the released, fused generators and the n-kernel networks of training.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from migan_jax.models.channels import channels_at, levels
from migan_jax.ops.resample import TAPS
from migan_jax.weights.kinds import Kind, Network, Rules
from migan_jax.weights.reading import Tensors

# Paths in our trees, joined by "/", to the reference's: (pattern, replacement).
_COMMON = (("/depthwise/", "/conv1/"), ("/pointwise/", "/conv2/"))
_RELEASED = (
    *_COMMON,
    (r"/noise/strength$", "/noise_strength"),
    (r"/noise/noise$", "/noise_const"),
    (r"/kernel$", "/weight"),
)
_TRAINING = (
    *_COMMON,
    (r"/noise/strength$", "/conv2/noise_strength"),
    (r"/noise/noise$", "/conv2/noise_const"),
    (r"/kernels$", "/w{}"),
)

# Constants in the files that are no parameters: filter taps and zero-stuffing masks.
_CONSTANT = re.compile(
    r"(^|\.)(resample_filter|filter_const|(up|down)sample\.filter\.weight)$"
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf of our trees: where it is, and the tensors it is made of."""

    collection: str  # "params" or "stats"
    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]  # several for n kernels

    @property
    def stacked(self) -> bool:
        return self.path[-1] == "kernels"

    @property
    def axes(self) -> tuple[int, ...]:
        """Ours to PyTorch's: [kh, kw, I, O] -> [O, I, kh, kw], [I, O] -> [O, I]."""
        dimensions = len(self.shape) - self.stacked
        if self.path[-1] not in ("kernel", "kernels", "weight"):
            return tuple(range(dimensions))
        return (3, 2, 0, 1) if dimensions == 4 else (1, 0)

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of each tensor in the file."""
        shape = self.shape[1:] if self.stacked else self.shape
        return tuple(shape[axis] for axis in self.axes)

    def from_tensors(self, tensors: Tensors) -> np.ndarray:
        inverse = np.argsort(self.axes)
        arrays = [np.transpose(tensors[name], inverse) for name in self.names]
        return np.stack(arrays) if self.stacked else arrays[0]

    def to_tensors(self, leaf: Any) -> Tensors:
        arrays = np.asarray(leaf) if self.stacked else [np.asarray(leaf)]
        return {
            # `copy`, because ascontiguousarray would make a scalar a vector.
            name: np.transpose(array, self.axes).copy(order="C")
            for name, array in zip(self.names, arrays, strict=True)
        }


def entries(network: Network, kind: Kind) -> list[Entry]:
    """Every leaf of the network's trees with its names in a checkpoint."""
    leaves = jax.tree_util.tree_flatten_with_path(abstract_variables(network))[0]
    rules = kind.rules(network)
    return [_entry(rules, path, leaf.shape) for path, leaf in leaves]


def abstract_variables(network: Network) -> dict[str, Any]:
    """Shapes of the network's parameters and stats, without computing anything."""
    return jax.eval_shape(network.init, jax.random.key(0), *network.inputs())


def _entry(rules: Rules, path: Any, shape: tuple[int, ...]) -> Entry:
    collection, *keys = (part.key for part in path)
    name = "/" + "/".join(keys)
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    name = name[1:].replace("/", ".")
    count = shape[0] if keys[-1] == "kernels" else 1
    names = tuple(name.format(index) for index in range(count))
    return Entry(collection, tuple(keys), shape, names)


def reference_rules(network: Network) -> Rules:
    """Those of MI-GAN's reference, and of StyleGAN2's descendants."""
    reparam = getattr(network, "reparam", None)
    if reparam is None or reparam.form == "fused":
        return _RELEASED
    if reparam.form == "collapsed":
        raise ValueError("Collapsed kernels have no names in a file: expand or fuse.")
    return _TRAINING


def is_constant(name: str) -> bool:
    """Whether a tensor of this name is a constant that files carry along."""
    return _CONSTANT.search(name) is not None


def filter_buffers(network: Network, owners: Sequence[str]) -> Tensors:
    """FIR taps as training's networks hold them: a buffer [4, 4] in each owner.

    "{}" in an owner's name stands for every level above 4; others have one.
    """
    upper = levels(network.resolution)[1:]
    return {
        f"{owner.format(r)}.resample_filter": _FIR.copy()
        for owner in owners
        for r in (upper if "{}" in owner else upper[:1])
    }


def fused_constants(network: Network) -> Tensors:
    """What released MI-GAN generators hold beside their parameters."""
    masks = {}
    for r in levels(network.resolution)[1:]:
        stuffing = np.zeros((1, 1, r, r), np.float32)
        stuffing[..., ::2, ::2] = 1
        for owner in (f"synthesis.b{r}.conv1", f"synthesis.b{r}"):
            masks[f"{owner}.upsample.filter_const"] = stuffing.copy()
    return masks | fused_filter_taps(network)


def fused_filter_taps(network: Network) -> Tensors:
    """FIR taps as the released generators hold them: depthwise kernels [C, 1, 4, 4]."""
    taps = {}
    for r in levels(network.resolution)[1:]:
        c = channels_at(r, network.channel_base, network.channel_max)
        down, up = f"encoder.b{r}.conv2.downsample", f"synthesis.b{r}.conv1.upsample"
        taps[f"{down}.filter.weight"] = np.tile(_FIR, (c, 1, 1, 1))
        taps[f"{up}.filter.weight"] = np.tile(4 * _FIR, (c, 1, 1, 1))
        image_up = f"synthesis.b{r}.upsample"
        taps[f"{image_up}.filter.weight"] = np.tile(4 * _FIR, (3, 1, 1, 1))
    return taps


_FIR = (np.outer(TAPS, TAPS) / sum(TAPS) ** 2).astype(np.float32)
