"""Checkpoints of a run: everything it needs to resume as if it had never stopped.

`<workdir>/checkpoints/<step>/` has the items
  network, exported   what other programs read (`weights/workdir.py`): the exported
                      networks with the EMA's weights, or without an EMA their own
  params, optimizer   the rest of the training state
  run                 configuration, data, versions, and the state's checksum
  metrics             metrics of the held-out pictures, if they were measured
Orbax writes them in the background, under a temporary name until they are complete and
synced. A run that starts sets damaged checkpoints aside, and resumes from the one
before.

The state is the same on all devices, so process 0 writes it alone, and what it finds
in the folder holds for all.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from migan_jax.errors import UserError
from migan_jax.files import make_folder, readable_size, reason, remove, sync, sync_tree
from migan_jax.systems.base import TrainState
from migan_jax.training.mirror import Mirror
from migan_jax.training.processes import barrier, from_process_0
from migan_jax.weights.kinds import Kinds, Network
from migan_jax.weights.locations import CHECKPOINTS
from migan_jax.weights.workdir import (
    check_manifest,
    export_items,
    has_manifest,
    read_arrays,
    read_exported,
    read_json_item,
    steps_in,
    write_manifest,
)

logger = logging.getLogger(__name__)

# Names of what is not a checkpoint: unfinished (Orbax's name), or no longer one.
UNFINISHED, REMOVED, DAMAGED = "*.orbax-checkpoint-tmp*", ".removed", ".damaged"
# What a run needs to resume.
REQUIRED_ITEMS = "network", "exported", "params", "optimizer", "run"
SHUTDOWN_TIMEOUT = 60  # seconds, for pending writes after an error
ALONE = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="process0"
)


class Score(NamedTuple):
    """The held-out metric by which checkpoints are compared."""

    name: str
    more_is_better: bool

    def of(self, metrics: Mapping[str, float]) -> float:
        """Return the score, larger is better; -inf if the metric is missing."""
        value = metrics.get(self.name, math.nan)
        value = value if self.more_is_better else -value
        return value if math.isfinite(value) else -math.inf


@dataclasses.dataclass(frozen=True)
class Saved:
    """A restored checkpoint."""

    state: TrainState
    run: dict[str, Any]  # saved beside the state, as JSON


@jax.jit
def summarise(state: TrainState) -> tuple[jax.Array, jax.Array]:
    """Return a checksum of each array, and whether all values are finite."""

    def checksum(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        return jnp.sum(bits * odd, dtype=jnp.uint32)  # modulo 2^32, in any order

    leaves = jax.tree.leaves(state)
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()
    return jnp.stack([checksum(leaf) for leaf in leaves]), finite


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for its tasks before it closes.

    Orbax closes a thread's loop at the first error, such as a full disk. TensorStore is
    still writing other arrays then, and would print a traceback for each.
    """

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.wait(tasks, timeout=SHUTDOWN_TIMEOUT))
        super().close()


class _PatientLoops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _PatientLoop()


class Checkpoints:
    """The checkpoints of one workdir. A context manager.

    Args:
      mirror: uploads them, if the workdir is in a bucket.
    """

    def __init__(
        self,
        workdir: Path,
        keep_last: int,
        keep_best: int,
        score: Score,
        mirror: Mirror | None = None,
    ):
        self._folder, self._score = (workdir / CHECKPOINTS).absolute(), score
        self._keep_last, self._keep_best = keep_last, keep_best
        self._mirror, self._questions = mirror, itertools.count()
        self._location = mirror or workdir.absolute()  # for messages
        self._shown = f"{self._location}/{CHECKPOINTS}"
        self._writer: ocp.AsyncCheckpointer | None = None
        if jax.process_index() == 0:
            with self._explain_errors():
                make_folder(self._folder)
                for pattern in (UNFINISHED, f"*{REMOVED}"):  # left by a kill
                    for path in self._folder.glob(pattern):
                        remove(path)
                self._set_damaged_aside()
            self._writer = self._make_writer()
        barrier("damaged checkpoints are set aside")

    def _make_writer(self) -> ocp.AsyncCheckpointer:
        alone = {"multiprocessing_options": ALONE}
        as_json = functools.partial(ocp.JsonCheckpointHandler, **alone)
        as_arrays = functools.partial(ocp.StandardCheckpointHandler, **alone)
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(**alone),
            network=as_json(),
            exported=as_arrays(),
            params=as_arrays(),
            optimizer=as_arrays(),
            run=as_json(),
            metrics=as_json("metrics"),
        )
        asyncio.set_event_loop_policy(_PatientLoops())
        options = ocp.options.AsyncOptions(post_finalization_callback=self._complete)
        return ocp.AsyncCheckpointer(handler, async_options=options, **alone)

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints."""
        return steps_in(self._folder)

    def best(self) -> tuple[int, float] | None:
        """Return the best checkpoint's step and score; all processes must call this."""
        scores = {step: self._score_of(step) for step in self.steps()}
        step = max(scores, key=scores.get, default=-1)
        found = {"step": step, "score": scores.get(step, -math.inf)}
        found = from_process_0(found, f"best checkpoint, {next(self._questions)}")
        score = found["score"]
        return None if score == -math.inf else (int(found["step"]), score)

    def _score_of(self, step: int) -> float:
        try:
            metrics = read_json_item(self._folder / str(step), "metrics", "metrics")
            return self._score.of(metrics)
        except (OSError, ValueError, AttributeError, TypeError):  # missing or damaged
            return -math.inf

    def save(
        self,
        state: TrainState,
        exported: Mapping[str, Network],
        kinds: Kinds,
        run: dict[str, Any],
        metrics: Mapping[str, float] | None,
    ) -> None:
        """Start saving in the background, unless the state is not finite.

        Args:
          exported: networks to export, by name; `kinds` describes them.
          run: what to save beside the state, as JSON.
          metrics: of the held-out pictures, if they were measured.
        """
        if self._writer is None:
            return
        self.wait()
        state = jax.tree.map(lambda leaf: leaf.addressable_data(0), state)
        checksums, finite = jax.device_get(summarise(state))
        state = jax.device_get(state)
        step = int(state.step)
        if not finite:
            logger.warning("step %d is not saved: its weights are not finite", step)
            return
        self._check_free_space(state)
        run = {**run, "checksums": checksums.tolist()}
        variables = exported_variables(state, exported)
        items = ocp.args.Composite(
            **export_items(exported, variables, kinds),
            params=ocp.args.StandardSave(
                {"params": state.params, "stats": state.stats}
            ),
            optimizer=ocp.args.StandardSave(state.opt_state),
            run=ocp.args.JsonSave(run),
            **({} if metrics is None else {"metrics": ocp.args.JsonSave(metrics)}),
        )
        with self._explain_errors():
            self._writer.save(self._folder / str(step), args=items)

    def _complete(self) -> None:
        """Write the manifest, and upload; Orbax calls it before renaming the folder."""
        (unfinished,) = self._folder.glob(UNFINISHED)
        write_manifest(unfinished)
        if self._mirror is not None:
            step = int(unfinished.name.partition(".")[0])
            self._mirror.upload_checkpoint(unfinished, step)

    def _check_free_space(self, state: TrainState) -> None:
        needed = checkpoint_bytes(state)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._cannot_write(
                f"it needs {readable_size(needed)}, but {readable_size(free)} are free"
            )

    def _cannot_write(self, why: str) -> UserError:
        steps = self.steps() if self._folder.is_dir() else []
        complete = max(steps, default=None)
        newest = "from the start: there is no checkpoint yet"
        if complete is not None:
            newest = f"from step {complete}"
        return UserError(
            f"Cannot write a checkpoint to {self._shown}: {why}. Fix that; then the "
            f"same command resumes {newest}."
        )

    def wait(self) -> None:
        """Wait until saving is complete, then remove old checkpoints."""
        if self._writer is not None:
            with self._explain_errors():
                self._writer.wait_until_finished()
                self._remove_old()

    def _remove_old(self) -> None:
        for step in self.steps()[-1:]:  # Orbax writes to it after the manifest
            sync_tree(self._folder / str(step))
        sync(self._folder)
        for step in self._old_steps():
            removed = self._folder / f"{step}{REMOVED}"
            # Renamed first, so that a kill leaves no half-removed checkpoint.
            os.replace(self._folder / str(step), removed)
            remove(removed)
            if self._mirror is not None:
                self._mirror.remove_checkpoint(step)

    def _old_steps(self) -> set[int]:
        steps = self.steps()
        kept = steps[-self._keep_last :]
        if self._keep_best:
            scores = {step: self._score_of(step) for step in steps}
            scored = [step for step in steps if scores[step] > -math.inf]
            kept += sorted(scored, key=scores.get)[-self._keep_best :]
        return set(steps) - set(kept)

    def newest(self) -> int | None:
        """Return the newest step, or None; all processes must call this."""
        found = {"step": max(self.steps(), default=-1)}
        found = from_process_0(found, f"newest checkpoint, {next(self._questions)}")
        return int(found["step"]) if found["step"] >= 0 else None

    def newest_run(self) -> dict[str, Any] | None:
        """Return what was saved beside the newest state, or None without one."""
        step = self.newest()
        if step is None:
            return None
        if self._mirror is not None:
            self._mirror.download_checkpoint(step)
        return read_json_item(self._folder / str(step), "run")

    def restore(self, like: TrainState) -> Saved | None:
        """Restore the newest checkpoint onto the devices of `like`; None without one.

        Args:
          like: shapes, dtypes and shardings (jax.ShapeDtypeStruct).
        """
        step = self.newest()
        if step is None:
            return None
        try:
            return self._restore(step, like)
        except Exception as error:  # Orbax's reader may fail in any way
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            raise UserError(
                f"Cannot read {self._shown}/{step} ({reason(error)}). Move "
                f"it away to resume from the checkpoint before."
            ) from error

    def _restore(self, step: int, like: TrainState) -> Saved:
        folder = self._folder / str(step)
        run = read_json_item(folder, "run")
        target = {"params": like.params, "stats": like.stats}
        weights = read_arrays(folder, "params", target)
        exported: dict[str, Any] = {}
        if like.ema:
            exported = read_exported(folder, exported_variables(like, like.ema))
        state = TrainState(
            step=jax.device_put(np.int32(step), like.step.sharding),
            params=weights["params"],
            stats=weights["stats"],
            opt_state=read_arrays(folder, "optimizer", like.opt_state),
            ema={name: exported[name]["params"] for name in like.ema},
        )
        checksums, _ = jax.device_get(summarise(state))
        if checksums.tolist() != run.pop("checksums"):
            raise ValueError("its checksum does not match")
        return Saved(state, run)

    def _set_damaged_aside(self) -> None:
        """Rename damaged checkpoints newer than the newest undamaged one."""
        steps = self.steps()
        if steps and not any((self._folder / f"{n}" / "run").exists() for n in steps):
            raise UserError(
                f"{self._shown} holds weights, but no run to resume. Choose another "
                f"--workdir, and start with --init-from={self._location}."
            )
        # If none has a manifest, an earlier version wrote them.
        with_manifest = any(has_manifest(self._folder / str(n)) for n in steps)
        damaged = [
            *itertools.takewhile(
                lambda n: self._is_damaged(n, with_manifest), steps[::-1]
            )
        ]
        if steps and len(damaged) == len(steps):
            raise UserError(
                f"All checkpoints in {self._shown} are damaged. Move the folder away "
                f"to start again."
            )
        for step in damaged:
            renamed = self._folder / f"{step}{DAMAGED}-{time.time_ns()}"
            os.replace(self._folder / str(step), renamed)
            if self._mirror is not None:
                self._mirror.set_aside_checkpoint(step, renamed.name)
            logger.warning("renamed it to %s; using the checkpoint before", renamed)

    def _is_damaged(self, step: int, with_manifest: bool) -> bool:
        folder = self._folder / str(step)
        try:
            if with_manifest and not has_manifest(folder):
                raise ValueError("its manifest is missing")
            check_manifest(folder, *REQUIRED_ITEMS)
            if not (folder / "run" / "metadata").is_file():
                raise ValueError("run is missing")
            read_json_item(folder, "run")["checksums"]
        except (MemoryError, OSError) as error:  # temporary, unlike damage
            raise UserError(f"Cannot read {folder}: {reason(error)}.") from error
        except (UserError, ValueError, KeyError, TypeError) as error:
            why = reason(error)
            logger.warning("checkpoint %d is damaged or incomplete: %s", step, why)
            return True
        return False

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Turn errors of writing a checkpoint into a UserError."""
        try:
            yield
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # also TensorStore's and JAX's
            cause = re.search(r"([^:]+) \[os_error_code", str(error))
            why = cause[1].strip() if cause else reason(error)
            raise self._cannot_write(why) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        """Wait until saving is complete; an earlier error takes precedence."""
        try:
            self.wait()
        except UserError as error:
            if kind is None:
                raise
            logger.error(error)
        finally:
            if self._writer is not None:
                self._writer.close()


def checkpoint_bytes(state: TrainState) -> int:
    """Return a checkpoint's bytes. Without an EMA, exported weights are saved twice."""
    again = {} if state.ema else state.params
    return sum(leaf.nbytes for leaf in jax.tree.leaves((state, again)))


def exported_variables(state: TrainState, names: Iterable[str]) -> dict[str, Any]:
    """Return the variables to export: the EMA's, without an EMA the parameters."""
    return {
        name: {"params": (state.ema or state.params)[name], "stats": state.stats[name]}
        for name in names
    }
