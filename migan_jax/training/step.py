"""One iteration of any system: each player's update in turn, then the EMA.

Lazy penalties are updates of their own, in a program of their own: every so many
iterations it runs after the other, on the same batch.

The state is one tree of arrays and holds no functions. What is frozen (a teacher) is an
argument of its own, that is never changed and never saved. A batch that is too large
for the memory is used in parts, whose gradients are summed: the same iteration.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from migan_jax.ops.minibatch_std import GROUP_SIZE
from migan_jax.ops.partition import split_parts
from migan_jax.systems.base import Batch, Metrics, Params, Stats, System


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes in a run."""

    step: jax.Array
    params: Params
    stats: Stats
    opt_state: dict[str, Any]  # by player
    ema: Params  # of the exported networks


Optimizers = Mapping[str, optax.GradientTransformation]  # by player
Step = Callable[[TrainState, Params, Batch, jax.Array], tuple[TrainState, Metrics]]


def init_state(system: System, optimizers: Optimizers, key: jax.Array) -> TrainState:
    """The state before the first step."""
    params, stats = system.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state={
            player: optimizers[player].init({name: params[name] for name in networks})
            for player, networks in system.players.items()
        },
        ema={name: params[name] for name in system.exported},
    )


def make_step(
    system: System,
    optimizers: Optimizers,
    ema_decay: float,
    parts: int = 1,
    waiting: Mapping[str, int] | None = None,
) -> Step:
    """One iteration, of (state, frozen, batch, key): uint8 pictures, and the run's key.

    Args:
      parts: in which a player sees the batch, one after another.
      waiting: players that stay as they are for so many steps.
    """

    def step(
        state: TrainState, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        metrics: Metrics = {}
        key, batch = _prepared(system, batch, key, state.step, parts)
        for number, player in enumerate(system.players, start=1):
            optimizer, turn_key = optimizers[player], jax.random.fold_in(key, number)
            after, told = _take_turn(
                system, optimizer, player, False, state, frozen, batch, turn_key
            )
            waits = (waiting or {}).get(player, 0)
            state = _where(state.step >= waits, after, state) if waits else after
            metrics |= told
        ema = {
            name: jax.tree.map(
                # In this form, an average of what stands still stands still exactly.
                lambda old, new: old + (1 - ema_decay) * (new - old),
                state.ema[name],
                state.params[name],
            )
            for name in system.exported
        }
        return dataclasses.replace(state, step=state.step + 1, ema=ema), metrics

    return step


def _where(condition: jax.Array, then: Any, otherwise: Any) -> Any:
    return jax.tree.map(
        lambda one, other: jnp.where(condition, one, other), then, otherwise
    )


def make_penalty_step(system: System, optimizers: Optimizers, parts: int = 1) -> Step:
    """The players' lazy penalties, after an iteration and on its batch."""

    def step(
        state: TrainState, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        metrics: Metrics = {}
        key, batch = _prepared(system, batch, key, state.step - 1, parts)
        for number, player in enumerate(
            system.regularized, start=1 + len(system.players)
        ):
            optimizer, turn_key = optimizers[player], jax.random.fold_in(key, number)
            state, told = _take_turn(
                system, optimizer, player, True, state, frozen, batch, turn_key
            )
            metrics |= told
        return state, metrics

    return step


def _prepared(
    system: System, batch: Batch, key: jax.Array, step: jax.Array, parts: int
) -> tuple[jax.Array, Batch]:
    """The key of a step, and its batch: the same for all updates of an iteration."""
    key = jax.random.fold_in(key, step)
    return key, split_batch(system.prepare(batch, jax.random.fold_in(key, 0)), parts)


def split_batch(batch: Batch, parts: int) -> Batch:
    """In equal parts, [parts, N / parts, ...], of whole minibatch-std groups.

    A group is every (N / GROUP_SIZE)th sample, and stays one in its part.
    """
    samples = len(batch["image"])
    group = min(GROUP_SIZE, samples)
    if samples % (parts * group):
        raise ValueError(f"{samples} samples are not {parts} parts of whole groups")

    def split(x: jax.Array) -> jax.Array:
        groups = x.reshape(group, parts, samples // (group * parts), *x.shape[1:])
        return split_parts(groups.swapaxes(0, 1).reshape(parts, -1, *x.shape[1:]))

    return {name: split(x) for name, x in batch.items()}


def _take_turn(
    system: System,
    optimizer: optax.GradientTransformation,
    player: str,
    lazy: bool,
    state: TrainState,
    frozen: Params,
    batch: Batch,
    key: jax.Array,
) -> tuple[TrainState, Metrics]:
    """One player's update, with the others as they are now."""
    own = {name: state.params[name] for name in system.players[player]}

    def loss(own: Params, part: Batch) -> tuple[jax.Array, tuple[Stats, Metrics]]:
        params, stats = {**state.params, **own}, state.stats
        value, (stats, metrics) = system.loss(
            player, params, stats, frozen, part, key, regularize=lazy
        )
        changes = jax.tree.map(jnp.subtract, stats, state.stats)
        return value, (changes, metrics)

    def of_part(part: Batch) -> tuple[Params, tuple[Stats, Metrics]]:
        return jax.grad(loss, has_aux=True)(own, part)

    gradient, (changes, metrics) = _mean_over_parts(of_part, batch)
    stats = jax.tree.map(jnp.add, state.stats, changes)
    updates, opt_state = optimizer.update(gradient, state.opt_state[player], own)
    return (
        dataclasses.replace(
            state,
            params={**state.params, **optax.apply_updates(own, updates)},
            stats=stats,
            opt_state={**state.opt_state, player: opt_state},
        ),
        metrics,
    )


def _mean_over_parts(of_part: Callable[[Batch], Any], batch: Batch) -> Any:
    """The mean of trees of numbers; one part is computed at a time."""
    parts = len(batch["image"])
    first = jax.tree.map(lambda x: x[0], batch)
    if parts == 1:
        return of_part(first)

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(part)), None

    shapes = jax.eval_shape(of_part, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, batch)
    return jax.tree.map(lambda x: x / parts, total)
