"""Whole iterations against PyTorch's Adam on the twins, in float64."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")

from parity import flax_of, relative_l2
from torch_gan import B1, B2, INTERVALS, LEARNING_RATE
from twin_systems import BATCH, SIZE, TwinSystems

from migan_jax.systems.base import TrainState
from migan_jax.systems.optimizers import lazy_adam
from migan_jax.training.step import make_step
from migan_jax.training.timeline import Timeline

pytestmark = [pytest.mark.torch, pytest.mark.slow]  # minutes of compilation

EMA_DECAY = 0.9


def optimizers_of(generator, discriminator):
    networks = {"generator": generator, "discriminator": discriminator}
    return {
        name: lazy_adam(
            LEARNING_RATE, B1, B2, INTERVALS[name], getattr(network, "reparam", None)
        )
        for name, network in networks.items()
    }


def train_ours(gan, steps):
    """Return the state after some steps; the first is followed by the lazy penalty."""
    timeline = Timeline(
        gan.system.stages(), batch_size=BATCH, resolution=SIZE, total_kimg=1
    )
    opt_state = {
        name: optimizer.init({name: gan.params[name]})
        for name, optimizer in gan.system.optimizers.items()
    }
    ema = {"generator": gan.params["generator"]}
    state = TrainState(np.zeros((), np.int32), gan.params, gan.stats, opt_state, ema)
    span = timeline.at(0)
    halflife = BATCH / 1000 * np.log(0.5) / np.log(EMA_DECAY)
    step = jax.jit(make_step(gan.system, span, ema_halflife_kimg=halflife))
    penalty = jax.jit(make_step(gan.system, span, every=span.stage.lazy[0]))
    rest = gan.frozen, gan.batch, jax.random.key(0)
    for index in range(steps):
        state, _ = step(state, *rest)
        if index == 0:
            state, _ = penalty(state, *rest)
    return state


@pytest.mark.parametrize(
    "family", ["migan", pytest.param("comodgan", marks=pytest.mark.full)]
)
def test_two_iterations_are_pytorchs(family, float64):
    gan = TwinSystems(family, optimizers=optimizers_of, ema_decay=EMA_DECAY)
    state = train_ours(gan, steps=2)
    before = gan.params
    for index in range(2):
        gan.theirs.step()
        if index == 0:
            gan.theirs.update("penalty")
    for name in before:
        compare(state.params[name], flax_of(gan.twins[name]).params, before[name])
    ema = flax_of(gan.theirs.ema).params
    compare(state.ema["generator"], ema, before["generator"])
    assert state.step == 2


def compare(ours, theirs, before):
    """Compare leaf by leaf, and check that Adam has moved parameters."""
    leaves = zip(*map(jax.tree.leaves, (ours, theirs, before)), strict=True)
    moved = 0
    for mine, other, start in leaves:
        assert relative_l2(mine, other) <= 1e-9
        moved += bool((np.asarray(mine) != start).any())
    assert moved > 10
