"""Who learns when: players in turns, one that waits, and the lazy penalty's own turn.

The networks are single numbers, and the optimiser is gradient descent.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
import pytest

from migan_jax.training.step import init_state, make_penalty_step, make_step

OPTIMIZERS = dict.fromkeys(("generator", "discriminator"), optax.sgd(0.1, momentum=0.5))
BATCH = {"image": jnp.ones((4, 1, 1, 3))}
DECAY = 0.5


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Each player minimises its number plus the other's; the penalty is a square."""

    players: ClassVar = {
        "generator": ("generator",),
        "discriminator": ("discriminator",),
    }
    regularized: ClassVar = ("discriminator",)
    exported: ClassVar = ("generator",)

    def init(self, key):
        params = {"generator": jnp.ones(()), "discriminator": jnp.full((), 3.0)}
        return params, {"generator": {}, "discriminator": {}}

    def prepare(self, batch, key):
        return {**batch, "drawn": jax.random.uniform(key, (4,))}

    def loss(self, player, params, stats, frozen, batch, key, regularize):
        own, drawn = params[player], jnp.mean(batch["drawn"])
        if regularize:
            return own**2, (stats, {"penalty": own**2, "penalty drawn": drawn})
        return own * params["generator"], (stats, {f"{player} drawn": drawn})


@pytest.fixture
def state():
    return init_state(Numbers(), OPTIMIZERS, jax.random.key(0))


def taken(step, state):
    return jax.jit(step)(state, {}, BATCH, jax.random.key(1))


def test_the_second_player_sees_the_first_ones_update(state):
    after, _ = taken(make_step(Numbers(), OPTIMIZERS, DECAY), state)
    assert after.params["generator"] == pytest.approx(1 - 0.1 * 2)
    assert after.params["discriminator"] == pytest.approx(3 - 0.1 * 0.8)
    assert after.ema["generator"] == pytest.approx(0.9)
    assert after.step == 1


def test_a_player_that_waits_stays_as_it_is(state):
    step = make_step(Numbers(), OPTIMIZERS, DECAY, waiting={"generator": 2})
    for _ in range(2):
        before = state
        state, metrics = taken(step, state)
        assert state.params["generator"] == 1 and state.ema["generator"] == 1
        assert jax.tree.leaves(state.opt_state["generator"])[0] == 0
        assert state.params["discriminator"] < before.params["discriminator"]
        assert "generator drawn" in metrics
    state, _ = taken(step, state)
    assert state.params["generator"] == pytest.approx(0.8)


def test_the_penalty_follows_on_the_same_batch(state):
    state, metrics = taken(make_step(Numbers(), OPTIMIZERS, DECAY), state)
    after, told = taken(make_penalty_step(Numbers(), OPTIMIZERS), state)
    assert told["penalty"] == state.params["discriminator"] ** 2
    assert told["penalty drawn"] == metrics["discriminator drawn"]
    assert after.params["discriminator"] < state.params["discriminator"]
    for same in ("step", "ema"):
        assert getattr(after, same) == getattr(state, same)
    assert after.params["generator"] == state.params["generator"]
    _, other = taken(make_step(Numbers(), OPTIMIZERS, DECAY), after)
    assert other["discriminator drawn"] != metrics["discriminator drawn"]
