"""The training loop."""

import dataclasses
import logging

from migan_jax.families import all_kinds
from migan_jax.systems.base import TrainState
from migan_jax.training import processes
from migan_jax.training.heartbeat import Heartbeat
from migan_jax.training.preemption import StopSignals
from migan_jax.training.profiler import Profile
from migan_jax.training.reporting import Clock, Reporter
from migan_jax.training.setup import Setup
from migan_jax.training.stages import Stages
from migan_jax.training.validation import Validation

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    saved: int | None  # step of the newest checkpoint
    best: tuple[int, float] | None  # step and score of the best evaluation
    stopped_early: bool


def train(setup: Setup, signals: StopSignals) -> Outcome:
    """Train until the last step, a stop signal or early stopping.

    Each iteration, in this order: evaluate, save, load a batch, step, log.
    """
    state, end = setup.state, setup.end_step
    validation = Validation(setup)
    with (
        Heartbeat(setup.config.hang_seconds) as heartbeat,
        _make_reporter(setup) as reporter,
        Profile(setup.config.profile, setup.workdir) as profile,
        Stages(setup) as stages,
    ):
        for step in range(setup.first_step, end + 1):
            is_new = step > setup.first_step
            due = step % setup.config.save_every_steps == 0 or step == end
            stop = signals.should_stop(step)
            # Save before compiling a new stage: the run may be killed in these minutes.
            new_stage = is_new and setup.timeline.at(step).first_step == step
            if due or stop or new_stage:
                reporter.log_pending()
            if due and (is_new or step == 0):
                heartbeat.beat(f"evaluating step {step}")
                validation.evaluate(state, step, reporter)
            if is_new and (due or stop or new_stage):
                heartbeat.beat(f"saving step {step}")
                stages.merge_rejects(step)
                _save(setup, state, step, reporter, validation)
            if step == end or stop or (due and validation.should_stop_early(step)):
                break
            heartbeat.beat(f"preparing step {step}")
            with reporter.spending("compilation"):
                stage = stages.at(step)
            heartbeat.beat(f"loading the batch of step {step}")
            with reporter.loading_data():
                batch = stage.next_batch()
            if step == stage.opened_at:  # hosts may compile for different times
                with reporter.spending("compilation"):
                    processes.barrier(f"before step {step}")
                reporter.forget_durations()
                signals.defer()
            heartbeat.beat(f"in step {step}")
            profile.before(step, state)
            state, metrics = stage.advance(state, batch, step)
            reporter.log(step + 1, metrics, stage.span.batch_size)
        heartbeat.beat("saving the last step")
        setup.checkpoints.wait()
        reporter.flush()
    saved = setup.checkpoints.newest()
    return Outcome(step, saved, validation.best, validation.should_stop_early(step))


def _make_reporter(setup: Setup) -> Reporter:
    return Reporter(
        setup.workdir,
        total_steps=setup.end_step,
        log_every_steps=setup.config.log_every_steps,
        nonfinite_steps=setup.config.nonfinite_steps,
        labels=setup.family.labels,
        first_step=setup.first_step,
        earlier=setup.reporter_position,
        clock=Clock(setup.clock),
        rotates=setup.mirror is not None,
    )


def _save(
    setup: Setup,
    state: TrainState,
    step: int,
    reporter: Reporter,
    validation: Validation,
) -> None:
    """Start saving the state, after flushing all metrics up to it."""
    if not reporter.is_finite:
        logger.warning("step %d: not saved, its losses are not finite", step)
        return
    reporter.flush()
    if setup.mirror is not None:
        with reporter.spending("saving"):
            setup.mirror.upload()
    system = setup.timeline.before(step).stage.system or setup.system
    exported = {name: system.networks[name] for name in system.exported}
    run = {
        **setup.identity,
        "reporter": reporter.position,
        "clock": reporter.clock.saved(),
        "best": validation.best,
    }
    with reporter.spending("saving"):
        setup.checkpoints.save(
            state, exported, all_kinds(), run, validation.metrics_of(step)
        )
