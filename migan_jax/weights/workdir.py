"""Checkpoints in a workdir, as every program reads them: `checkpoints/<step>/`.

An Orbax checkpoint. Its item `network` describes the exported networks as JSON, by
role; `exported` holds their weights (of a run: the EMA). Earlier versions exported one
network, and stored both items without a role. A manifest beside the items holds the
SHA-256 of their files, since Orbax does not notice all damage.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from migan_jax.errors import UserError
from migan_jax.files import read_json, reason, sha256_of, sync_tree, write_whole
from migan_jax.weights.kinds import Kinds, Network, build, describe, kind_named
from migan_jax.weights.locations import (
    CHECKPOINTS,
    MANIFEST,
    find_checkpoint,
    resolve_path,
)
from migan_jax.weights.names import abstract_variables

NetworkWeights = tuple[Network, Any, Any]  # a network, its parameters and stats


def steps_in(checkpoints: Path) -> list[int]:
    """Return the steps of finished checkpoints; unfinished ones have other names."""
    with os.scandir(checkpoints) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def write_manifest(step: Path) -> None:
    """Write the manifest of a step's folder, and sync the folder to the disk."""
    items = (path for path in step.rglob("*") if path.is_file() and path.parent != step)
    digests = {path.relative_to(step).as_posix(): sha256_of(path) for path in items}
    (step / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=1) + "\n")
    sync_tree(step)


def has_manifest(step: Path) -> bool:
    """Return whether there is a manifest; early versions wrote none."""
    return os.path.lexists(step / MANIFEST)


def check_manifest(step: Path, *items: str) -> None:
    """Raise ValueError or UserError if a file of these items does not match it."""
    if not has_manifest(step):
        return
    hint = "without it, damage cannot be found"
    manifest = read_json(step / MANIFEST, hint, sha256=dict[str, str])
    unseen = set(items)
    for name, digest in manifest["sha256"].items():
        item = name.partition("/")[0]
        if item not in items:
            continue
        unseen.discard(item)
        if not (step / name).is_file():
            raise ValueError(f"{name} is missing")
        if sha256_of(step / name) != digest:
            raise ValueError(f"{name} has changed since it was written")
    if unseen:
        raise ValueError(f"{MANIFEST} does not list {', '.join(sorted(unseen))}")


def write(path: Path, networks: Mapping[str, NetworkWeights], kinds: Kinds) -> None:
    """Write a workdir with one checkpoint, step 0, of networks by role."""
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
        write_manifest(step)

    write_whole(path, save)


def export_items(
    networks: Mapping[str, Network], variables: Mapping[str, Any], kinds: Kinds
) -> dict[str, Any]:
    """Return the items `network` and `exported`, for Orbax to save."""
    described = {role: describe(network, kinds) for role, network in networks.items()}
    return {
        "network": ocp.args.JsonSave(described),
        "exported": ocp.args.StandardSave(dict(variables)),
    }


def step_folder(path: Path) -> Path:
    """Return the folder of a workdir's newest step, or of the given one."""
    workdir, step = resolve_path(path)
    if step is None:
        try:
            step = max(steps_in(workdir / CHECKPOINTS), default=None)
        except OSError as error:
            raise UserError(f"Cannot read {workdir}: {reason(error)}.") from error
    if step is None:
        raise UserError(f"{workdir} holds no finished checkpoint yet.")
    return (workdir / CHECKPOINTS / str(step)).absolute()


def read(path: Path, kinds: Kinds) -> dict[str, NetworkWeights]:
    """Read the exported networks of a workdir's newest or given step, by role."""
    step = step_folder(find_checkpoint(path))
    with _explain_damage(step):
        check_manifest(step, "network", "exported")
        described = read_json_item(step, "network")
        if "family" in described:  # an earlier version, with one network
            described = {kind_named(described["family"], kinds).role: described}
        networks = {role: build(fields, kinds) for role, fields in described.items()}
        if not networks:
            raise ValueError("it describes no network")
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
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


def read_trained(path: Path) -> dict[str, Any] | None:
    """Read `params` and `stats` of all networks of a run, exported or not, as numpy.

    Returns None for a workdir without a run, such as a converted checkpoint.
    """
    step = step_folder(path)
    if not (step / "params").exists():
        return None
    with _explain_damage(step):
        check_manifest(step, "params")
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(step / "params").item_metadata.tree
            on_host = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree)
            return reader.restore(step / "params", restore_args=on_host)


def read_exported(step: Path, target: Mapping[str, Any]) -> dict[str, Any]:
    """Read the exported variables by role, onto the devices of `target`."""
    if "family" in read_json_item(step, "network"):
        ((role, tree),) = target.items()
        return {role: read_arrays(step, "exported", tree)}
    return read_arrays(step, "exported", dict(target))


def read_json_item(step: Path, item: str, name: str = "metadata") -> Any:
    """Read an item that Orbax saved as JSON."""
    return json.loads((step / item / name).read_text())


def read_arrays(step: Path, item: str, target: Any) -> Any:
    """Read an item of arrays, onto the devices of `target`."""
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(step / item, target)


@contextlib.contextmanager
def _explain_damage(step: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Orbax's reader fails in many ways on damaged files
        raise UserError(
            f"Cannot read {step}: it is damaged or incomplete ({reason(error)}). Get "
            f"it again, or move it away to use an older step."
        ) from error
