"""What a compiled step costs on each device: time, memory, and where they go.

These are estimates, and none was compared with a real accelerator here. Believe ratios
between programs for the same chip rather than milliseconds.
"""

import collections
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from migan_jax.planning.chips import Chip
from migan_jax.planning.hlo import Collective, Op, Program
from migan_jax.training.programs import peak_memory

# Scopes that are a part of the step wherever they occur, except in a network.
SCOPES = ("prepare", "masks", "noise", "optimizer", "ema")
OTHER = "other"
# Of collectives: sums of gradients, rows of neighbours, images that are needed whole.
PURPOSES = "gradients", "halo", "gather"
STATISTICS = "batch_statistics"  # the scope of losses that compare samples


@dataclass(frozen=True)
class OpCost:
    """The cost of several ops.

    Attributes:
      seconds: the compiler's estimate; without one the floor.
      floor_seconds: sum over ops of what takes longer at the chip's peak, moving bytes
        or computing.
    """

    ops: int
    seconds: float
    floor_seconds: float
    hbm_bytes: float
    flops: float


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind, dtype and purpose.

    Attributes:
      purpose: one of PURPOSES, or else the op that they come from.
      times: number of executions, of which `async_times` may overlap with ops.
      seconds: at the published bandwidth of the links, see `link_seconds`.
    """

    kind: str
    dtype: str
    purpose: str
    times: int
    async_times: int
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Memory:
    """Bytes of a device's memory.

    Attributes:
      peak: with the program itself.
      arguments: state, frozen networks and batch.
      activations: what else it needs while it runs.
      code: the program.
    """

    peak: int
    available: float
    arguments: int
    activations: int
    code: int


@dataclass(frozen=True)
class Estimate:
    """What a step costs on each device.

    Attributes:
      total: of all ops. Its time is in sequence, and leaves out collectives, the
        latency of starting ops, what overlaps, and the host.
      has_compiler_time: whether times are the compiler's estimate; else they are the
        floor, which no program reaches.
      compute_seconds: of all FLOPs at the chip's peak, float32 ones in passes.
      hbm_seconds: of all bytes at the memory's bandwidth.
      link_seconds: of all collectives at the links' bandwidth.
      other_bytes: of collectives of no known purpose.
      gradient_bytes: of those that add gradients.
      bound: "compute", "HBM" or "interconnect": what takes longest of these, so that
        the step cannot be faster.
    """

    chip: str
    devices: int
    total: OpCost
    has_compiler_time: bool
    compute_seconds: float
    hbm_seconds: float
    link_seconds: float
    gradient_bytes: float
    other_bytes: float
    bound: str
    memory: Memory
    exchanges: tuple[Exchange, ...]
    by_part: dict[str, OpCost]
    by_kind: dict[str, OpCost]


def estimate(
    program: Program,
    chip: Chip,
    devices: int,
    memory: Any,
    turns: Collection[str],
    networks: Mapping[str, str],
) -> Estimate:
    """Estimate what a program costs.

    Args:
      devices: that the program runs on.
      memory: `compiled.memory_analysis()`.
      turns: scopes of the turns.
      networks: names of networks by class, which is their scope.
    """

    def costs(label: Callable[[Op], str]) -> dict[str, OpCost]:
        groups = collections.defaultdict(list)
        for op in program.ops:
            groups[label(op)].append(op)
        found = {name: _cost(ops, chip) for name, ops in groups.items()}
        return dict(sorted(found.items(), key=lambda item: -item[1].seconds))

    total = _cost(program.ops, chip)
    exchanges = _exchanges(program.collectives, chip, devices)
    bounds = {
        "compute": sum(op.pass_flops for op in program.ops) / chip.flops,
        "HBM": total.hbm_bytes / chip.hbm_bandwidth,
        "interconnect": sum(exchange.seconds for exchange in exchanges),
    }
    return Estimate(
        chip=chip.name,
        devices=devices,
        total=total,
        has_compiler_time=chip.clock is not None,
        compute_seconds=bounds["compute"],
        hbm_seconds=bounds["HBM"],
        link_seconds=bounds["interconnect"],
        gradient_bytes=sum(
            one.bytes for one in exchanges if one.purpose == "gradients"
        ),
        other_bytes=sum(one.bytes for one in exchanges if one.purpose not in PURPOSES),
        bound=max(bounds, key=lambda name: bounds[name]),
        memory=_memory(memory, chip),
        exchanges=exchanges,
        by_part=costs(lambda op: part_of(op.op_name, turns, networks)),
        by_kind=costs(lambda op: op.kind),
    )


def part_of(op_name: str, turns: Collection[str], networks: Mapping[str, str]) -> str:
    """Return the part of the step that an op belongs to, by its scopes.

    Such as "turn: network backward", "masks", or "other".
    """
    turn = part = ""
    for scope in op_name.split("/"):
        name = scope.rpartition("(")[2].rstrip(")")  # without jvp(...) and the like
        if name in networks:
            direction = "backward" if "transpose(" in op_name else "forward"
            prefix = f"{turn}: " if turn else ""
            return f"{prefix}{networks[name]} {direction}"
        if not turn and name in turns:
            turn = name
        elif name in SCOPES:
            part = name
    return part or (f"{turn}: {OTHER}" if turn else OTHER)


def purpose_of(collective: Collective) -> str:
    """Return what a collective is for, by its kind and the op that it comes from."""
    kind, op_name = collective.kind, collective.op_name
    if kind == "collective-permute" and "ppermute" in op_name:
        return "halo"
    if kind == "all-gather" and re.search("sharding_constraint|shard_map", op_name):
        return "gather"  # of a small level, at the entry of its block
    # Statistics of a batch have derivatives, too.
    is_derivative = "transpose(" in op_name and STATISTICS not in op_name
    if kind == "all-reduce" and is_derivative:
        return "gradients"
    return op_name.partition("/")[2]


def link_seconds(collective: Collective, chip: Chip, devices: int) -> float:
    """Return the time of a collective at the published bandwidth of the links.

    On a ring of n devices, each sends (n - 1)/n of an array to gather or to scatter it,
    and twice that to reduce it. A group of all devices uses all links of a chip; other
    groups those of one axis, though the mesh may lie otherwise. Chips are taken to be a
    torus: without links from end to end, collectives take up to twice as long. An
    all-to-all is taken to be a gather. A permutation sends the array over one link.
    """
    if collective.kind == "collective-permute":
        return collective.bytes / chip.link_bandwidth
    links = sum(chip.links) if collective.group_size == devices else max(chip.links)
    sent = collective.bytes * (collective.group_size - 1) / collective.group_size
    if collective.kind == "all-reduce":
        sent *= 2
    return sent / (links * chip.link_bandwidth)


def _cost(ops: Collection[Op], chip: Chip) -> OpCost:
    floor = sum(
        max(op.hbm_bytes / chip.hbm_bandwidth, op.pass_flops / chip.flops) for op in ops
    )
    seconds = floor
    if chip.clock is not None:
        seconds = sum(op.cycles for op in ops) / chip.clock
    return OpCost(
        ops=len(ops),
        seconds=seconds,
        floor_seconds=floor,
        hbm_bytes=sum(op.hbm_bytes for op in ops),
        flops=sum(op.flops for op in ops),
    )


def _exchanges(
    collectives: Iterable[Collective], chip: Chip, devices: int
) -> tuple[Exchange, ...]:
    groups = collections.defaultdict(list)
    for one in collectives:
        groups[one.kind, one.dtype, purpose_of(one)].append(one)
    found = [
        Exchange(
            kind=kind,
            dtype=dtype,
            purpose=purpose,
            times=sum(one.times for one in group),
            async_times=sum(one.times for one in group if one.is_async),
            bytes=sum(one.bytes for one in group),
            seconds=sum(link_seconds(one, chip, devices) for one in group),
        )
        for (kind, dtype, purpose), group in groups.items()
    ]
    return tuple(sorted(found, key=lambda exchange: -exchange.seconds))


def _memory(analysis: Any, chip: Chip) -> Memory:
    peak = peak_memory(analysis)
    arguments = analysis.argument_size_in_bytes
    code = analysis.generated_code_size_in_bytes
    # Results that replace arguments take no memory of their own.
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(
        peak=peak,
        available=chip.hbm_bytes,
        arguments=arguments,
        activations=peak - arguments - results - code,
        code=code,
    )
