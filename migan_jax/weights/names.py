"""Maps between the leaves of our trees and the tensor names of released checkpoints.

The map comes from a network's abstract tree, so it covers exactly the network's leaves.
The released, fused generators and the n-kernel training networks use different names.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from migan_jax.models.channels import channels_at, levels
from migan_jax.ops.resample import TAPS
from migan_jax.weights.kinds import Kind, Network, Rules
from migan_jax.weights.tensor_files import Tensors

# (pattern, replacement): from paths in our trees, joined by "/", to the reference's.
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

# Constants in the files: filter taps, zero-stuffing masks, unused copies of layers,
# and a mark of ours.
_CONSTANT = re.compile(
    r"(^|\.)(resample_filter|filter_const|(up|down)sample\.filter\.weight|"
    r"(pose_preprocessor\.[13]|output_layer)\.linear\.(weight|bias)|weighted_down)$"
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf of our trees, and the names of its tensors."""

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
        """The shape of each tensor in the file."""
        shape = self.shape[1:] if self.stacked else self.shape
        return tuple(shape[axis] for axis in self.axes)

    def from_tensors(self, tensors: Tensors) -> np.ndarray:
        inverse = np.argsort(self.axes)
        arrays = [np.transpose(tensors[name], inverse) for name in self.names]
        return np.stack(arrays) if self.stacked else arrays[0]

    def to_tensors(self, leaf: Any) -> Tensors:
        arrays = np.asarray(leaf) if self.stacked else [np.asarray(leaf)]
        return {
            # Not ascontiguousarray, which would turn a scalar into a vector.
            name: np.transpose(array, self.axes).copy(order="C")
            for name, array in zip(self.names, arrays, strict=True)
        }


def entries(network: Network, kind: Kind) -> list[Entry]:
    """Return all leaves of the network's trees with their names in files."""
    return entries_by(network, kind.rules(network))


def entries_by(network: Network, rules: Rules) -> list[Entry]:
    """Return the same with names by these rules."""
    leaves = flatten_dict(abstract_variables(network))
    return [_make_entry(rules, path, leaf.shape) for path, leaf in leaves.items()]


def abstract_variables(network: Network) -> dict[str, Any]:
    """Return the shapes of the network's parameters and stats."""
    return jax.eval_shape(network.init, jax.random.key(0), *network.inputs())


def _make_entry(rules: Rules, path: tuple[str, ...], shape: tuple[int, ...]) -> Entry:
    collection, *keys = path
    name = "/" + "/".join(keys)
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    name = name[1:].replace("/", ".")
    count = shape[0] if keys[-1] == "kernels" else 1
    names = tuple(name.format(index) for index in range(count))
    return Entry(collection, tuple(keys), shape, names)


def reference_rules(network: Network) -> Rules:
    """Return the rules for the names in the reference, which follow StyleGAN2's."""
    reparam = getattr(network, "reparam", None)
    if reparam is None or reparam.form == "fused":
        return _RELEASED
    if reparam.form == "collapsed":
        raise ValueError(
            "Collapsed kernels have no names in files: expand or fuse them."
        )
    return _TRAINING


def is_constant(name: str) -> bool:
    """Return whether a tensor of this name is a constant in files."""
    return _CONSTANT.search(name) is not None


def filter_buffers(network: Network, owners: Sequence[str]) -> Tensors:
    """Return the training networks' FIR taps: a buffer [4, 4] in each owner.

    "{}" in an owner's name stands for all levels above 4.
    """
    upper = levels(network.resolution)[1:]
    return {
        f"{owner.format(r)}.resample_filter": _FIR.copy()
        for owner in owners
        for r in (upper if "{}" in owner else upper[:1])
    }


def fused_constants(network: Network) -> Tensors:
    """Return all constants of the released MI-GAN generators."""
    masks = {}
    for r in levels(network.resolution)[1:]:
        stuffing = np.zeros((1, 1, r, r), np.float32)
        stuffing[..., ::2, ::2] = 1
        for owner in (f"synthesis.b{r}.conv1", f"synthesis.b{r}"):
            masks[f"{owner}.upsample.filter_const"] = stuffing.copy()
    return masks | fused_filter_taps(network)


def fused_filter_taps(network: Network) -> Tensors:
    """Return the released generators' FIR taps: depthwise kernels [C, 1, 4, 4]."""
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
