"""A network with its weights, read from and written to any of the formats.

Released file, own file or workdir: the ending decides the format, and the tensors'
names and shapes decide the network.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from migan_jax.errors import UserError
from migan_jax.models import discriminators
from migan_jax.weights import fusing, workdir
from migan_jax.weights.families import Network, has_kernels
from migan_jax.weights.inference import Misfit, infer_network
from migan_jax.weights.names import constants, entries, is_constant
from migan_jax.weights.reading import (
    FILE_ENDINGS,
    Tensors,
    read_tensors,
    write_tensors,
)

Form = Literal["fused", "training"]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A network and its weights: `params` trainable, `stats` not (noise, w_avg)."""

    network: Network
    params: Any
    stats: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `network.apply` takes."""
        return {"params": self.params, "stats": self.stats}


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.pt`, a `.safetensors` or a workdir; n kernels come back as one."""
    path = Path(path)
    if path.is_dir():
        return Checkpoint(*workdir.read(path))
    return _collapsed(load_file(path))


def load_file(path: Path) -> Checkpoint:
    """Read a `.pt` or a `.safetensors`, kernels in the form that the file has."""
    try:
        return from_tensors(read_tensors(path))
    except Misfit as misfit:
        raise UserError(f"{path} does not fit: {misfit}") from misfit


def save_checkpoint(checkpoint: Checkpoint, path: str | Path, form: Form) -> None:
    """Write a `.pt`, a `.safetensors` or, for a name without ending, a workdir.

    In files, "fused" is the released format and "training" the reference's n-kernel
    one; a workdir keeps trainable kernels as one each.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already: remove it or choose another output.")
    checkpoint = to_form(checkpoint, form)
    if is_file_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, to_tensors(checkpoint))
    else:
        workdir.write(path, checkpoint.network, checkpoint.params, checkpoint.stats)


def is_file_name(path: Path) -> bool:
    """Whether an output of this name is a file of tensors, or else a workdir."""
    if path.suffix in FILE_ENDINGS:
        return True
    if path.suffix[1:].isalpha():
        raise UserError(
            f"{path} has an ending that cannot be written: use "
            f"{', '.join(FILE_ENDINGS)}, or a name without ending for a workdir."
        )
    return False


def to_form(checkpoint: Checkpoint, form: Form) -> Checkpoint:
    """Fuse or un-fuse; networks without re-parametrised kernels have one form only."""
    network = checkpoint.network
    if not has_kernels(network):
        return checkpoint
    if form == "training":
        if network.reparam.form != "fused":
            return checkpoint
        return _with_kernels(checkpoint, "collapsed", fusing.unfuse(checkpoint.params))
    if isinstance(network, discriminators.MIGANDiscriminator):
        raise UserError(
            "A discriminator has no fused form, it is used in training only: "
            "convert it with --form=training."
        )
    if network.reparam.form == "fused":
        return checkpoint
    return _with_kernels(checkpoint, "fused", fusing.fuse(checkpoint.params))


def from_tensors(tensors: Tensors) -> Checkpoint:
    """The network that named tensors belong to, kernels in the form they come in."""
    network = infer_network(tensors)
    wanted = entries(network)
    shapes = {name: entry.tensor_shape for entry in wanted for name in entry.names}
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
    if problems:
        raise Misfit(network, problems)
    trees: dict[str, Any] = {"params": {}, "stats": {}}
    for entry in wanted:
        branch = trees[entry.collection]
        for key in entry.path[:-1]:
            branch = branch.setdefault(key, {})
        branch[entry.path[-1]] = jnp.asarray(entry.from_tensors(tensors))
    return Checkpoint(network, trees["params"], trees["stats"])


def to_tensors(checkpoint: Checkpoint) -> Tensors:
    """Named tensors as the reference has them, constants included."""
    checkpoint = _expanded(checkpoint)
    tensors: Tensors = {}
    for entry in entries(checkpoint.network):
        leaf = checkpoint.variables[entry.collection]
        for key in entry.path:
            leaf = leaf[key]
        tensors |= entry.to_tensors(jax.device_get(leaf))
    return tensors | constants(checkpoint.network)


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
    return Checkpoint(network, params, checkpoint.stats)
