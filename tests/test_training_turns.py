"""The order of updates: turns, groups of turns, lazy turns and stages.

The networks are single numbers, trained by gradient descent.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
import pytest

from migan_jax.systems.base import Optimizer, Stage, Turn
from migan_jax.systems.optimizers import scale_by_learning_rate
from migan_jax.training.step import init_state, make_step
from migan_jax.training.timeline import Timeline

RATE, BATCH = 0.1, {"image": jnp.ones((4, 1, 1, 3))}
SGD = {name: optax.sgd(RATE, momentum=0.5) for name in ("first", "second")}
HALF_LIFE = 4 / 1000  # one step


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Two networks that minimise their product; a lazy turn minimises the square."""

    grouped: bool = False
    exported: ClassVar = ("first",)
    batch_multiple: ClassVar = 1
    rules = SGD

    def init(self, key):
        params = {"first": jnp.ones(()), "second": jnp.full((), 3.0)}
        return params, {"first": {"turns": jnp.zeros(())}, "second": {}}

    def stages(self):
        optimizers = {n: Optimizer((n,), rule) for n, rule in self.rules.items()}
        first = Turn("first", self.loss_of("first"), ("first",), stream=1)
        second = Turn("second", self.loss_of("second"), ("second",), stream=2)
        lazy = Turn("lazy", self.lazy_loss, ("second",), stream=3, every=2)
        groups = ((first, second),) if self.grouped else ((first,), (second,))
        alone = Stage("alone", ((second,), (lazy,)), optimizers, until_kimg=0.008)
        return [alone, Stage("all", (*groups, (lazy,)), optimizers)]

    def prepare(self, batch, key, progress):
        return {**batch, "drawn": jax.random.uniform(key, (4,))}

    def loss_of(self, name):
        def loss(params, stats, inputs):
            turns = stats["first"]["turns"] + 1
            metrics = {
                f"{name}/drawn": jnp.mean(inputs.batch["drawn"]),
                f"{name}/key": jax.random.uniform(inputs.key),
                f"{name}/turns": turns,
                f"{name}/progress": inputs.progress,
            }
            stats = {**stats, "first": {"turns": turns}}
            return params["first"] * params["second"], (stats, metrics)

        return loss

    def lazy_loss(self, params, stats, inputs):
        metrics = {
            "lazy/drawn": jnp.mean(inputs.batch["drawn"]),
            "lazy/key": jax.random.uniform(inputs.key),
            "lazy/progress": inputs.progress,
        }
        return params["second"] ** 2, (stats, metrics)


def make_timeline(system, total_kimg=0.04):
    return Timeline(system.stages(), batch_size=4, resolution=1, total_kimg=total_kimg)


def run_step(system, state, every=1, **options):
    """Return state and metrics after a step, or after lazy turns."""
    span = make_timeline(system).at(int(state.step) - (every > 1))
    step = make_step(system, span, every=every, **options)
    return jax.jit(step)(state, {}, BATCH, jax.random.key(1))


def state_at(system, step, **options):
    state = init_state(system, jax.random.key(0), **options)
    return dataclasses.replace(state, step=jnp.int32(step))


def test_turns_use_updated_parameters():
    system = Numbers()
    after, metrics = run_step(system, state_at(system, 2), ema_halflife_kimg=HALF_LIFE)
    assert after.params["first"] == pytest.approx(1 - RATE * 3)
    assert after.params["second"] == pytest.approx(3 - RATE * 0.7)
    assert after.ema["first"] == pytest.approx(0.85) and set(after.ema) == {"first"}
    assert after.step == 3
    assert (metrics["first/turns"], metrics["second/turns"]) == (1, 2)


def test_turns_of_a_group_use_the_same_parameters():
    """But the statistics of the turn before."""
    system = Numbers(grouped=True)
    after, metrics = run_step(system, state_at(system, 2))
    assert after.params["first"] == pytest.approx(1 - RATE * 3)
    assert after.params["second"] == pytest.approx(3 - RATE * 1)
    assert (metrics["first/turns"], metrics["second/turns"]) == (1, 2)
    assert after.stats["first"]["turns"] == 2


def test_stages_have_their_own_turns():
    system = Numbers()
    before = state_at(system, 1)
    after, metrics = run_step(system, before, ema_halflife_kimg=HALF_LIFE)
    assert after.params["first"] == after.ema["first"] == 1
    assert jax.tree.leaves(after.opt_state["first"])[0] == 0
    assert after.params["second"] < before.params["second"]
    assert {name.partition("/")[0] for name in metrics} == {"second"}
    # A turn draws the same random numbers in all stages.
    step = make_step(system, make_timeline(system).at(2))
    _, elsewhere = jax.jit(step)(before, {}, BATCH, jax.random.key(1))
    assert elsewhere["second/key"] == metrics["second/key"] != elsewhere["first/key"]


def test_lazy_turns_use_the_batch_of_the_step():
    system = Numbers()
    state, metrics = run_step(system, state_at(system, 2))
    after, lazy = run_step(system, state, every=2)
    assert lazy["lazy/drawn"] == metrics["second/drawn"]
    assert lazy["lazy/progress"] == metrics["second/progress"]
    keys = [*(metrics[f"{name}/key"] for name in ("first", "second")), lazy["lazy/key"]]
    assert len({float(key) for key in keys}) == 3
    assert after.params["second"] < state.params["second"]
    for same in ("step", "ema"):
        assert getattr(after, same) == getattr(state, same)
    assert after.params["first"] == state.params["first"]
    _, other = run_step(system, after)
    assert other["second/drawn"] != metrics["second/drawn"]


def test_run_without_an_ema():
    system = Numbers()
    after, _ = run_step(system, state_at(system, 2, with_ema=False))
    assert after.ema == {}


def test_progress_is_the_fraction_of_the_stage():
    system = Numbers()
    for step, expected in {0: 0, 1: 0.5, 2: 0, 6: 0.5, 9: 0.875}.items():
        _, metrics = run_step(system, state_at(system, step))
        assert metrics["second/progress"] == pytest.approx(expected)


def test_learning_rates_depend_on_the_images_of_the_stage():
    """Not on the batch size, or the number of updates."""

    class Decaying(Numbers):
        schedule = optax.linear_schedule(1.0, 0.0, transition_steps=0.016)
        rules = dict.fromkeys(SGD, scale_by_learning_rate(schedule))

    system, steps = Decaying(grouped=True), {0: 1, 1: 0.75, 2: 1, 4: 0.5, 6: 0}
    for step, rate in steps.items():
        before = state_at(system, step)
        after, _ = run_step(system, before)
        change = before.params["second"] - after.params["second"]
        assert change == pytest.approx(rate * 1, abs=1e-6)
    before = dataclasses.replace(before, step=jnp.int32(5))
    after, _ = run_step(system, before, every=2)
    assert after.params["second"] == pytest.approx(3 - 0.5 * 2 * 3)


def test_optimizers_keep_their_state_between_stages():
    class Other(Numbers):
        def stages(self):
            alone, every = super().stages()
            plain = {**every.optimizers, "second": Optimizer(("second",), optax.sgd(1))}
            return [alone, dataclasses.replace(every, optimizers=plain)]

    with pytest.raises(ValueError, match="second"):
        init_state(Other(), jax.random.key(0))


def test_invalid_stages():
    def turn(name, stream, optimizer="a", every=1):
        return Turn(name, None, (optimizer,), stream, every)

    optimizers = {name: Optimizer((name,), optax.sgd(1)) for name in "ab"}
    for groups, why in {
        ((turn("x", 1),), (turn("y", 1),)): "streams",
        ((turn("x", 0),),): "streams",
        ((turn("x", 1), turn("y", 2, "b", every=2)),): "every",
        ((turn("x", 1), turn("y", 2)),): "one network",
    }.items():
        with pytest.raises(ValueError, match=why):
            Stage("main", groups, optimizers)
