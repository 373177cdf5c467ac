"""Accelerators that programs can be compiled for without having one."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jax.experimental.topologies import get_topology_desc

from migan_jax.config import did_you_mean
from migan_jax.errors import UserError, missing_extra

GIB = 2**30
# bfloat16 products that a TPU makes of one of float32, by precision (XLA's).
TPU_PASSES = {"default": 1.0, "high": 3.0, "highest": 6.0}


@dataclass(frozen=True)
class Chip:
    """Published numbers of an accelerator, per JAX device.

    Attributes:
      flops: peak FLOP/s in bfloat16.
      float32_passes: time of a float32 product relative to bfloat16, by precision.
      hbm_bandwidth: bytes/s.
      hbm_bytes: what a program can use.
      clock: that of the compiler's cost model in Hz; None: it estimates no cycles.
      link_bandwidth: bytes/s of one link to another chip, one way.
      axes: of the torus of chips.
      links: to other chips, by axis: two, or one if there is one other chip.
      devices_per_chip: JAX devices.
    """

    name: str
    flops: float
    float32_passes: Mapping[str, float]
    hbm_bandwidth: float
    hbm_bytes: float
    clock: float | None = None
    link_bandwidth: float = 0.0
    axes: int = 0
    links: tuple[int, ...] = ()
    devices_per_chip: int = 1


# FLOP/s, bandwidths and axes are those of Google's pages (cloud.google.com/tpu/docs/v4,
# /v5e, /v5p, /v6e, /tpu7x). They give the bandwidth of all links of a chip, both ways;
# v4's is that of the paper (arXiv 2304.01433, 50 GB/s a link). The memory is what the
# compiler of libtpu 0.0.42 has after its own. The clock of the
# cost model is not published: it is inferred as the peak over twice the multipliers,
# 128x128 of four units a core, from v6e on 256x256.
TPUS = {
    "v4": Chip(
        name="TPU v4",
        flops=275e12,
        float32_passes=TPU_PASSES,
        hbm_bandwidth=1200e9,
        hbm_bytes=30.75 * GIB,
        clock=1.05e9,
        link_bandwidth=50e9,
        axes=3,
    ),
    "v5e": Chip(
        name="TPU v5e",
        flops=197e12,
        float32_passes=TPU_PASSES,
        hbm_bandwidth=819e9,
        hbm_bytes=15.75 * GIB,
        clock=1.5e9,
        link_bandwidth=50e9,
        axes=2,
    ),
    "v5p": Chip(
        name="TPU v5p",
        flops=459e12,
        float32_passes=TPU_PASSES,
        hbm_bandwidth=2765e9,
        hbm_bytes=95.74 * GIB,
        clock=1.75e9,
        link_bandwidth=100e9,
        axes=3,
    ),
    "v6e": Chip(
        name="TPU v6e",
        flops=918e12,
        float32_passes=TPU_PASSES,
        hbm_bandwidth=1638e9,
        hbm_bytes=31.25 * GIB,
        clock=1.75e9,
        link_bandwidth=100e9,
        axes=2,
    ),
    "tpu7x": Chip(  # half a chip, also of each link
        name="TPU7x",
        flops=1153.5e12,
        float32_passes=TPU_PASSES,
        hbm_bandwidth=3690e9,
        hbm_bytes=94.75 * GIB,
        clock=2.2e9,
        link_bandwidth=50e9,
        axes=3,
        devices_per_chip=2,
    ),
}


def _passes(flops: float, tf32_flops: float, float32_flops: float) -> dict[str, float]:
    tf32 = flops / tf32_flops
    return {"default": tf32, "high": tf32, "highest": flops / float32_flops}


GPU_FRACTION = 0.75  # of its memory that JAX takes by default


# NVIDIA's data sheets, of SXM modules (A100: 80 GB), without sparsity.
GPUS = {
    "h100": Chip(
        name="NVIDIA H100",
        flops=989e12,
        float32_passes=_passes(989e12, 494.5e12, 67e12),
        hbm_bandwidth=3350e9,
        hbm_bytes=GPU_FRACTION * 80e9,
    ),
    "h200": Chip(
        name="NVIDIA H200",
        flops=989e12,
        float32_passes=_passes(989e12, 494.5e12, 67e12),
        hbm_bandwidth=4800e9,
        hbm_bytes=GPU_FRACTION * 141e9,
    ),
    "a100": Chip(
        name="NVIDIA A100",
        flops=312e12,
        float32_passes=_passes(312e12, 156e12, 19.5e12),
        hbm_bandwidth=2039e9,
        hbm_bytes=GPU_FRACTION * 80e9,
    ),
    "l4": Chip(
        name="NVIDIA L4",
        flops=121e12,
        float32_passes=_passes(121e12, 60e12, 30.3e12),
        hbm_bandwidth=300e9,
        hbm_bytes=GPU_FRACTION * 24e9,
    ),
    # Its tensor cores take no bfloat16, which then is computed in float32.
    "t4": Chip(
        name="NVIDIA T4",
        flops=8.1e12,
        float32_passes=_passes(8.1e12, 8.1e12, 8.1e12),
        hbm_bandwidth=320e9,
        hbm_bytes=GPU_FRACTION * 16e9,
    ),
}
CHIPS = {**TPUS, **GPUS}

# What XLA's compiler must know of a GPU: text of its GpuTargetConfig.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory}
  shared_memory_per_block_optin: {shared_memory_of_block}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: {l2_cache}
  clock_rate_ghz: {clock_ghz}
  device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""


@dataclass(frozen=True)
class _Multiprocessors:
    """Multiprocessors of a GPU; sizes in KiB.

    The tables of compute capabilities in NVIDIA's CUDA C++ Programming Guide, and the
    white paper of each architecture.
    """

    capability: tuple[int, int]
    cores: int
    lanes: int  # of float32, in each
    threads: int
    shared_memory: int
    l2_cache: int
    clock_ghz: float


_HOPPER = _Multiprocessors((9, 0), 132, 128, 2048, 228, 50 * 1024, 1.98)
_MULTIPROCESSORS = {
    "h100": _HOPPER,
    "h200": _HOPPER,
    "a100": _Multiprocessors((8, 0), 108, 64, 2048, 164, 40 * 1024, 1.41),
    "l4": _Multiprocessors((8, 9), 58, 128, 1536, 100, 48 * 1024, 2.04),
    "t4": _Multiprocessors((7, 5), 40, 64, 1024, 64, 4 * 1024, 1.59),
}


def open_topology(name: str) -> tuple[list[jax.Device], Chip]:
    """Return a topology's devices, which can only be compiled for, and their chip.

    Sets environment variables that the compilers read.

    Args:
      name: a TPU and its shape, such as "v5e:4x4", or one GPU, such as "h200".
    """
    kind, _, shape = name.partition(":")
    if kind in GPUS and not shape:
        return _gpu(kind), GPUS[kind]
    if kind not in TPUS or not re.fullmatch(r"\d+(x\d+)+", shape):
        near = "" if kind in CHIPS else did_you_mean(kind, CHIPS)
        raise UserError(
            f"{name!r} is no topology{near}: give a TPU "
            f"({', '.join(TPUS)}) and its shape, such as v5e:4x4, or one GPU "
            f"({', '.join(GPUS)})."
        )
    sides = [int(side) for side in shape.split("x")]
    chip = TPUS[kind]
    if len(sides) != chip.axes:
        raise UserError(
            f"{name!r} is no topology: shapes of {kind} have {chip.axes} sides, such "
            f"as {kind}:{'x'.join(['2', '2', '1'][: chip.axes])}."
        )
    devices = _tpus(name, kind, sides)
    # Two devices of one chip have a link, too.
    links = tuple(min(side - 1, 2) for side in sides if side > 1) or (1,)
    return devices, dataclasses.replace(chip, links=links)


def _tpus(name: str, kind: str, sides: list[int]) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise missing_extra("libtpu", "tpu", "Compiling for TPUs")
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # not to wait for the metadata server of a TPU host
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # the same for any topology
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    options: dict[str, object] = {}
    if kind == "v4":  # both cores as one device, as JAX has them on a TPU host
        options["chip_config_name"] = "megacore"
    if math.prod(sides) == 1:  # hosts have four chips otherwise
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return list(get_topology_desc(name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"The TPU compiler refuses {name}: {reason}.") from error


def _gpu(kind: str) -> list[jax.Device]:
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    if not any(importlib.util.find_spec(plugin) for plugin in plugins):
        raise missing_extra("jax-cuda12-plugin", "cuda12", "Compiling for GPUs")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # even where a GPU is
    target = _target_config(kind)
    topology = get_topology_desc(
        platform="cuda", target_config=target, topology="1x1x1"
    )
    return list(topology.devices)


def _target_config(kind: str) -> str:
    chip, has = GPUS[kind], _MULTIPROCESSORS[kind]
    # One KiB is the driver's; Turing has none of it.
    reserved = 1 if has.capability >= (8, 0) else 0
    return _TARGET.format(
        name=chip.name,
        major=has.capability[0],
        minor=has.capability[1],
        cores=has.cores,
        lanes=has.lanes,
        threads=has.threads,
        shared_memory=has.shared_memory * 1024,
        shared_memory_of_block=(has.shared_memory - reserved) * 1024,
        l2_cache=has.l2_cache * 1024,
        clock_ghz=has.clock_ghz,
        bandwidth=chip.hbm_bandwidth,
        memory=chip.hbm_bytes / GPU_FRACTION,
    )
