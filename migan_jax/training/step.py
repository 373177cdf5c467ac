"""The training step of any system: the turns of a stage in order, then the EMA.

Lazy turns, such as gradient penalties, run every few steps, after the step and on its
batch. They are compiled separately, so a turn that is not due costs nothing; a stage
has one program for each interval.

The state is one tree of arrays. Frozen networks are a separate argument that is never
changed or saved. Microbatches save memory: their gradients are averaged, which gives
the same step, except that statistics are those of the last microbatch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from migan_jax.ops.partition import split_microbatches
from migan_jax.systems.base import Batch, Inputs, Metrics, System, TrainState, Turn
from migan_jax.training.timeline import Span

# Takes (state, frozen, batch, key): uint8 images, and the run's key.
StepFunction = Callable[
    [TrainState, Mapping[str, Any], Batch, jax.Array], tuple[TrainState, Metrics]
]


def init_state(system: System, key: jax.Array, with_ema: bool = True) -> TrainState:
    """Return the state before the first step, with the optimizers of all stages."""
    params, stats = system.init(key)
    opt_state: dict[str, Any] = {}
    for stage in system.stages():
        for name, optimizer in stage.optimizers.items():
            trained = {network: params[network] for network in optimizer.networks}
            initial = optimizer.transformation.init(trained)
            first = opt_state.setdefault(name, initial)
            if jax.tree.structure(first) != jax.tree.structure(initial):
                raise ValueError(
                    f"{stage.name}: {name} has another state than in earlier stages"
                )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state=opt_state,
        ema={name: params[name] for name in system.exported if with_ema},
    )


def make_step(
    system: System,
    span: Span,
    *,
    ema_halflife_kimg: float = 0.0,
    microbatches: int = 1,
    every: int = 1,
) -> StepFunction:
    """Make the function of a stage's step, or of its lazy turns of one interval.

    Args:
      ema_halflife_kimg: half-life of the EMA, in thousands of images.
      microbatches: number of microbatches per batch.
      every: the interval of the lazy turns to run; 1: the step.
    """
    groups = [group for group in span.stage.turns if group[0].every == every]
    system = span.stage.system or system
    ema_decay = 0.0
    if ema_halflife_kimg:
        ema_decay = 0.5 ** (span.batch_size / (1000 * ema_halflife_kimg))

    def step(
        state: TrainState, frozen: Mapping[str, Any], batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        # A lazy turn comes after the step has counted, but belongs to it.
        index = state.step if every == 1 else state.step - 1
        key, progress = jax.random.fold_in(key, index), span.progress(index)
        batch = system.prepare(batch, jax.random.fold_in(key, 0), progress)
        batch = split_batch(batch, microbatches, system.batch_multiple)
        inputs = Inputs(frozen, batch, key, progress, span.kimg(index))
        metrics: Metrics = {}
        for group in groups:
            state, new_metrics = _take_turns(group, span, state, inputs)
            metrics |= new_metrics
        if every == 1:
            ema = _update_ema(state.ema, state.params, ema_decay)
            state = dataclasses.replace(state, step=state.step + 1, ema=ema)
        return state, metrics

    return step


def _take_turns(
    group: tuple[Turn, ...], span: Span, state: TrainState, inputs: Inputs
) -> tuple[TrainState, Metrics]:
    """Take the turns of a group.

    All differentiate at the same parameters; each gets the previous one's statistics.
    """
    params, optimizers = state.params, span.stage.optimizers
    metrics: Metrics = {}
    for turn in group:
        before = dataclasses.replace(state, params=params)
        turn_inputs = inputs._replace(key=jax.random.fold_in(inputs.key, turn.stream))
        with jax.named_scope(turn.name):  # for profiles and `plan`
            after, new_metrics = turn.update(turn, optimizers, before, turn_inputs)
        trained = {
            name: after.params[name] for name in turn.trained_networks(optimizers)
        }
        state = dataclasses.replace(after, params={**state.params, **trained})
        metrics |= new_metrics
    return state, metrics


@jax.named_scope("ema")
def _update_ema(ema: Any, params: Any, decay: float) -> Any:
    return {
        name: jax.tree.map(
            # In this form, the EMA of constant parameters is exactly constant.
            lambda old, new: old + (1 - decay) * (new - old),
            tree,
            params[name],
        )
        for name, tree in ema.items()
    }


def split_batch(batch: Batch, microbatches: int, multiple: int) -> Batch:
    """Split [N, ...] into [microbatches, N / microbatches, ...], in whole groups.

    Losses may compare the samples of a group: `multiple` samples, each N / multiple
    after the one before. The groups of a batch are groups of its microbatches too.
    """
    if microbatches == 1:
        return jax.tree.map(lambda x: split_microbatches(x[None]), batch)
    samples = len(jax.tree.leaves(batch)[0])
    group = min(multiple, samples)
    if samples % (microbatches * group):
        raise ValueError(
            f"{samples} samples are not {microbatches} microbatches of whole groups"
        )

    def split(x: jax.Array) -> jax.Array:
        groups = samples // (group * microbatches)  # of a microbatch
        grouped = x.reshape(group, microbatches, groups, *x.shape[1:])
        split = grouped.swapaxes(0, 1).reshape(microbatches, -1, *x.shape[1:])
        return split_microbatches(split)

    return jax.tree.map(split, batch)
