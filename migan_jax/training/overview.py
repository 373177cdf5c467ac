"""What a run is going to be, said before it begins: sizes, memory, disk."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.stages import Compiled

from migan_jax.config import flat
from migan_jax.errors import UserError
from migan_jax.files import readable_size, write_json
from migan_jax.models.costs import parameters_by_block
from migan_jax.systems.base import TrainState
from migan_jax.training.checkpoint import size_of
from migan_jax.training.devices import describe_dtype, idle_accelerator
from migan_jax.weights.locations import CONFIG_FILE

if TYPE_CHECKING:
    from migan_jax.training.setup import Setup

logger = logging.getLogger(__name__)


def announce(setup: "Setup") -> None:
    """Say what is going to be done, and note its settings in the workdir."""
    config, source = setup.config, setup.source.fingerprint
    data, space = setup.mesh.devices.shape
    if jax.process_index() == 0:
        write_json(setup.workdir / CONFIG_FILE, flat(config))
    for line in describe_state(setup.state):
        logger.info(line)
    kept = config.keep_last + config.keep_best
    logger.info(check_disk(setup.workdir, setup.state, kept))
    logger.info(
        "data: %s, %s pictures, fingerprint %s",
        source.source,
        f"{len(setup.source):,}",
        source.digest[:12],
    )
    for name, key in setup.family.frozen.items():
        logger.info("%s: %s", name, flat(config)[key] or f"none (config.{key})")
    if len(spans := setup.timeline.spans) > 1:
        stages = (f"{s.stage.name} to step {s.end_step:,}" for s in spans)
        logger.info("stages: %s", ", ".join(stages))
    logger.info(
        "devices: %d %s in %d process%s, batch of %d split %d ways%s",
        setup.mesh.size,
        jax.devices()[0].device_kind,
        jax.process_count(),
        "" if jax.process_count() == 1 else "es",
        config.batch_size,
        data,
        f", images {space} ways by rows" if space > 1 else "",
    )
    if space > 1 and config.mesh.space == "auto":
        logger.info(
            "so that the batch stays what it is, %d devices share an image "
            "(mesh.space=auto)",
            space,
        )
    logger.info(describe_dtype(config.networks.dtype, setup.dtype_is_chosen))
    if sentence := idle_accelerator():
        logger.warning(sentence)


def describe_state(state: TrainState) -> list[str]:
    """Parameters by network and block, and the bytes of everything that is trained."""
    lines = []
    for network, tree in state.params.items():
        lines.append(f"{network}: {_count(tree):,} parameters")
        blocks = parameters_by_block(tree)
        lines.append("  " + ", ".join(f"{name} {n:,}" for name, n in blocks.items()))
    kinds = {
        "parameters": state.params,
        "optimisers": state.opt_state,
        "EMA": state.ema,
    }
    sizes = ", ".join(
        f"{name} {readable_size(_bytes(tree))}" for name, tree in kinds.items()
    )
    return [*lines, f"state: {readable_size(_bytes(state))} on each device ({sizes})"]


def describe_memory(stage: str, programs: Mapping[int, Compiled]) -> list[str]:
    """What the compiled steps of a stage, by interval, take of each device's memory."""
    lines = []
    for every, program in programs.items():
        name = f"{stage}, a step" if every == 1 else f"{stage}, after {every} steps"
        memory = program.memory_analysis()
        arguments = memory.argument_size_in_bytes
        total = arguments + memory.temp_size_in_bytes + memory.output_size_in_bytes
        total -= memory.alias_size_in_bytes
        lines.append(
            f"memory of {name}: {readable_size(total)} on each device, "
            f"{readable_size(arguments)} of it weights and batch"
        )
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        lines.append(f"a device has {readable_size(limit)}")
    return lines


def check_disk(workdir: Path, state: TrainState, kept: int) -> str:
    """Say what checkpoints will need; UserError if there is less."""
    one = size_of(state)
    needed = (kept + 1) * one  # a new one is written before an old one goes
    free = shutil.disk_usage(workdir).free
    if free < 2 * one:
        raise UserError(
            f"{workdir} has {readable_size(free)} free, but a checkpoint is "
            f"{readable_size(one)}, and two must fit: make room, or name a --workdir "
            f"on another disk."
        )
    return (
        f"disk: a checkpoint is {readable_size(one)}, {kept} are kept and one is on "
        f"its way: {readable_size(needed)} of {readable_size(free)} that are free"
    )


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
