"""Checkpoints of a run: all that it needs to go on as if it had never stopped.

`<workdir>/checkpoints/<step>/` has the items
  network, exported   what other programs read (`weights/workdir.py`): the EMA's weights
  params, optimizer   the rest of the training state
  run                 configuration, data, versions, and the state's checksum
Orbax writes them in the background, under another name until they are complete. What is
read is compared with its checksum; if it does not fit, the checkpoint before is read.
"""

import contextlib
import dataclasses
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from migan_jax.errors import UserError
from migan_jax.files import readable_size, reason
from migan_jax.training.processes import meet
from migan_jax.training.step import TrainState
from migan_jax.weights.families import Network, describe
from migan_jax.weights.locations import CHECKPOINTS, located

logger = logging.getLogger(__name__)


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


class Checkpoints:
    """The checkpoints of one workdir. To be closed, or used in a `with`."""

    def __init__(self, workdir: Path, keep_last: int, keep_best: int, score: Score):
        policies = [preservation_policy.LatestN(keep_last)]
        if keep_best:
            best = preservation_policy.BestN(
                get_metric_fn=score.of,
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            policies.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=score.of,  # or else they are not written
            cleanup_tmp_directories=True,  # of a run that was killed while saving
            enable_async_checkpointing=True,
        )
        self._folder, self._score = (workdir / CHECKPOINTS).absolute(), score
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def steps(self) -> list[int]:
        """Steps of which there is a complete checkpoint."""
        return sorted(self._manager.all_steps())

    def best(self) -> tuple[int, float] | None:
        """Step and score of the best that there is."""
        scores = {
            step: self._score.of(self._manager.metrics(step) or {})
            for step in self.steps()
        }
        scores = {step: score for step, score in scores.items() if score > -math.inf}
        return max(scores.items(), key=lambda item: item[1], default=None)

    def save(
        self,
        state: TrainState,
        network: Network,
        run: dict[str, Any],
        figures: Mapping[str, float] | None,
    ) -> None:
        """Begin to save, unless the state is not finite.

        Args:
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
        exported = {"params": state.ema["generator"], "stats": state.stats["generator"]}
        items = ocp.args.Composite(
            network=ocp.args.JsonSave(describe(network)),
            exported=ocp.args.StandardSave(exported),
            params=ocp.args.StandardSave(
                {"params": state.params, "stats": state.stats}
            ),
            optimizer=ocp.args.StandardSave(state.opt_state),
            run=ocp.args.JsonSave(run),
        )
        with self._explained():
            self._manager.save(step, args=items, metrics=figures, force=True)

    def _check_room(self, state: TrainState) -> None:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise self._cannot_write(
                f"it takes {readable_size(needed)}, and {readable_size(free)} are free"
            )

    def _cannot_write(self, why: str) -> UserError:
        complete = max(self.steps(), default=None)
        newest = f"step {complete} is complete" if complete else "there is none yet"
        return UserError(
            f"A checkpoint cannot be written to {self._folder} ({why}): make room or "
            f"whatever it takes, then the same command goes on ({newest})."
        )

    def wait(self) -> None:
        """Until what is being saved is complete."""
        with self._explained():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def newest_run(self) -> dict[str, Any] | None:
        """What was saved beside the newest state; None if nothing was."""
        for step in reversed(self.steps()):
            try:
                return self._item(step, run=ocp.args.JsonRestore())
            except Exception:  # damaged, as `restore` will say
                continue
        return None

    def restore(self, like: TrainState) -> Saved | None:
        """The newest checkpoint that is whole, onto the devices of `like`.

        Args:
          like: shapes, dtypes and shardings (jax.ShapeDtypeStruct).

        Damaged ones that are newer are moved out of the way. None if there never was
        one.
        """
        damaged: list[int] = []
        steps = self.steps()
        if steps and not any((self._folder / str(n) / "run").exists() for n in steps):
            raise UserError(
                f"{self._folder} holds weights, but no run: name another --workdir, "
                f"and begin with --init-from={self._folder.parent}."
            )
        for step in reversed(steps):
            try:
                saved = self._restore(step, like)
            except (MemoryError, PermissionError) as error:
                raise UserError(
                    f"{self._folder / str(step)} cannot be read: {reason(error)}."
                ) from error
            except Exception as error:  # damage can show anywhere in Orbax's reader
                if "RESOURCE_EXHAUSTED" in str(error):
                    raise
                logger.warning(
                    "checkpoint %d is damaged or incomplete (%s): using the one before",
                    step,
                    reason(error),
                )
                damaged.append(step)
            else:
                self._set_aside(damaged)
                return saved
        if damaged:
            raise UserError(
                f"None of the checkpoints in {self._folder} can be read: move the "
                f"folder away to begin anew."
            )
        return None

    def _restore(self, step: int, like: TrainState) -> Saved:
        exported = {"params": like.ema["generator"], "stats": like.stats["generator"]}
        params = {"params": like.params, "stats": like.stats}
        run = self._item(step, run=ocp.args.JsonRestore())
        ema = self._item(step, exported=ocp.args.StandardRestore(exported))
        rest = self._item(step, params=ocp.args.StandardRestore(params))
        optimizer = ocp.args.StandardRestore(like.opt_state)
        state = TrainState(
            step=jax.device_put(np.int32(step), like.step.sharding),
            params=rest["params"],
            stats=rest["stats"],
            opt_state=self._item(step, optimizer=optimizer),
            ema={"generator": ema["params"]},
        )
        checksums, _ = jax.device_get(summarise(state))
        if checksums.tolist() != run.pop("checksums"):
            raise ValueError("its weights are not those that were saved")
        return Saved(state, run)

    def _item(self, step: int, **item: Any) -> Any:
        (name,) = item
        restored = self._manager.restore(step, args=ocp.args.Composite(**item))
        return restored[name]

    def _set_aside(self, steps: list[int]) -> None:
        """Keep damaged checkpoints, but where they are in nobody's way."""
        if not steps:
            return
        if jax.process_index() == 0:
            for step in steps:
                place = self._folder.with_name("damaged") / f"{step}-{int(time.time())}"
                place.parent.mkdir(exist_ok=True)
                os.replace(self._folder / str(step), place)
                logger.warning("moved checkpoint %d to %s", step, place)
        meet("damaged checkpoints are set aside")
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in one sentence why a checkpoint cannot be written."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # TensorStore's, JAX's
            cause = re.search(r"([^:]+) \[os_error_code", str(error))
            why = cause[1].strip() if cause else reason(error)
            raise self._cannot_write(why) from error

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def read_networks(source: Path) -> Any:
    """The parameters of all networks of a run's checkpoint, by network.

    Args:
      source: a workdir, of which the newest is read, or one of its checkpoints.

    None for a workdir that holds an exported network only.
    """
    workdir, step = located(source)
    with ocp.CheckpointManager((workdir / CHECKPOINTS).absolute()) as manager:
        step = manager.latest_step() if step is None else step
        folder = manager.directory / str(step) / "params"
    if not folder.exists():
        return None
    reader = ocp.PyTreeCheckpointer()
    try:
        tree = reader.metadata(folder).item_metadata.tree
        on_the_host = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree)
        return reader.restore(folder, restore_args=on_the_host)["params"]
    except Exception as error:  # damage can show anywhere in Orbax's reader
        raise UserError(
            f"{folder} cannot be read, it is damaged or incomplete ({reason(error)})."
        ) from error
