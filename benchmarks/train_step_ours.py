"""The JAX side of `train_step.py`: the program of a run, and the pieces of it."""

import dataclasses
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from inpaint import resident_megabytes
from timing import minimum_ms
from train_step_torch import (
    B2,
    DISTILLATION_WEIGHT,
    EMA_DECAY,
    INTERVALS,
    LEARNING_RATE,
    R1_GAMMA,
    build_twins,
    resident_peak,
    widths,
)

from migan_jax.models import comodgan, migan
from migan_jax.models.costs import count
from migan_jax.models.layers import Reparam
from migan_jax.systems.base import generator_input
from migan_jax.systems.migan import MIGAN
from migan_jax.training.optimizer import lazy_adam
from migan_jax.training.step import TrainState, make_penalty_step, make_step
from migan_jax.weights.checkpoint import from_tensors
from migan_jax.weights.fusing import collapse
from migan_jax.weights.names import abstract_inputs

MATRIX_SIDE = 4096
# How often an iteration runs a piece; what is part of other pieces is not listed.
RUNS_PER_ITERATION = {
    "teacher forward": 1,
    "G step, no teacher": 1,
    "D step": 1,
    "R1 step": 1 / INTERVALS["discriminator"],
    "Adam and EMA": 1,
}


def draw_inputs(arguments: Namespace) -> dict[str, Any]:
    """Pictures and masks, and what our first step makes of them and of its key."""
    jax.config.update("jax_platforms", "cpu")  # in the parent, which only draws
    key = jax.random.key(1)
    side = arguments.resolution
    shape = (arguments.batch, side, side)
    mask = jnp.ones((*shape, 1), jnp.uint8)
    mask = mask.at[:, side // 4 : side // 2, side // 4 :].set(0)
    batch = {"image": jax.random.bits(key, (*shape, 3), jnp.uint8), "mask": mask}
    sizes, codes = widths(arguments)
    generator, teacher = migan.Generator(**sizes), comodgan.Generator(**sizes, **codes)
    system = MIGAN(generator, None, None, teacher=teacher)
    key = jax.random.fold_in(jax.random.key(0), 0)
    prepared = system.prepare(batch, jax.random.fold_in(key, 0))
    drawn = system.draw("generator", jax.random.fold_in(key, 1), prepared["sample"])
    return jax.device_get({"batch": batch, "prepared": prepared, "z": drawn["z"]})


class Ours:
    """A system with the twins' first weights, its state and its two programs."""

    def __init__(self, arguments: Namespace, inputs: dict[str, Any], dtype: str | None):
        if arguments.gpu and jax.default_backend() != "gpu":
            raise RuntimeError("PyTorch has a GPU here and JAX has none")
        self._key = jax.random.key(0)
        self._before = resident_megabytes("VmRSS")
        self._arguments = arguments
        self._batch, self._prepared = jax.device_put(
            (inputs["batch"], inputs["prepared"])
        )
        networks, params, stats = {}, {}, {}
        for name, twin in build_twins(arguments).items():
            read = from_tensors({k: v.numpy() for k, v in twin.state_dict().items()})
            form = {} if name == "teacher" else {"reparam": Reparam()}
            networks[name] = read.network.clone(dtype=dtype, **form)
            params[name], stats[name] = collapse(read.params), read.stats
        teacher = {"params": params.pop("teacher"), "stats": stats.pop("teacher")}
        self._frozen = {"teacher": teacher}
        self._system = MIGAN(
            networks["generator"],
            networks["discriminator"],
            sampler=None,  # the batch has its own masks
            r1_gamma=R1_GAMMA,
            r1_interval=INTERVALS["discriminator"],
            teacher=networks["teacher"],
            distillation_weight=DISTILLATION_WEIGHT,
        )
        self._optimizers = {
            player: lazy_adam(LEARNING_RATE, B2, interval, Reparam())
            for player, interval in INTERVALS.items()
        }
        self._state = self._first_state(params, stats)
        step = make_step(self._system, self._optimizers, EMA_DECAY)
        self._step = jax.jit(step, donate_argnums=0)
        penalise = make_penalty_step(self._system, self._optimizers)
        self._penalise = jax.jit(penalise, donate_argnums=0)

    def _first_state(self, params: dict[str, Any], stats: dict[str, Any]) -> TrainState:
        opt_state = {
            player: optimizer.init({player: params[player]})
            for player, optimizer in self._optimizers.items()
        }
        # A copy, since a step is given all of the state's memory to write to.
        ema = jax.tree.map(jnp.copy, {"generator": params["generator"]})
        return TrainState(jnp.zeros((), jnp.int32), params, stats, opt_state, ema)

    # What a worker is asked for.

    def step(self) -> dict[str, float]:
        """Both players and the EMA; returns their losses."""
        done = self._step(self._state, self._frozen, self._batch, self._key)
        self._state, told = jax.block_until_ready(done)
        return {
            "generator": float(told["g/adversarial"] + told["g/distillation"]),
            "discriminator": float(told["d/adversarial"]),
        }

    def penalty(self) -> dict[str, float]:
        """The R1 step; returns the penalty without its weights."""
        arrays = (self._state, self._frozen, self._batch, self._key)
        done = self._penalise(*arrays)
        self._state, told = jax.block_until_ready(done)
        return {"r1": float(told["d/r1"])}

    def peak_gigabytes(self) -> float:
        """The most memory since this was last asked; a GPU tells of all its life."""
        if self._arguments.gpu:
            return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9
        return resident_peak(self._before)

    def pieces(self) -> dict[str, Any]:
        """Where the time of an iteration goes, beside the rate of matrix products."""
        arrays = (self._state, self._frozen, self._prepared, self._key)
        runs: dict[str, Callable[[], Any]] = {}
        for name, piece in self._pieces().items():
            program = jax.jit(piece)
            runs[name] = lambda f=program: jax.block_until_ready(f(*arrays))
        matrix = jnp.ones((MATRIX_SIDE, MATRIX_SIDE))
        multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
        runs["matrix"] = lambda: multiply(matrix, matrix).block_until_ready()
        times = minimum_ms(runs, self._arguments.repeats)
        seconds = {name: value / 1e3 for name, value in times.items()}
        rate = MATRIX_SIDE**3 / seconds.pop("matrix")
        total = sum(n * seconds[name] for name, n in RUNS_PER_ITERATION.items())
        products = self._multiply_adds()
        rows = []
        for name, value in seconds.items():
            runs_of_it, products_of_it = RUNS_PER_ITERATION.get(name), products[name]
            share = None if runs_of_it is None else 100 * runs_of_it * value / total
            rows.append({"piece": name, "s": value, "% of iteration": share or "-"})
            rows[-1]["G multiply-adds"] = products_of_it / 1e9 or "-"
            of_rate = 100 * products_of_it / value / rate
            rows[-1]["% of matrix rate"] = of_rate or "-"
        return {"rows": rows, "rate": rate, "seconds": total}

    # The pieces: functions of state, frozen, prepared batch and key.

    def _gradient(
        self, system: MIGAN, player: str, regularize: bool = False
    ) -> Callable[..., Any]:
        """A player's gradient and metrics."""

        def run(state: TrainState, frozen: Any, batch: Any, key: Any) -> Any:
            def loss(own: Any) -> Any:
                params = {**state.params, **own}
                value, (_, metrics) = system.loss(
                    player, params, state.stats, frozen, batch, key, regularize
                )
                return value, metrics

            own = {player: state.params[player]}
            return jax.grad(loss, has_aux=True)(own)

        return run

    def _pieces(self) -> dict[str, Callable[..., Any]]:
        system = self._system
        untaught = dataclasses.replace(system, teacher=None)

        def teach(state: TrainState, frozen: Any, batch: Any, key: Any) -> Any:
            drawn = system.draw("generator", key, batch["sample"])
            x = generator_input(batch["image"], batch["mask"])
            given = drawn["z"], drawn["teacher_noise"]
            return system.teacher.apply(frozen["teacher"], x, *given)[1]

        def complete(state: TrainState, frozen: Any, batch: Any, key: Any) -> Any:
            drawn = system.draw("discriminator", key, batch["sample"])
            return system.complete(state.params, state.stats, batch, drawn)[:2]

        def update(state: TrainState, frozen: Any, batch: Any, key: Any) -> Any:
            """With the parameters themselves for gradients."""
            made = {}
            for player, optimizer in self._optimizers.items():
                own = {player: state.params[player]}
                updates, moments = optimizer.update(own, state.opt_state[player], own)
                made[player] = (optax.apply_updates(own, updates), moments)
            new = made["generator"][0]
            ema = optax.incremental_update(new, state.ema, 1 - EMA_DECAY)
            return made, ema

        return {
            "teacher forward": teach,
            "G forward (in both steps)": complete,
            "G step, no teacher": self._gradient(untaught, "generator"),
            "D step": self._gradient(system, "discriminator"),
            "R1 step": self._gradient(system, "discriminator", regularize=True),
            "Adam and EMA": update,
        }

    def _multiply_adds(self) -> dict[str, int]:
        """Of convolutions, dense layers and filters in each of the pieces."""

        def forward(network: Any) -> int:
            costs = count(network, *abstract_inputs(network)).values()
            one = sum(cost.convolution + cost.filter for cost in costs)
            return one * self._arguments.batch

        system = self._system
        teacher, generator, discriminator = map(
            forward, (system.teacher, system.generator, system.discriminator)
        )
        return {
            "teacher forward": teacher,
            "G forward (in both steps)": generator,
            "G step, no teacher": 3 * generator + 2 * discriminator,
            "D step": generator + 2 * 3 * discriminator,
            "R1 step": 6 * discriminator,
            "Adam and EMA": 0,
        }
