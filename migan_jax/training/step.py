"""An iteration of any system: the turns of a stage, one after another, then the EMA.

Lazy turns are programs of their own: every so many steps one runs after the others, on
the same batch. So a turn that is not due costs nothing, and a stage has as many
programs as its turns have intervals.

The state is one tree of arrays and holds no functions. What is frozen is an argument of
its own, that is never changed and never saved. A batch that is too large for the memory
is used in microbatches, whose gradients are summed: the same iteration, with the
statistics that the last of them gives.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from migan_jax.ops.partition import split_parts
from migan_jax.systems.base import Batch, Inputs, Metrics, System, TrainState, Turn
from migan_jax.training.timeline import Span

# Of (state, frozen, batch, key): uint8 pictures, and the run's key.
Step = Callable[
    [TrainState, Mapping[str, Any], Batch, jax.Array], tuple[TrainState, Metrics]
]


def init_state(system: System, key: jax.Array, with_ema: bool = True) -> TrainState:
    """The state before the first step, with that of all stages' optimizers."""
    params, stats = system.init(key)
    opt_state: dict[str, Any] = {}
    for stage in system.stages():
        for name, optimizer in stage.optimizers.items():
            own = {network: params[network] for network in optimizer.networks}
            made = optimizer.transformation.init(own)
            first = opt_state.setdefault(name, made)
            if jax.tree.structure(first) != jax.tree.structure(made):
                raise ValueError(
                    f"{stage.name}: {name} has another state than in the stages before"
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
) -> Step:
    """The program of an iteration of a stage, or of what comes after some of them.

    Args:
      ema_halflife_kimg: of the exported networks' average, if there is one.
      microbatches: in which a turn sees the batch, one after another.
      every: the interval of the lazy turns that the program is of; 1: of the others.
    """
    groups = [group for group in span.stage.turns if group[0].every == every]
    ema_decay = 0.0
    if ema_halflife_kimg:
        ema_decay = 0.5 ** (span.batch_size / (1000 * ema_halflife_kimg))

    def step(
        state: TrainState, frozen: Mapping[str, Any], batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        # A lazy turn comes after the step, of which it has the batch and the numbers.
        number = state.step if every == 1 else state.step - 1
        key, progress = jax.random.fold_in(key, number), span.progress(number)
        batch = system.prepare(batch, jax.random.fold_in(key, 0), progress)
        batch = split_batch(batch, microbatches, system.batch_multiple)
        inputs = Inputs(frozen, batch, key, progress, span.kimg(number))
        metrics: Metrics = {}
        for group in groups:
            state, reported = _take_turns(group, span, state, inputs)
            metrics |= reported
        if every == 1:
            ema = _averaged(state.ema, state.params, ema_decay)
            state = dataclasses.replace(state, step=state.step + 1, ema=ema)
        return state, metrics

    return step


def _take_turns(
    group: tuple[Turn, ...], span: Span, state: TrainState, inputs: Inputs
) -> tuple[TrainState, Metrics]:
    """All see the same parameters, and the statistics that the one before has left."""
    before, optimizers = state.params, span.stage.optimizers
    metrics: Metrics = {}
    for turn in group:
        seen = dataclasses.replace(state, params=before)
        own = inputs._replace(key=jax.random.fold_in(inputs.key, turn.stream))
        after, reported = turn.update(turn, optimizers, seen, own)
        changed = {name: after.params[name] for name in turn.trains(optimizers)}
        state = dataclasses.replace(after, params={**state.params, **changed})
        metrics |= reported
    return state, metrics


def _averaged(ema: Any, params: Any, decay: float) -> Any:
    """The EMA after a step, of those networks that have one."""
    return {
        name: jax.tree.map(
            # In this form, an average of what stands still stands still exactly.
            lambda old, new: old + (1 - decay) * (new - old),
            tree,
            params[name],
        )
        for name, tree in ema.items()
    }


def split_batch(batch: Batch, microbatches: int, multiple: int) -> Batch:
    """In equal parts, [microbatches, N / microbatches, ...], of whole groups.

    A system's losses may compare the samples of a group: `multiple` of them, which are
    every (N / multiple)th sample. A group stays one in its microbatch.
    """
    if microbatches == 1:
        return jax.tree.map(lambda x: split_parts(x[None]), batch)
    samples = len(jax.tree.leaves(batch)[0])
    group = min(multiple, samples)
    if samples % (microbatches * group):
        raise ValueError(
            f"{samples} samples are not {microbatches} microbatches of whole groups"
        )

    def split(x: jax.Array) -> jax.Array:
        each = samples // (group * microbatches)
        groups = x.reshape(group, microbatches, each, *x.shape[1:])
        parts = groups.swapaxes(0, 1).reshape(microbatches, -1, *x.shape[1:])
        return split_parts(parts)

    return jax.tree.map(split, batch)
