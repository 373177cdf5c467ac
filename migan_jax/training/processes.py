"""Several processes that are one run: on a pod, under SLURM, or as named by flags.

JAX must know of the other processes before it is used in any way.
"""

import contextlib
import importlib.util
import os
import re
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
from migan_jax.files import held, reason
from migan_jax.weights.workdir import CHECKPOINTS

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
    except (RuntimeError, ValueError, IndexError) as error:
        if coordinator is None and not environment_asks():
            return  # a TPU that is no part of a slice of several hosts
        raise UserError(
            f"The processes of the run cannot be connected: {reason(error)}. Name "
            f"--coordinator, --processes and --process-id on each host."
        ) from error
    finally:
        waiting.cancel()


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
    environment = os.environ
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(environment.get(name) or 1) > 1:
            return True
    return bool(environment.get("JAX_COORDINATOR_ADDRESS"))


def on_tpu() -> bool:
    """Whether this host has TPUs, of which JAX asks the machine's metadata."""
    wanted = os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    devices = any(Path("/dev").glob("accel[0-9]*")) or Path("/dev/vfio/0").exists()
    return wanted and devices and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def workdir_held(workdir: Path) -> Iterator[None]:
    """Keep other runs out of a workdir that all processes of this one see."""
    if re.match(r"\w+:/", str(workdir)):  # pathlib makes one slash of two
        raise UserError(
            f"--workdir={workdir} is no folder: mount the bucket, for example with "
            f"gcsfuse, and name the folder where it is."
        )
    first, several = jax.process_index() == 0, jax.process_count() > 1
    with contextlib.ExitStack() as stack:
        if first:
            try:
                (workdir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=workdir):
                    pass
            except OSError as error:
                raise UserError(
                    f"--workdir={workdir} cannot be written to: {reason(error)}."
                ) from error
            stack.enter_context(held(workdir))
        if several:
            meet("the workdir is there")
            if not workdir.is_dir():
                raise UserError(
                    f"--workdir={workdir} is not seen by process "
                    f"{jax.process_index()}: name a folder that all hosts share."
                )
        yield


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
