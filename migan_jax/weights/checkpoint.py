"""A network with its weights, read from and written to any of the formats.

Released file, own file or workdir: the ending decides the format, and the tensors'
names and shapes decide the network.
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

from migan_jax.errors import UserError
from migan_jax.files import refuse_undecodable
from migan_jax.weights import fusing, workdir
from migan_jax.weights.inference import Misfit, Unknown, infer_networks
from migan_jax.weights.kinds import Kinds, Network, has_kernels, kind_of
from migan_jax.weights.locations import FILE_ENDINGS
from migan_jax.weights.names import Entry, entries, is_constant
from migan_jax.weights.reading import Tensors, read_tensors, write_tensors

Form = Literal["fused", "training"]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network and its weights: `params` trainable, `stats` not (noise, w_avg)."""

    network: Network
    params: Any
    stats: Any
    source: str = "the network"  # where it was read from, for messages

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
        """What `network.apply` takes."""
        return {"params": self.params, "stats": self.stats}


def load_checkpoints(path: str | Path, kinds: Kinds) -> dict[str, Checkpoint]:
    """Read a `.pt`, a `.safetensors` or a workdir, by role; n kernels become one."""
    path = Path(path)
    read = _load_workdir if os.path.isdir(path) else load_file
    return {role: _collapsed(one) for role, one in read(path, kinds).items()}


def load_file(path: Path, kinds: Kinds) -> dict[str, Checkpoint]:
    """Read a `.pt` or a `.safetensors`, kernels in the form that the file has."""
    try:
        found = from_tensors(read_tensors(path), kinds)
    except (Unknown, Misfit) as error:
        raise UserError(f"{path} does not fit: {error}") from error
    return {
        role: dataclasses.replace(checkpoint, source=str(path))
        for role, checkpoint in found.items()
    }


def _load_workdir(path: Path, kinds: Kinds) -> dict[str, Checkpoint]:
    found = {
        role: Checkpoint(*parts, source=str(path))
        for role, parts in workdir.read(path, kinds).items()
    }
    leaves = jax.tree_util.tree_leaves_with_path(
        {role: checkpoint.variables for role, checkpoint in found.items()}
    )
    broken = [jax.tree_util.keystr(k) for k, v in leaves if not np.isfinite(v).all()]
    if broken:
        raise UserError(
            f"{path} holds NaN or infinity in {len(broken)} of {len(leaves)} arrays, "
            f"first in {broken[0]}: use a checkpoint from before the run diverged."
        )
    return found


def save_checkpoints(
    checkpoints: Iterable[Checkpoint], path: str | Path, form: Form, kinds: Kinds
) -> None:
    """Write a `.pt`, a `.safetensors` or, for a name without ending, a workdir.

    In files, "fused" is the released format and "training" the reference's n-kernel
    one; a workdir keeps trainable kernels as one each.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise UserError(f"{path} exists already: remove it or choose another output.")
    checkpoints = [to_form(checkpoint, form) for checkpoint in checkpoints]
    if is_file_name(path):
        tensors: Tensors = {}
        for checkpoint in checkpoints:
            tensors |= to_tensors(checkpoint, kinds)
        write_tensors(path, tensors)
    else:
        parts = {
            kind_of(one.network, kinds).role: (one.network, one.params, one.stats)
            for one in map(_collapsed, checkpoints)
        }
        workdir.write(path, parts, kinds)


def is_file_name(path: Path) -> bool:
    """Whether an output of this name is a file of tensors, or else a workdir."""
    if path.suffix in FILE_ENDINGS:
        return True
    if path.suffix[1:2].isalpha():  # "v1.0" names a folder
        raise UserError(
            f"{path} has an ending that cannot be written: use "
            f"{', '.join(FILE_ENDINGS)}, or a name without ending for a workdir."
        )
    refuse_undecodable(path)
    return False


def to_form(checkpoint: Checkpoint, form: Form) -> Checkpoint:
    """Fuse or un-fuse; networks without re-parametrised kernels have one form only."""
    network = checkpoint.network
    if not has_kernels(network):
        return checkpoint
    if form == "training":
        if network.reparam.form != "fused":
            return checkpoint
        params = fusing.unfuse(checkpoint.params, checkpoint.source)
        return _with_kernels(checkpoint, "collapsed", params)
    if not network.can_be_fused:
        raise UserError(
            f"{checkpoint.source} is a discriminator, which is used in training only "
            f"and has no fused form: convert it with --form=training."
        )
    if network.reparam.form == "fused":
        return checkpoint
    params = fusing.fuse(_collapsed(checkpoint).params)
    return _with_kernels(checkpoint, "fused", params)


def from_tensors(tensors: Tensors, kinds: Kinds) -> dict[str, Checkpoint]:
    """The networks that named tensors belong to, kernels in the form they come in."""
    networks = infer_networks(tensors, kinds)
    by_kind = {kind_of(network, kinds): network for network in networks}
    wanted = {kind: entries(network, kind) for kind, network in by_kind.items()}
    shapes = {
        name: entry.tensor_shape
        for leaves in wanted.values()
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
        raise Misfit(networks, kinds, problems)
    return {
        kind.role: _assembled(network, wanted[kind], tensors)
        for kind, network in by_kind.items()
    }


def _assembled(network: Network, leaves: list[Entry], tensors: Tensors) -> Checkpoint:
    trees: dict[str, Any] = {"params": {}, "stats": {}}
    for entry in leaves:
        branch = trees[entry.collection]
        for key in entry.path[:-1]:
            branch = branch.setdefault(key, {})
        branch[entry.path[-1]] = jnp.asarray(entry.from_tensors(tensors))
    return Checkpoint(network, trees["params"], trees["stats"])


def to_tensors(checkpoint: Checkpoint, kinds: Kinds) -> Tensors:
    """Named tensors as the reference has them, constants included."""
    checkpoint = _expanded(checkpoint)
    kind = kind_of(checkpoint.network, kinds)
    tensors: Tensors = {}
    for entry in entries(checkpoint.network, kind):
        leaf = checkpoint.variables[entry.collection]
        for key in entry.path:
            leaf = leaf[key]
        tensors |= entry.to_tensors(jax.device_get(leaf))
    return tensors | kind.constants(checkpoint.network)


def _collapsed(checkpoint: Checkpoint) -> Checkpoint:
    if not _has_form(checkpoint.network, "expanded"):
        return checkpoint
    return _with_kernels(checkpoint, "collapsed", fusing.collapse(checkpoint.params))


def _expanded(checkpoint: Checkpoint) -> Checkpoint:
    network = checkpoint.network
    if not _has_form(network, "collapsed"):
        return checkpoint
    params = fusing.expand(checkpoint.params, network.reparam.kernels)
    return _with_kernels(checkpoint, "expanded", params)


def _has_form(network: Network, form: str) -> bool:
    return has_kernels(network) and network.reparam.form == form


def _with_kernels(checkpoint: Checkpoint, form: str, params: Any) -> Checkpoint:
    reparam = dataclasses.replace(checkpoint.network.reparam, form=form)
    network = checkpoint.network.clone(reparam=reparam)
    return dataclasses.replace(checkpoint, network=network, params=params)
