"""Multi-process runs: on a pod, under SLURM or Open MPI, or described by flags."""

import contextlib
import json
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn

from migan_jax.errors import UserError
from migan_jax.files import (
    lock_folder,
    make_folder,
    reason,
    refuse_address,
    refuse_undecodable,
    remove,
)
from migan_jax.training.devices import on_tpu
from migan_jax.weights.locations import CHECKPOINTS

# Environment variables that describe other processes.
_TASK_COUNTS = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"
_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_TPU_LISTS = "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"
_TPU_INDICES = "TPU_WORKER_ID", "CLOUD_TPU_TASK_ID", "MEGASCALE_SLICE_ID"
_SLICE_COUNT = "MEGASCALE_NUM_SLICES"
_VARIABLES = *_TASK_COUNTS, _COORDINATOR, *_TPU_LISTS, *_TPU_INDICES, _SLICE_COUNT
BARRIER_TIMEOUT = 3600  # seconds; JAX notices a lost host sooner


def connect(
    coordinator: str | None, processes: int | None, process_id: int | None, timeout: int
) -> None:
    """Connect to the other processes, if any, before JAX is used.

    Exit if they do not connect within `timeout` seconds. The other arguments are None
    if the environment describes the processes, or if there is only one.
    """
    flags = coordinator, processes, process_id
    if any(value is not None for value in flags):
        if any(value is None for value in flags):
            raise UserError(
                "Give all of --coordinator, --processes and --process-id, or none."
            )
    elif not (environment_has_cluster() or on_tpu()):
        return
    timer = threading.Timer(timeout, _give_up, (timeout, coordinator))
    timer.daemon = True
    timer.start()
    try:
        # After its own timeout JAX aborts with a stack trace, so the timer is earlier.
        jax.distributed.initialize(*flags, initialization_timeout=timeout + 60)
    # OSError: JAX cannot reach the cloud's metadata server.
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        if coordinator is None and not environment_has_cluster() and _is_alone():
            return
        raise UserError(
            f"Cannot connect to the run's other processes: {reason(error)}. "
            f"Environment: {_describe_environment()}. Give --coordinator, --processes "
            f"and --process-id on each host."
        ) from error
    finally:
        timer.cancel()


def _is_alone() -> bool:
    """Return whether this TPU host is the only one, as in Colab.

    The environment may describe others; if not, the TPU runtime counts the processes.
    Continuing alone on a slice of several hosts would train one network per host.
    """
    has_others = (
        any("," in os.environ.get(name, "") for name in _TPU_LISTS)
        or any((os.environ.get(name) or "0") != "0" for name in _TPU_INDICES)
        or (os.environ.get(_SLICE_COUNT) or "1") != "1"
    )
    return not has_others and jax.process_count() == 1


def _describe_environment() -> str:
    """List the variables that describe other processes."""
    variables = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name in _VARIABLES
    ]
    return ", ".join(variables) or "no variables of other processes"


def _give_up(timeout: int, coordinator: str | None) -> None:
    """Exit the process, whose main thread is blocked inside JAX."""
    print(
        f"error: Not all processes connected within {timeout} seconds. Run the same "
        f"command on every host, and check that all can reach process 0 "
        f"({coordinator or 'the coordinator'}).",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def environment_has_cluster() -> bool:
    """Return whether the environment describes several processes."""
    has_others = any(int(os.environ.get(name) or 1) > 1 for name in _TASK_COUNTS)
    return has_others or bool(os.environ.get(_COORDINATOR))


@contextlib.contextmanager
def lock_workdir(workdir: Path, clear: bool = False) -> Iterator[None]:
    """Create a workdir and lock it against other runs; `clear` empties it first.

    All processes of the run must see it.
    """
    refuse_address(workdir)
    refuse_undecodable(workdir)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            checkpoints = workdir / CHECKPOINTS
            created = [path for path in (checkpoints, workdir) if not path.exists()]
            stack.callback(_remove_empty, created)  # if the run fails early
            try:
                make_folder(checkpoints)
                with tempfile.TemporaryFile(dir=workdir):
                    pass
            except OSError as error:
                raise UserError(
                    f"Cannot write to --workdir={workdir}: {reason(error)}."
                ) from error
            stack.enter_context(lock_folder(workdir))
            if clear:
                for path in workdir.iterdir():
                    remove(path)
                checkpoints.mkdir()
        if jax.process_count() > 1:
            barrier("workdir created")
            seen = gather_json(workdir.is_dir(), "workdir seen")
            if not all(seen):
                raise UserError(
                    f"Process {seen.index(False)} cannot see --workdir={workdir}. "
                    f"Choose a folder that all hosts share, or an address in a bucket."
                )
        yield


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


def barrier(name: str) -> None:
    """Wait for all processes, through the coordinator; use each name once.

    Collectives wait by themselves, but the first one connects CPUs and GPUs to each
    other, and fails if a process is half a minute late. So have a barrier before it.
    """
    get_barrier_sync_fn()(key=name, timeout_ms=1000 * BARRIER_TIMEOUT)


def all_gather(rows: np.ndarray, name: str) -> np.ndarray:
    """Concatenate the rows of all processes; use each name once, as for `barrier`."""
    if jax.process_count() == 1:
        return rows
    barrier(name)
    counts = multihost_utils.process_allgather(np.int32(len(rows)))
    padded = np.zeros((counts.max(), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    # As bits, since JAX would convert float64 to float32.
    bits = multihost_utils.process_allgather(padded.view(np.uint32))
    gathered = zip(np.asarray(bits).view(rows.dtype), counts, strict=True)
    return np.concatenate([local[:count] for local, count in gathered])


def gather_json(content: Any, name: str) -> list[Any]:
    """Return the JSON of each process; use each name once, as for `barrier`."""
    text = json.dumps(content).encode()
    padded = text + b" " * (-(len(text) + 1) % 4) + b"\n"
    rows = all_gather(np.frombuffer(padded, np.uint32)[:, None], name)
    return [json.loads(line) for line in rows.tobytes().splitlines()]


def from_process_0(values: dict[str, float], name: str) -> dict[str, float]:
    """Return process 0's values, so that all processes decide alike."""
    rows = all_gather(np.array([list(values.values())], np.float64), name)
    return dict(zip(values, map(float, rows[0]), strict=True))


@contextlib.contextmanager
def fail_fast() -> Iterator[None]:
    """Exit at once on an error in one of several processes; JAX then ends the others.

    A normal exit would wait for them for minutes, or forever.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, (UserError, KeyboardInterrupt)):
            traceback.print_exception(error)
        message = f"error: {error}" if isinstance(error, Exception) else "interrupted"
        print(message, file=sys.stderr, flush=True)
        os._exit(1)
