"""Whole iterations against PyTorch's Adam on the twins, in float64."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from games import BATCH, SIZE, Game  # noqa: E402
from parity import flax_of, relative_l2  # noqa: E402

from migan_jax.systems.base import TrainState  # noqa: E402
from migan_jax.systems.optimizers import lazy_adam  # noqa: E402
from migan_jax.training.step import make_step  # noqa: E402
from migan_jax.training.timeline import Timeline  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]  # minutes of compilation

LEARNING_RATE, B2, EMA_DECAY = 1e-3, 0.99, 0.9
INTERVALS = {"generator": 4, "discriminator": 16}


def optimizers_of(generator, discriminator):
    networks = {"generator": generator, "discriminator": discriminator}
    return {
        name: lazy_adam(
            LEARNING_RATE, 0.0, B2, INTERVALS[name], getattr(network, "reparam", None)
        )
        for name, network in networks.items()
    }


def train_ours(game, steps):
    """The state after so many steps, of which the first has the lazy penalty."""
    timeline = Timeline(
        game.system.stages(), batch_size=BATCH, resolution=SIZE, total_kimg=1
    )
    opt_state = {
        name: optimizer.init({name: game.params[name]})
        for name, optimizer in game.system.optimizers.items()
    }
    ema = {"generator": game.params["generator"]}
    state = TrainState(np.zeros((), np.int32), game.params, game.stats, opt_state, ema)
    span = timeline.at(0)
    halflife = BATCH / 1000 * np.log(0.5) / np.log(EMA_DECAY)
    step = jax.jit(make_step(game.system, span, ema_halflife_kimg=halflife))
    penalty = jax.jit(make_step(game.system, span, every=span.stage.lazy[0]))
    rest = game.frozen, game.batch, jax.random.key(0)
    for index in range(steps):
        state, _ = step(state, *rest)
        if index == 0:
            state, _ = penalty(state, *rest)
    return state


def train_theirs(game, steps):
    """The same on the twins; returns the generator's EMA."""
    optimizers = {}
    for player, twin in (("generator", game.generator), ("discriminator", game.judge)):
        share = INTERVALS[player] / (INTERVALS[player] + 1)
        optimizers[player] = torch.optim.Adam(
            twin.parameters(), LEARNING_RATE * share, (0.0, B2**share), 1e-8
        )
    ema = {k: v.detach().clone() for k, v in game.generator.named_parameters()}

    def turn(player, loss):
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss().backward()
        optimizers[player].step()

    for index in range(steps):
        turn("generator", game.their_generator_loss)
        turn("discriminator", game.their_discriminator_loss)
        if index == 0:
            turn("discriminator", game.their_penalty)
        for name, value in game.generator.named_parameters():
            ema[name].lerp_(value.detach(), 1 - EMA_DECAY)
    return ema


@pytest.mark.parametrize(
    "family", ["migan", pytest.param("comodgan", marks=pytest.mark.full)]
)
def test_two_iterations_are_pytorchs(family, float64):
    game = Game(family, optimizers=optimizers_of)
    state = train_ours(game, steps=2)
    before = game.params
    ema = train_theirs(game, steps=2)
    for player, twin in (("generator", game.generator), ("discriminator", game.judge)):
        compare(state.params[player], flax_of(twin).params, before[player])
    with torch.no_grad():
        for name, value in game.generator.named_parameters():
            value.copy_(ema[name])
    compare(state.ema["generator"], flax_of(game.generator).params, before["generator"])
    assert state.step == 2


def compare(ours, theirs, before):
    """Leaf by leaf; and what Adam may move has moved."""
    leaves = zip(*map(jax.tree.leaves, (ours, theirs, before)), strict=True)
    moved = 0
    for mine, other, start in leaves:
        assert relative_l2(mine, other) <= 1e-9
        moved += bool((np.asarray(mine) != start).any())
    assert moved > 10
