"""Checkpoints of a run: all that it needs to go on as if it had never stopped.

`<workdir>/checkpoints/<step>/` has the items
  network, exported   what other programs read (`weights/workdir.py`): of all exported
                      networks the EMA's weights, or where there is none their own
  params, optimizer   the rest of the training state
  run                 configuration, data, versions, and the state's checksum
  metrics             held-out figures, where they were measured
Orbax writes them in the background, under another name until they are complete and
synced to the disk. A step that is not as it was written any more is set aside when a
run begins, and the one before is used.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
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
from migan_jax.training.processes import meet
from migan_jax.weights.kinds import Kinds, Network
from migan_jax.weights.locations import CHECKPOINTS
from migan_jax.weights.workdir import (
    check_sealed,
    export_items,
    is_sealed,
    read_exported,
    seal,
    step_folder,
    steps_in,
)

logger = logging.getLogger(__name__)

# Names of what is no checkpoint: not one yet (Orbax's name), or no more.
UNFINISHED, REMOVED, DAMAGED = "*.orbax-checkpoint-tmp*", ".removed", ".damaged"
# What a run cannot go on without.
NEEDED = "network", "exported", "params", "optimizer", "run"
LONGEST_REST = 60  # seconds, for what was begun before an error


class Score(NamedTuple):
    """The held-out figure that the best checkpoints are the best by."""

    name: str
    more_is_better: bool

    def of(self, figures: Mapping[str, float]) -> float:
        """The greater the better; the least where there is no such figure."""
        value = figures.get(self.name, math.nan)
        value = value if self.more_is_better else -value
        return value if math.isfinite(value) else -math.inf


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    state: TrainState
    run: dict[str, Any]  # what was saved with it, as JSON


@jax.jit
def summarise(state: TrainState) -> tuple[jax.Array, jax.Array]:
    """A checksum of the whole state, and whether all of it is finite."""

    def checksum(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        return jnp.sum(bits * odd, dtype=jnp.uint32)  # modulo 2^32, in any order

    leaves = jax.tree.leaves(state)
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()
    return jnp.stack([checksum(leaf) for leaf in leaves]), finite


class _PatientLoop(asyncio.SelectorEventLoop):
    """Waits for all of its tasks before it is closed.

    Orbax runs a loop for each of its threads and closes it at the first error, such as
    that of a full disk. TensorStore, which goes on with the other arrays, would then
    print a traceback for each of them.
    """

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.wait(tasks, timeout=LONGEST_REST))
        super().close()


class _PatientLoops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _PatientLoop()


class Checkpoints:
    """The checkpoints of one workdir. To be used in a `with`."""

    def __init__(self, workdir: Path, keep_last: int, keep_best: int, score: Score):
        self._folder, self._score = (workdir / CHECKPOINTS).absolute(), score
        self._keep_last, self._keep_best = keep_last, keep_best
        if jax.process_index() == 0:
            with self._explained():
                make_folder(self._folder)
                for pattern in (UNFINISHED, f"*{REMOVED}"):  # of a run that was killed
                    for path in self._folder.glob(pattern):
                        remove(path)
                self._set_damaged_aside()
        meet("only whole checkpoints are there")
        as_json, as_arrays = ocp.JsonCheckpointHandler, ocp.StandardCheckpointHandler
        handler = ocp.CompositeCheckpointHandler(
            network=as_json(),
            exported=as_arrays(),
            params=as_arrays(),
            optimizer=as_arrays(),
            run=as_json(),
            metrics=as_json("metrics"),
        )
        asyncio.set_event_loop_policy(_PatientLoops())
        sealing = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        self._writer = ocp.AsyncCheckpointer(handler, async_options=sealing)

    def steps(self) -> list[int]:
        """Steps of which there is a complete checkpoint."""
        return steps_in(self._folder)

    def best(self) -> tuple[int, float] | None:
        """Step and score of the best that there is."""
        scores = {step: self._score_of(step) for step in self.steps()}
        scores = {step: score for step, score in scores.items() if score > -math.inf}
        return max(scores.items(), key=lambda item: item[1], default=None)

    def _score_of(self, step: int) -> float:
        try:
            return self._score.of(self._read(step, "metrics", "metrics"))
        except (OSError, ValueError, AttributeError, TypeError):  # none, or damaged
            return -math.inf

    def _read(self, step: int, item: str, name: str = "metadata") -> Any:
        return json.loads((self._folder / str(step) / item / name).read_text())

    def save(
        self,
        state: TrainState,
        exported: Mapping[str, Network],
        kinds: Kinds,
        run: dict[str, Any],
        figures: Mapping[str, float] | None,
    ) -> None:
        """Begin to save, unless the state is not finite.

        Args:
          exported: networks to ship, by name; `kinds` has theirs.
          run: what to note with it, as JSON.
          figures: of the held-out pictures, where they were measured.
        """
        self.wait()
        step = int(state.step)
        checksums, finite = jax.device_get(summarise(state))
        if not finite:
            logger.warning("step %d: not saved, its weights are not finite", step)
            return
        self._check_room(state)
        run = {**run, "checksums": checksums.tolist()}
        variables = exported_variables(state, exported)
        items = ocp.args.Composite(
            **export_items(exported, variables, kinds),
            params=ocp.args.StandardSave(
                {"params": state.params, "stats": state.stats}
            ),
            optimizer=ocp.args.StandardSave(state.opt_state),
            run=ocp.args.JsonSave(run),
            **({} if figures is None else {"metrics": ocp.args.JsonSave(figures)}),
        )
        with self._explained():
            self._writer.save(self._folder / str(step), args=items)

    def _seal(self) -> None:
        """What Orbax calls when all is written, just before it takes its name."""
        (unfinished,) = self._folder.glob(UNFINISHED)
        seal(unfinished)

    def _check_room(self, state: TrainState) -> None:
        needed = size_of(state)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._cannot_write(
                f"it takes {readable_size(needed)}, and {readable_size(free)} are free"
            )

    def _cannot_write(self, why: str) -> UserError:
        steps = self.steps() if self._folder.is_dir() else []
        complete = max(steps, default=None)
        newest = "there is none yet"
        if complete is not None:
            newest = f"step {complete} is complete"
        return UserError(
            f"A checkpoint cannot be written to {self._folder} ({why}): make room or "
            f"whatever it takes, then the same command goes on ({newest})."
        )

    def wait(self) -> None:
        """Until what is being saved is complete; then the superfluous ones go."""
        with self._explained():
            self._writer.wait_until_finished()
            if jax.process_index() == 0:
                self._tidy_up()

    def _tidy_up(self) -> None:
        for step in self.steps()[-1:]:  # Orbax adds to it after it was sealed
            sync_tree(self._folder / str(step))
        sync(self._folder)
        for step in self._superfluous():
            removed = self._folder / f"{step}{REMOVED}"
            os.replace(self._folder / str(step), removed)  # none is half removed
            remove(removed)

    def _superfluous(self) -> set[int]:
        steps = self.steps()
        kept = steps[-self._keep_last :]
        if self._keep_best:
            scores = {step: self._score_of(step) for step in steps}
            scored = [step for step in steps if scores[step] > -math.inf]
            kept += sorted(scored, key=scores.get)[-self._keep_best :]
        return set(steps) - set(kept)

    def newest_run(self) -> dict[str, Any] | None:
        """What was saved beside the newest state; None if nothing was."""
        steps = self.steps()
        return self._read(steps[-1], "run") if steps else None

    def restore(self, like: TrainState) -> Saved | None:
        """The newest checkpoint, onto the devices of `like`; None if there is none.

        Args:
          like: shapes, dtypes and shardings (jax.ShapeDtypeStruct).
        """
        steps = self.steps()
        if not steps:
            return None
        try:
            return self._restore(steps[-1], like)
        except Exception as error:  # anything may come from Orbax's reader
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            raise UserError(
                f"{self._folder / str(steps[-1])} cannot be read ({reason(error)}): "
                f"move it away to go on from the one before."
            ) from error

    def _restore(self, step: int, like: TrainState) -> Saved:
        def read(item: str, target: Any) -> Any:
            with ocp.StandardCheckpointer() as reader:
                return reader.restore(self._folder / str(step) / item, target)

        run = self._read(step, "run")
        weights = read("params", {"params": like.params, "stats": like.stats})
        exported: dict[str, Any] = {}
        if like.ema:
            shipped = exported_variables(like, like.ema)
            exported = read_exported(self._folder / str(step), shipped)
        state = TrainState(
            step=jax.device_put(np.int32(step), like.step.sharding),
            params=weights["params"],
            stats=weights["stats"],
            opt_state=read("optimizer", like.opt_state),
            ema={name: exported[name]["params"] for name in like.ema},
        )
        checksums, _ = jax.device_get(summarise(state))
        if checksums.tolist() != run.pop("checksums"):
            raise ValueError("its weights are not those that were saved")
        return Saved(state, run)

    def _set_damaged_aside(self) -> None:
        """Rename what is newer than the newest whole checkpoint, so that it is kept."""
        steps = self.steps()
        if steps and not any((self._folder / f"{n}" / "run").exists() for n in steps):
            raise UserError(
                f"{self._folder} holds weights, but no run: name another --workdir, "
                f"and begin with --init-from={self._folder.parent}."
            )
        # Without a manifest they are of an earlier version, if all of them are.
        sealed = any(is_sealed(self._folder / str(n)) for n in steps)
        damaged = [
            *itertools.takewhile(lambda n: self._is_damaged(n, sealed), steps[::-1])
        ]
        if steps and len(damaged) == len(steps):
            raise UserError(
                f"None of the checkpoints in {self._folder} can be read: move the "
                f"folder away to begin anew."
            )
        for step in damaged:
            place = self._folder / f"{step}{DAMAGED}-{time.time_ns()}"
            os.replace(self._folder / str(step), place)
            logger.warning("it is kept as %s, and the one before is used", place)

    def _is_damaged(self, step: int, sealed: bool) -> bool:
        folder = self._folder / str(step)
        try:
            if sealed and not is_sealed(folder):
                raise ValueError("its manifest is missing")
            check_sealed(folder, *NEEDED)
            if not (folder / "run" / "metadata").is_file():
                raise ValueError("run is missing")
            self._read(step, "run")["checksums"]
        except (MemoryError, OSError) as error:  # which may pass, unlike damage
            raise UserError(f"{folder} cannot be read: {reason(error)}.") from error
        except (UserError, ValueError, KeyError, TypeError) as error:
            why = reason(error)
            logger.warning("checkpoint %d is damaged or incomplete: %s", step, why)
            return True
        return False

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in one sentence why a checkpoint cannot be written."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # TensorStore's, JAX's
            cause = re.search(r"([^:]+) \[os_error_code", str(error))
            why = cause[1].strip() if cause else reason(error)
            raise self._cannot_write(why) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        """Wait for what is being saved; its error does not replace another one."""
        try:
            self.wait()
        except UserError as error:
            if kind is None:
                raise
            logger.error(error)
        finally:
            self._writer.close()


def size_of(state: TrainState) -> int:
    """Bytes of a checkpoint, which holds what is shipped twice if it is no average."""
    again = {} if state.ema else state.params
    return sum(leaf.nbytes for leaf in jax.tree.leaves((state, again)))


def exported_variables(state: TrainState, names: Iterable[str]) -> dict[str, Any]:
    """What is shipped, by network: the EMA, in runs without one the parameters."""
    return {
        name: {
            "params": (state.ema or state.params)[name],
            "stats": state.stats[name],
        }
        for name in names
    }


def read_networks(source: Path) -> Any:
    """Parameters and stats of all networks of a run's checkpoint, by network.

    Args:
      source: a workdir, of which the newest is read, or one of its checkpoints.

    None for a workdir that holds an exported network only.
    """
    folder = step_folder(source) / "params"
    if not folder.exists():
        return None
    try:
        check_sealed(folder.parent, "params")
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(folder).item_metadata.tree
            on_the_host = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree)
            return reader.restore(folder, restore_args=on_the_host)
    except Exception as error:  # damage can show anywhere in Orbax's reader
        raise UserError(
            f"{folder} cannot be read, it is damaged or incomplete ({reason(error)})."
        ) from error
