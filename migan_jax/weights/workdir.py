"""The part of a run's folder that other programs read: network and exported weights.

`<workdir>/checkpoints/<step>/` is an Orbax checkpoint; its item `network` describes the
network as JSON, `exported` holds the weights to ship (in training: the EMA).
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from migan_jax.errors import UserError
from migan_jax.files import reason, write_whole
from migan_jax.weights.families import Network, build, describe
from migan_jax.weights.locations import CHECKPOINTS, check_checkpoint, located
from migan_jax.weights.names import abstract_variables


def write(path: Path, network: Network, params: Any, stats: Any) -> None:
    """Make a workdir with one checkpoint, step 0."""
    items = ocp.args.Composite(
        network=ocp.args.JsonSave(describe(network)),
        exported=ocp.args.StandardSave({"params": params, "stats": stats}),
    )

    def save(part: Path) -> None:
        with _manager(part, create=True) as manager:
            manager.save(0, args=items)

    write_whole(path, save)


def read(path: Path) -> tuple[Network, Any, Any]:
    """Network, parameters and stats of a workdir's newest step, or of a given one."""
    check_checkpoint(path)
    workdir, step = located(path)
    with _manager(workdir, create=False) as manager:
        step = manager.latest_step() if step is None else step
        if step is None:
            raise UserError(f"{workdir} holds no finished checkpoint yet.")
        try:
            return _restore(manager, step)
        except Exception as error:  # damage can show anywhere in Orbax's reader
            raise UserError(
                f"{workdir / CHECKPOINTS / str(step)} cannot be read, it is damaged or "
                f"incomplete ({reason(error)}): get it again, or move it away to use "
                f"an older step."
            ) from error


def _restore(manager: ocp.CheckpointManager, step: int) -> tuple[Network, Any, Any]:
    described = ocp.args.Composite(network=ocp.args.JsonRestore())
    network = build(manager.restore(step, args=described)["network"])
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        {"stats": {}, **abstract_variables(network)},
    )
    exported = ocp.args.Composite(exported=ocp.args.StandardRestore(target))
    variables = manager.restore(step, args=exported)["exported"]
    return network, variables["params"], variables["stats"]


def _manager(path: Path, create: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        create=create, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager((path / CHECKPOINTS).absolute(), options=options)
