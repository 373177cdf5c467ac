"""The loop of a run."""

import dataclasses
import logging

from migan_jax.families import all_kinds
from migan_jax.systems.base import TrainState
from migan_jax.training import processes
from migan_jax.training.reporting import Reporter
from migan_jax.training.setup import Setup
from migan_jax.training.stages import Stages
from migan_jax.training.stopping import Stopping
from migan_jax.training.validation import Validation

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Ending:
    """How far a run has come."""

    step: int
    saved: int | None  # the newest step that can be gone on from
    best: tuple[int, float] | None  # step and score of the best evaluation
    is_stale: bool  # it has stopped because that was too long ago


def train(setup: Setup, stopping: Stopping) -> Ending:
    """From where the run stands to its end, or to where it is told to stop.

    At every step, in this order: evaluate, save, next batch, step, report.
    """
    state, end = setup.state, setup.end_step
    validation = Validation(setup)
    with _reporter_of(setup) as reporter, Stages(setup) as stages:
        for step in range(setup.first_step, end + 1):
            is_new = step > setup.first_step
            due = step % setup.config.save_every_steps == 0 or step == end
            stop = stopping.asked(step)
            # What follows is compiled for minutes, in which a run may be killed.
            changes = is_new and setup.timeline.at(step).first_step == step
            if due or stop or changes:
                reporter.catch_up()
            if due and (is_new or step == 0):
                validation.evaluate(state, step, reporter)
            if is_new and (due or stop or changes):
                _save(setup, state, step, reporter, validation)
            if step == end or stop or (due and validation.is_stale(step)):
                break
            with reporter.aside():
                stage = stages.at(step)
            with reporter.waiting():
                batch = stage.next_batch()
            if step == stage.opened_at:  # for which hosts may have taken other times
                processes.meet(f"before step {step}")
                stopping.hold_back()
            state, metrics = stage.advance(state, batch, step)
            reporter.report(step + 1, metrics, stage.span.batch_size)
        setup.checkpoints.wait()
        reporter.flush()
    saved = max(setup.checkpoints.steps(), default=None)
    return Ending(step, saved, validation.best, validation.is_stale(step))


def _reporter_of(setup: Setup) -> Reporter:
    return Reporter(
        setup.workdir,
        total_steps=setup.end_step,
        log_every_steps=setup.config.log_every_steps,
        nonfinite_steps=setup.config.nonfinite_steps,
        labels=setup.family.labels,
        first_step=setup.first_step,
        earlier=setup.reported,
    )


def _save(
    setup: Setup,
    state: TrainState,
    step: int,
    reporter: Reporter,
    validation: Validation,
) -> None:
    """Begin to save the state, with everything reported up to it on the disk."""
    if not reporter.is_finite:
        logger.warning("step %d: not saved, its losses are not finite", step)
        return
    reporter.flush()
    exported = {name: setup.system.networks[name] for name in setup.system.exported}
    run = {
        **setup.identity,
        "reporter": reporter.position,
        "best": validation.best,
    }
    with reporter.aside():
        setup.checkpoints.save(
            state, exported, all_kinds(), run, validation.figures_of(step)
        )
