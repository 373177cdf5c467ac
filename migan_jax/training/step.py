"""One iteration of any system: each player's update in turn, then the EMA.

The state is one tree of arrays and holds no functions. What is frozen (a teacher) is an
argument of its own, that is never changed and never saved.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

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
    system: System, optimizers: Optimizers, ema_decay: float, regularize: bool
) -> Step:
    """One iteration; with `regularize`, penalties take a step of their own after it.

    The step takes (state, frozen, batch, key): uint8 pictures, and the run's key.
    """

    def step(
        state: TrainState, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        batch = system.prepare(batch, jax.random.fold_in(key, 0))
        turns = [(player, False) for player in system.players]
        if regularize:
            turns += [(player, True) for player in system.regularized]
        metrics: Metrics = {}
        for number, (player, lazy) in enumerate(turns, start=1):
            turn_key = jax.random.fold_in(key, number)
            state, told = _take_turn(
                system, optimizers[player], player, lazy, state, frozen, batch, turn_key
            )
            metrics |= told
        ema = {
            name: jax.tree.map(
                lambda old, new: ema_decay * old + (1 - ema_decay) * new,
                state.ema[name],
                state.params[name],
            )
            for name in system.exported
        }
        return dataclasses.replace(state, step=state.step + 1, ema=ema), metrics

    return step


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

    def loss(own: Params) -> tuple[jax.Array, tuple[Stats, Metrics]]:
        params = {**state.params, **own}
        return system.loss(
            player, params, state.stats, frozen, batch, key, regularize=lazy
        )

    gradient, (stats, metrics) = jax.grad(loss, has_aux=True)(own)
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
