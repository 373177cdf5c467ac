"""Several processes that are one run: on a pod, under SLURM, or as named by flags.

JAX must know of the other processes before it is used in any way.
"""

import contextlib
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn

from migan_jax.errors import UserError
from migan_jax.files import (
    held,
    make_folder,
    reason,
    refuse_address,
    refuse_undecodable,
    remove,
)
from migan_jax.training.devices import on_tpu
from migan_jax.weights.locations import CHECKPOINTS

# Variables that tell of other processes: of tasks, of TPU hosts and slices.
_TASKS = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"
_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
_LISTS = "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"
_NUMBERS = "TPU_WORKER_ID", "CLOUD_TPU_TASK_ID", "MEGASCALE_SLICE_ID"
_SLICES = "MEGASCALE_NUM_SLICES"
_TELLING = *_TASKS, _COORDINATOR, *_LISTS, *_NUMBERS, _SLICES
LONGEST_WAIT = 3600  # seconds; a host that is gone is noticed by JAX, and sooner


def connect(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    timeout: int,
) -> None:
    """Join the other processes, if there are any; end this one if they do not come.

    Args:
      coordinator: host:port of process 0, where the environment does not tell.
      processes: how many there are.
      process: which one this is.
      timeout: seconds to wait for the others.
    """
    named = coordinator, processes, process
    if any(value is not None for value in named):
        if any(value is None for value in named):
            raise UserError(
                "--coordinator, --processes, --process-id: name all three, or none."
            )
    elif not (environment_asks() or on_tpu()):
        return
    waiting = threading.Timer(timeout, _give_up, (timeout, coordinator))
    waiting.daemon = True
    waiting.start()
    try:
        # JAX would abort the process with a stack trace, so it gets more time.
        jax.distributed.initialize(*named, initialization_timeout=timeout + 60)
    # OSError: the machine's metadata, which JAX asks, cannot be reached.
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        if coordinator is None and not environment_asks() and _is_alone():
            return
        raise UserError(
            f"The processes of the run cannot be connected: {reason(error)}. The "
            f"environment has {_found()}. Name --coordinator, --processes and "
            f"--process-id on each host."
        ) from error
    finally:
        waiting.cancel()


def _is_alone() -> bool:
    """Whether a TPU host is no part of a slice of several: one alone, as in Colab.

    The environment may say so; if it does not, TPUs know how many processes they are
    used by. Going on alone where there are others would train as many networks.
    """
    several = (
        any("," in os.environ.get(name, "") for name in _LISTS)
        or any((os.environ.get(name) or "0") != "0" for name in _NUMBERS)
        or (os.environ.get(_SLICES) or "1") != "1"
    )
    return not several and jax.process_count() == 1


def _found() -> str:
    """The variables that tell of other processes, for a sentence."""
    named = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name in _TELLING
    ]
    return ", ".join(named) or "nothing that tells of others"


def _give_up(timeout: int, coordinator: str | None) -> None:
    """End the process, whose main thread is held by JAX."""
    print(
        f"error: Not all processes of the run came within {timeout} seconds: run the "
        f"same command on every host, and see that process 0 "
        f"({coordinator or 'the coordinator'}) can be reached from all.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def environment_asks() -> bool:
    """Whether this process was started as one of several."""
    several = any(int(os.environ.get(name) or 1) > 1 for name in _TASKS)
    return several or bool(os.environ.get(_COORDINATOR))


@contextlib.contextmanager
def workdir_held(workdir: Path, anew: bool = False) -> Iterator[None]:
    """Keep other runs out of a workdir that all processes of this one see.

    Args:
      anew: empty it first.
    """
    refuse_address(workdir)
    refuse_undecodable(workdir)
    first, several = jax.process_index() == 0, jax.process_count() > 1
    with contextlib.ExitStack() as stack:
        if first:
            checkpoints = workdir / CHECKPOINTS
            made = [path for path in (checkpoints, workdir) if not path.exists()]
            stack.callback(_remove_empty, made)  # of a run that is refused
            try:
                make_folder(checkpoints)
                with tempfile.TemporaryFile(dir=workdir):
                    pass
            except OSError as error:
                raise UserError(
                    f"--workdir={workdir} cannot be written to: {reason(error)}."
                ) from error
            stack.enter_context(held(workdir))
            if anew:
                for path in workdir.iterdir():
                    remove(path)
                checkpoints.mkdir()
        if several:
            meet("the workdir is there")
            if not workdir.is_dir():
                raise UserError(
                    f"--workdir={workdir} is not seen by process "
                    f"{jax.process_index()}: name a folder that all hosts share."
                )
        yield


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def meet(name: str) -> None:
    """Wait until all processes are here; each name is for one meeting.

    This waits on the coordinator. What JAX computes on the devices of several processes
    waits by itself, but CPUs and GPUs connect to one another when they first do that,
    and it fails if one is half a minute late: so they meet before.
    """
    get_barrier_sync_fn()(key=name, timeout_ms=1000 * LONGEST_WAIT)


def together(rows: np.ndarray, name: str) -> np.ndarray:
    """Rows of all processes, one after the other; each name is for one meeting."""
    if jax.process_count() == 1:
        return rows
    meet(name)
    counts = multihost_utils.process_allgather(np.int32(len(rows)))
    padded = np.zeros((counts.max(), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    # As bits: JAX makes float32 of float64.
    bits = multihost_utils.process_allgather(padded.view(np.uint32))
    parts = zip(np.asarray(bits).view(rows.dtype), counts, strict=True)
    return np.concatenate([part[:count] for part, count in parts])


@contextlib.contextmanager
def ended_together() -> Iterator[None]:
    """Let an error of one process end it at once, and JAX the others.

    Waiting for them, as a process that ends usually does, would be for minutes or ever.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        if not isinstance(error, (UserError, KeyboardInterrupt)):
            traceback.print_exception(error)
        said = f"error: {error}" if isinstance(error, Exception) else "interrupted"
        print(said, file=sys.stderr, flush=True)
        os._exit(1)
