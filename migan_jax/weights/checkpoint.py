"""Networks with their weights, and reading and writing them in all formats.

The extension selects the format (a tensor file or a workdir). The tensors' names and
shapes determine the network.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from migan_jax.errors import UserError
from migan_jax.files import refuse_undecodable
from migan_jax.weights import kernel_forms, workdir
from migan_jax.weights.architecture import (
    NetworkMismatch,
    UnknownNetwork,
    infer_networks,
)
from migan_jax.weights.kinds import Kinds, Network, has_kernels, kind_of
from migan_jax.weights.locations import OUTPUT_SUFFIXES, find_checkpoint
from migan_jax.weights.names import Entry, entries, is_constant
from migan_jax.weights.tensor_files import Tensors, read_tensors, write_tensors

KernelForm = Literal["fused", "training"]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network and its weights: trainable `params`, other `stats` (noise, w_avg)."""

    network: Network
    params: Any
    stats: Any
    source: str = "the network"  # its path, for messages

    @property
    def digest(self) -> str:
        """SHA-256 of all arrays and their names."""
        content = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            content.update(jax.tree_util.keystr(path).encode())
            content.update(np.ascontiguousarray(leaf).tobytes())
        return content.hexdigest()

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for `network.apply`."""
        return {"params": self.params, "stats": self.stats}


def load_checkpoints(path: str | Path, kinds: Kinds) -> dict[str, Checkpoint]:
    """Read a `.pt`, a `.safetensors` or a workdir by role, with kernels collapsed."""
    path = find_checkpoint(Path(path))
    read = _load_workdir if os.path.isdir(path) else load_file
    return {role: _collapse(loaded) for role, loaded in read(path, kinds).items()}


def load_file(path: Path, kinds: Kinds) -> dict[str, Checkpoint]:
    """Read a `.pt` or a `.safetensors` by role; keep the file's kernel form."""
    try:
        loaded = from_tensors(read_tensors(path), kinds)
    except (UnknownNetwork, NetworkMismatch) as error:
        raise UserError(f"{path}: {error}") from error
    return {
        role: dataclasses.replace(checkpoint, source=str(path))
        for role, checkpoint in loaded.items()
    }


def _load_workdir(path: Path, kinds: Kinds) -> dict[str, Checkpoint]:
    loaded = {
        role: Checkpoint(*weights, source=str(path))
        for role, weights in workdir.read(path, kinds).items()
    }
    leaves = jax.tree_util.tree_leaves_with_path(
        {role: checkpoint.variables for role, checkpoint in loaded.items()}
    )
    broken = [jax.tree_util.keystr(k) for k, v in leaves if not np.isfinite(v).all()]
    if broken:
        raise UserError(
            f"{path} holds NaN or infinity in {len(broken)} of {len(leaves)} arrays, "
            f"first in {broken[0]}. Use a checkpoint from before the run diverged."
        )
    return loaded


def save_checkpoints(
    checkpoints: Iterable[Checkpoint], path: str | Path, form: KernelForm, kinds: Kinds
) -> None:
    """Write a `.pt`, a `.safetensors` or, without an extension, a workdir.

    In files, "fused" is the released format and "training" the reference's n-kernel
    format. A workdir stores trainable kernels collapsed.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise UserError(f"{path} exists already. Remove it or choose another output.")
    checkpoints = [to_form(checkpoint, form) for checkpoint in checkpoints]
    if is_file_name(path):
        tensors: Tensors = {}
        for checkpoint in checkpoints:
            tensors |= to_tensors(checkpoint, kinds)
        write_tensors(path, tensors)
    else:
        weights = {
            kind_of(one.network, kinds).role: (one.network, one.params, one.stats)
            for one in map(_collapse, checkpoints)
        }
        workdir.write(path, weights, kinds)


def is_file_name(path: Path) -> bool:
    """Return whether the output is a tensor file; otherwise it is a workdir."""
    if path.suffix in OUTPUT_SUFFIXES:
        return True
    if path.suffix[1:2].isalpha():  # "v1.0" names a folder
        raise UserError(
            f"{path} has an unsupported extension. Use {', '.join(OUTPUT_SUFFIXES)}, "
            f"or no extension for a workdir."
        )
    refuse_undecodable(path)
    return False


def to_form(checkpoint: Checkpoint, form: KernelForm) -> Checkpoint:
    """Fuse or un-fuse; networks without re-parametrised kernels stay unchanged."""
    network = checkpoint.network
    if not has_kernels(network):
        return checkpoint
    if form == "training":
        if network.reparam.form != "fused":
            return checkpoint
        params = kernel_forms.unfuse(checkpoint.params, checkpoint.source)
        return _replace_kernels(checkpoint, "collapsed", params)
    if not network.can_be_fused:
        raise UserError(
            f"{checkpoint.source} is a discriminator, which has no fused form. Convert "
            f"it with --form=training."
        )
    if network.reparam.form == "fused":
        return checkpoint
    params = kernel_forms.fuse(_collapse(checkpoint).params)
    return _replace_kernels(checkpoint, "fused", params)


def from_tensors(tensors: Tensors, kinds: Kinds) -> dict[str, Checkpoint]:
    """Build the networks that have these tensors, by role; keep the kernel form."""
    for kind in kinds:
        tensors = kind.rename(tensors)
    networks = infer_networks(tensors, kinds)
    by_kind = {kind_of(network, kinds): network for network in networks}
    expected = {kind: entries(network, kind) for kind, network in by_kind.items()}
    shapes = {
        name: entry.tensor_shape
        for leaves in expected.values()
        for entry in leaves
        for name in entry.names
    }
    problems = [
        f"missing: {name}, shape {list(shape)}"
        for name, shape in shapes.items()
        if name not in tensors
    ]
    for name, array in tensors.items():
        if name not in shapes:
            if not is_constant(name):
                problems.append(f"not part of this network: {name}")
        elif array.shape != shapes[name]:
            problems.append(
                f"{name}: shape {list(array.shape)} instead of {list(shapes[name])}"
            )
        elif array.dtype.kind != "f":
            problems.append(f"{name}: {array.dtype} instead of floating point")
        elif not np.isfinite(array).all():
            problems.append(f"{name}: holds NaN or infinity")
    if problems:
        raise NetworkMismatch(networks, kinds, problems)
    return {
        kind.role: _assemble(network, expected[kind], tensors)
        for kind, network in by_kind.items()
    }


def _assemble(network: Network, leaves: list[Entry], tensors: Tensors) -> Checkpoint:
    flat = {
        (entry.collection, *entry.path): jnp.asarray(entry.from_tensors(tensors))
        for entry in leaves
    }
    return Checkpoint(network, **{"stats": {}} | unflatten_dict(flat))


def to_tensors(checkpoint: Checkpoint, kinds: Kinds) -> Tensors:
    """Return the tensors with the reference's names, including constants."""
    checkpoint = _expand(checkpoint)
    kind = kind_of(checkpoint.network, kinds)
    leaves = flatten_dict(checkpoint.variables)
    tensors: Tensors = {}
    for entry in entries(checkpoint.network, kind):
        leaf = leaves[entry.collection, *entry.path]
        tensors |= entry.to_tensors(jax.device_get(leaf))
    return tensors | kind.constants(checkpoint.network)


def _collapse(checkpoint: Checkpoint) -> Checkpoint:
    if not _has_form(checkpoint.network, "expanded"):
        return checkpoint
    params = kernel_forms.collapse(checkpoint.params)
    return _replace_kernels(checkpoint, "collapsed", params)


def _expand(checkpoint: Checkpoint) -> Checkpoint:
    network = checkpoint.network
    if not _has_form(network, "collapsed"):
        return checkpoint
    params = kernel_forms.expand(checkpoint.params, network.reparam.kernels)
    return _replace_kernels(checkpoint, "expanded", params)


def _has_form(network: Network, form: str) -> bool:
    return has_kernels(network) and network.reparam.form == form


def _replace_kernels(checkpoint: Checkpoint, form: str, params: Any) -> Checkpoint:
    reparam = dataclasses.replace(checkpoint.network.reparam, form=form)
    network = checkpoint.network.clone(reparam=reparam)
    return dataclasses.replace(checkpoint, network=network, params=params)
