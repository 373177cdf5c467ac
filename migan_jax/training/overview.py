"""Log messages before a run: data, devices, sizes, memory and disk space."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from clu.parameter_overview import get_parameter_overview
from jax.stages import Compiled

from migan_jax.config import flat
from migan_jax.errors import UserError
from migan_jax.files import readable_size, write_json, write_whole
from migan_jax.systems.base import TrainState
from migan_jax.training.checkpoint import checkpoint_bytes
from migan_jax.training.devices import describe_dtype, idle_accelerator
from migan_jax.training.programs import peak_memory
from migan_jax.weights.locations import CONFIG_FILE

if TYPE_CHECKING:
    from migan_jax.training.setup import Setup

logger = logging.getLogger(__name__)

PARAMETERS_FILE = "parameters.txt"


def log_overview(setup: "Setup") -> None:
    """Log an overview of the run, and write its settings to the workdir."""
    config, source = setup.config, setup.source.fingerprint
    data, space = setup.mesh.devices.shape
    if jax.process_index() == 0:
        write_json(setup.workdir / CONFIG_FILE, flat(config))
        table = get_parameter_overview(setup.state.params, include_stats=False)
        path = setup.workdir / PARAMETERS_FILE
        write_whole(path, lambda part: part.write_text(table + "\n"))
    for line in describe_state(setup.state):
        logger.info(line)
    kept = config.keep_last + config.keep_best
    logger.info(check_disk(setup.workdir, setup.state, kept))
    logger.info(
        "data: %s, %s images, fingerprint %s",
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
            "%d devices share an image, to keep the batch size (mesh.space=auto)", space
        )
    logger.info(describe_dtype(config.networks.dtype, setup.dtype_is_auto))
    if warning := idle_accelerator():
        logger.warning(warning)


def describe_state(state: TrainState) -> list[str]:
    """Describe the number of parameters by network, and the size of the state."""
    lines = [
        f"{network}: {sum(leaf.size for leaf in jax.tree.leaves(tree)):,} parameters"
        for network, tree in state.params.items()
    ]
    trees = {
        "parameters": state.params,
        "optimisers": state.opt_state,
        "EMA": state.ema,
    }
    sizes = ", ".join(
        f"{name} {readable_size(_bytes(tree))}" for name, tree in trees.items()
    )
    return [*lines, f"state: {readable_size(_bytes(state))} on each device ({sizes})"]


def describe_memory(stage: str, programs: Mapping[int, Compiled]) -> list[str]:
    """Describe the memory of a stage's compiled programs, given by interval."""
    lines = []
    for every, program in programs.items():
        name = stage if every == 1 else f"{stage}, every {every} steps"
        memory = program.memory_analysis()
        lines.append(
            f"memory of {name}: {readable_size(peak_memory(memory))} on each device, "
            f"of which {readable_size(memory.argument_size_in_bytes)} are weights and "
            f"batch"
        )
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        lines.append(f"memory available: {readable_size(limit)} on each device")
    return lines


def check_disk(workdir: Path, state: TrainState, kept: int) -> str:
    """Describe the disk space of checkpoints; raise UserError if two do not fit."""
    one = checkpoint_bytes(state)
    needed = (kept + 1) * one  # a new one is written before an old one is removed
    free = shutil.disk_usage(workdir).free
    if free < 2 * one:
        raise UserError(
            f"{workdir} has {readable_size(free)} free, but needs space for two "
            f"checkpoints of {readable_size(one)}. Free some space, or choose a "
            f"--workdir on another disk."
        )
    return (
        f"disk: {readable_size(needed)} needed for {kept} checkpoints of "
        f"{readable_size(one)} and one being written, {readable_size(free)} free"
    )


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
