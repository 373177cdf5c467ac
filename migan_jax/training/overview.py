"""What a run is going to be, said before it begins: sizes, memory, disk."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.stages import Compiled

from migan_jax.errors import UserError
from migan_jax.files import readable_size
from migan_jax.training.step import TrainState


def describe_state(state: TrainState) -> list[str]:
    """Parameters by network and level, and the bytes of everything that is trained."""
    lines = []
    for network, tree in state.params.items():
        lines.append(f"{network}: {_count(tree):,} parameters")
        parts = tree if "synthesis" in tree else {"levels": tree}
        for part, subtree in parts.items():
            levels = ", ".join(
                f"{name} {_count(leaves):,}"
                for name, leaves in sorted(subtree.items(), key=_by_level)
            )
            lines.append(f"  {part}: {levels}")
    kinds = {
        "parameters": state.params,
        "optimisers": state.opt_state,
        "EMA": state.ema,
    }
    sizes = ", ".join(
        f"{name} {readable_size(_bytes(tree))}" for name, tree in kinds.items()
    )
    return [*lines, f"state: {readable_size(_bytes(state))} on each device ({sizes})"]


def _by_level(item: tuple[str, Any]) -> tuple[int, str]:
    name, _ = item
    return (int(name[1:]) if name[1:].isdigit() else 0), name


def describe_memory(programs: Mapping[str, Compiled]) -> list[str]:
    """What the compiled steps take of each device's memory."""
    lines = []
    for name, program in programs.items():
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
    one = _bytes(state)
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
