"""Programs compiled for chips that are not there, and a cache of them."""

import concurrent.futures
import gzip
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from migan_jax.errors import UserError
from migan_jax.files import CACHE, reason, write_whole
from migan_jax.planning.chips import GIB
from migan_jax.training.programs import COMPILER_OPTIONS, Programs
from migan_jax.training.timeline import Span

if TYPE_CHECKING:
    from jax.stages import Lowered

logger = logging.getLogger(__name__)

PLANS = CACHE / "plans"
FORMAT = 1  # of its files
MEMORY_FIELDS = (
    "peak_memory_in_bytes",
    "argument_size_in_bytes",
    "output_size_in_bytes",
    "alias_size_in_bytes",
    "temp_size_in_bytes",
    "generated_code_size_in_bytes",
)
COMPILERS = {  # packages, by platform
    "tpu": ("jax", "libtpu"),
    "gpu": ("jax", "jax-cuda12-plugin", "jax-cuda13-plugin"),
}
# Without a GPU, nothing can be timed.
NO_AUTOTUNING = {"gpu": {"xla_gpu_autotune_level": 0}}
FLAGS = "XLA_FLAGS", "LIBTPU_INIT_ARGS"  # environment variables of the compilers
REPORT_SECONDS = 60  # between messages while it compiles


@dataclass(frozen=True)
class CompiledProgram:
    """A compiled program, as the cache keeps it.

    Attributes:
      hlo: empty if it needs more memory than the chip has.
      memory: MEMORY_FIELDS of its memory analysis.
      missing: bytes of memory that it lacks.
    """

    hlo: str
    memory: Mapping[str, int]
    missing: float


def compile_programs(
    programs: Programs, span: Span, topology: str, dump: Path | None
) -> dict[int, CompiledProgram]:
    """Compile a stage's step and lazy turns at once, by interval; report progress."""
    name = f"{span.stage.name} for {topology}"
    logger.info("compiling %s; large networks take minutes", name)
    start = time.perf_counter()
    intervals = 1, *span.stage.lazy
    with concurrent.futures.ThreadPoolExecutor(len(intervals)) as pool:
        futures = {
            every: pool.submit(_compile, programs, span, every, topology, dump)
            for every in intervals
        }
        while True:
            done, pending = concurrent.futures.wait(futures.values(), REPORT_SECONDS)
            if not pending:
                break
            logger.info(
                "compiling %s: %.0f min so far, %d of %d programs done",
                name,
                (time.perf_counter() - start) / 60,
                len(done),
                len(futures),
            )
        return {every: future.result() for every, future in futures.items()}


def _compile(
    programs: Programs, span: Span, every: int, topology: str, dump: Path | None
) -> CompiledProgram:
    lowered = programs.lower(span, every)
    path = PLANS / f"{_digest(lowered, programs, topology)}.json.gz"
    if not path.exists():
        content = json.dumps(asdict(_compile_program(programs, lowered, topology)))
        write_whole(path, lambda part: part.write_bytes(_compress(content)))
    compiled = _read(path)
    if dump is not None and compiled.hlo:
        turns = "step" if every == 1 else f"every{every}"
        names = topology.replace(":", "_"), span.batch_size, span.stage.name, turns
        file = dump / f"{'-'.join(map(str, names))}.hlo.gz"
        write_whole(file, lambda part: part.write_bytes(_compress(compiled.hlo)))
    return compiled


def _compress(text: str) -> bytes:
    return gzip.compress(text.encode(), compresslevel=4)


def _read(path: Path) -> CompiledProgram:
    try:
        return CompiledProgram(**json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {reason(error)}. Delete it to compile again."
        ) from error


def _compile_program(
    programs: Programs, lowered: "Lowered", topology: str
) -> CompiledProgram:
    platform = programs.mesh.devices.flat[0].platform
    try:
        compiled = programs.compile(lowered, NO_AUTOTUNING.get(platform, {}))
    except jax.errors.JaxRuntimeError as error:
        shortage = re.search(
            r"\(([\d.]+)([GM])\) exceeds available HBM \(([\d.]+)G\)", str(error)
        )
        if shortage is None:
            raise UserError(
                f"The compiler fails for {topology}: {reason(error)}."
            ) from error
        needed = float(shortage[1]) * (GIB if shortage[2] == "G" else 2**20)
        return CompiledProgram("", {}, needed - float(shortage[3]) * GIB)
    analysis = compiled.memory_analysis()
    memory = {name: getattr(analysis, name) for name in MEMORY_FIELDS}
    return CompiledProgram(compiled.as_text(), memory, 0.0)


def _digest(lowered: "Lowered", programs: Programs, topology: str) -> str:
    """Return a hash of the program, of its scopes, and of what compiles it."""
    scopes = re.findall(r'loc\("(.*?)"\(', lowered.as_text(debug_info=True))
    parts = (
        FORMAT,
        lowered.as_text(),
        sorted(set(scopes)),
        topology,
        [device.id for device in programs.mesh.devices.flat],
        COMPILER_OPTIONS,
        [os.environ.get(name) for name in FLAGS],
        compiler_versions(programs),
    )
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def compiler_versions(programs: Programs) -> dict[str, str]:
    """Return the versions of what compiles these programs."""
    packages = COMPILERS[programs.mesh.devices.flat[0].platform]
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return {n: importlib.metadata.version(n) for n in packages if n in installed}
