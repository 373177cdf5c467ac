"""The part of a run's folder that other programs read: networks and exported weights.

`<workdir>/checkpoints/<step>/` is an Orbax checkpoint; its item `network` describes the
exported networks as JSON, by role, `exported` holds the weights to ship (in training:
the EMA). Of versions that had one network to export, both are of it alone. Beside the
items, a manifest has the SHA-256 of their files: damage is found by it, and not by what
libraries do with damaged files.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from migan_jax.errors import UserError
from migan_jax.files import read_json, reason, sha256_of, sync_tree, write_whole
from migan_jax.weights.kinds import Kinds, Network, build, describe, kind_named
from migan_jax.weights.locations import CHECKPOINTS, check_checkpoint, located
from migan_jax.weights.names import abstract_variables

MANIFEST = "manifest.json"

Parts = tuple[Network, Any, Any]  # a network, its parameters and stats


def steps_in(checkpoints: Path) -> list[int]:
    """Steps of which there is a checkpoint; Orbax completes it under another name."""
    with os.scandir(checkpoints) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def seal(step: Path) -> None:
    """Write the manifest of a step's folder, and have all of it on the disk."""
    items = (path for path in step.rglob("*") if path.is_file() and path.parent != step)
    digests = {path.relative_to(step).as_posix(): sha256_of(path) for path in items}
    (step / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=1) + "\n")
    sync_tree(step)


def is_sealed(step: Path) -> bool:
    """Whether there is a manifest; versions before there was one wrote none."""
    return os.path.lexists(step / MANIFEST)


def check_sealed(step: Path, *items: str) -> None:
    """ValueError or UserError if a file of these items is not as it was sealed."""
    if not is_sealed(step):
        return
    why = "nothing tells what is whole"
    manifest = read_json(step / MANIFEST, why, sha256=dict[str, str])
    unseen = set(items)
    for name, digest in manifest["sha256"].items():
        item = name.partition("/")[0]
        if item not in items:
            continue
        unseen.discard(item)
        if not (step / name).is_file():
            raise ValueError(f"{name} is missing")
        if sha256_of(step / name) != digest:
            raise ValueError(f"{name} is not what was written")
    if unseen:
        raise ValueError(f"{MANIFEST} has nothing of {', '.join(sorted(unseen))}")


def write(path: Path, networks: Mapping[str, Parts], kinds: Kinds) -> None:
    """Make a workdir with one checkpoint, step 0, of networks by role."""
    variables = {
        role: {"params": params, "stats": stats}
        for role, (_, params, stats) in networks.items()
    }
    modules = {role: network for role, (network, _, _) in networks.items()}
    items = ocp.args.Composite(**export_items(modules, variables, kinds))

    def save(part: Path) -> None:
        step = part.absolute() / CHECKPOINTS / "0"
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            writer.save(step, args=items)
        seal(step)

    write_whole(path, save)


def export_items(
    networks: Mapping[str, Network], variables: Mapping[str, Any], kinds: Kinds
) -> dict[str, Any]:
    """The items that other programs read, as Orbax saves them."""
    described = {role: describe(network, kinds) for role, network in networks.items()}
    return {
        "network": ocp.args.JsonSave(described),
        "exported": ocp.args.StandardSave(dict(variables)),
    }


def read(path: Path, kinds: Kinds) -> dict[str, Parts]:
    """The exported networks of a workdir's newest step, or of a given one, by role."""
    check_checkpoint(path)
    step = step_folder(path)
    try:
        check_sealed(step, "network", "exported")
        return _restore(step, kinds)
    except Exception as error:  # damage can show anywhere in Orbax's reader
        raise UserError(
            f"{step} cannot be read, it is damaged or incomplete ({reason(error)}): "
            f"get it again, or move it away to use an older step."
        ) from error


def step_folder(path: Path) -> Path:
    """That of a workdir's newest step, or the given one."""
    workdir, step = located(path)
    if step is None:
        try:
            step = max(steps_in(workdir / CHECKPOINTS), default=None)
        except OSError as error:
            raise UserError(f"{workdir} cannot be read: {reason(error)}.") from error
    if step is None:
        raise UserError(f"{workdir} holds no finished checkpoint yet.")
    return (workdir / CHECKPOINTS / str(step)).absolute()


def _restore(step: Path, kinds: Kinds) -> dict[str, Parts]:
    described = json.loads((step / "network" / "metadata").read_text())
    if "family" in described:  # of a version with one network to export
        described = {kind_named(described["family"], kinds).role: described}
    networks = {role: build(fields, kinds) for role, fields in described.items()}
    if not networks:
        raise ValueError("it describes no network")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        {
            role: {"stats": {}, **abstract_variables(network)}
            for role, network in networks.items()
        },
    )
    variables = read_exported(step, target)
    return {
        role: (network, variables[role]["params"], variables[role]["stats"])
        for role, network in networks.items()
    }


def read_exported(step: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """The exported variables of a step, by role, onto the devices of `like`."""
    described = json.loads((step / "network" / "metadata").read_text())
    with ocp.StandardCheckpointer() as reader:
        if "family" in described:
            ((role, target),) = like.items()
            return {role: reader.restore(step / "exported", target)}
        return reader.restore(step / "exported", dict(like))
