"""The JAX side of `train_step.py`: the training step, and pieces of it."""

import dataclasses
import math
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from inpaint import resident_megabytes
from timing import minimum_ms
from torch_gan import B1, B2, DISTILLATION_WEIGHT, INTERVALS, LEARNING_RATE, R1_GAMMA
from train_step_torch import EMA_DECAY, build_twins, resident_peak, widths

from migan_jax.families import from_tensors
from migan_jax.models import comodgan, migan
from migan_jax.models.costs import count
from migan_jax.models.layers import Reparam
from migan_jax.systems.base import Inputs, Loss, TrainState
from migan_jax.systems.migan import MIGAN
from migan_jax.systems.optimizers import lazy_adam
from migan_jax.training.step import make_step
from migan_jax.training.timeline import Timeline
from migan_jax.weights.kernel_forms import collapse

MATRIX_SIDE = 4096
# How often an iteration runs a piece; parts of other pieces are not listed.
RUNS_PER_ITERATION = {
    "teacher forward": 1,
    "G step, no teacher": 1,
    "D step": 1,
    "R1 step": 1 / INTERVALS["discriminator"],
    "Adam and EMA": 1,
}


def draw_inputs(arguments: Namespace) -> dict[str, Any]:
    """Draw pictures and masks, prepare them as our first step does, and draw its z."""
    jax.config.update("jax_platforms", "cpu")  # the parent process only draws
    key = jax.random.key(1)
    side = arguments.resolution
    shape = (arguments.batch, side, side)
    mask = jnp.ones((*shape, 1), jnp.uint8)
    mask = mask.at[:, side // 4 : side // 2, side // 4 :].set(0)
    batch = {"image": jax.random.bits(key, (*shape, 3), jnp.uint8), "mask": mask}
    sizes, codes = widths(arguments)
    generator, teacher = (
        migan.MIGANGenerator(**sizes),
        comodgan.CoModGANGenerator(**sizes, **codes),
    )
    system = MIGAN(generator, None, None, optimizers={}, teacher=teacher)
    key = jax.random.fold_in(jax.random.key(0), 0)
    prepared = system.prepare(batch, jax.random.fold_in(key, 0), jnp.zeros(()))
    turn_key = jax.random.fold_in(key, 1)
    z, _ = system.teacher_inputs(turn_key, prepared["sample"])
    return jax.device_get({"batch": batch, "prepared": prepared, "z": z})


class Ours:
    """A system with the twins' initial weights, its state and its two programs."""

    def __init__(self, arguments: Namespace, inputs: dict[str, Any], dtype: str | None):
        if arguments.gpu and jax.default_backend() != "gpu":
            raise RuntimeError("PyTorch has a GPU here, but JAX does not")
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
            optimizers={
                name: lazy_adam(LEARNING_RATE, B1, B2, interval, Reparam())
                for name, interval in INTERVALS.items()
            },
            r1_gamma=R1_GAMMA,
            r1_interval=INTERVALS["discriminator"],
            teacher=networks["teacher"],
            distillation_weight=DISTILLATION_WEIGHT,
        )
        self._state = self._first_state(params, stats)
        (span,) = Timeline(
            self._system.stages(),
            batch_size=arguments.batch,
            resolution=arguments.resolution,
            total_kimg=1.0,  # any value: nothing here depends on it
        ).spans
        halflife_kimg = arguments.batch / 1000 * math.log(0.5, EMA_DECAY)
        step = make_step(self._system, span, ema_halflife_kimg=halflife_kimg)
        self._step = jax.jit(step, donate_argnums=0)
        (every,) = span.stage.lazy
        penalise = make_step(self._system, span, every=every)
        self._penalise = jax.jit(penalise, donate_argnums=0)

    def _first_state(self, params: dict[str, Any], stats: dict[str, Any]) -> TrainState:
        opt_state = {
            name: optimizer.init({name: params[name]})
            for name, optimizer in self._system.optimizers.items()
        }
        # A copy, since the state is donated to the step.
        ema = jax.tree.map(jnp.copy, {"generator": params["generator"]})
        return TrainState(jnp.zeros((), jnp.int32), params, stats, opt_state, ema)

    # What a worker calls.

    def step(self) -> dict[str, float]:
        """Update both networks and the EMA; return their losses."""
        done = self._step(self._state, self._frozen, self._batch, self._key)
        self._state, metrics = jax.block_until_ready(done)
        return {
            "generator": float(metrics["g/adversarial"] + metrics["g/distillation"]),
            "discriminator": float(metrics["d/adversarial"]),
        }

    def penalty(self) -> dict[str, float]:
        """Take the R1 step; return the penalty without its weights."""
        arrays = (self._state, self._frozen, self._batch, self._key)
        done = self._penalise(*arrays)
        self._state, metrics = jax.block_until_ready(done)
        return {"r1": float(metrics["d/r1"])}

    def peak_gigabytes(self) -> float:
        """Return the peak memory since the last call; on a GPU that of the process."""
        if self._arguments.gpu:
            return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9
        return resident_peak(self._before)

    def pieces(self) -> dict[str, Any]:
        """Measure the pieces of an iteration, and the rate of matrix products."""
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
            percent = None if runs_of_it is None else 100 * runs_of_it * value / total
            rows.append({"piece": name, "s": value, "% of iteration": percent or "-"})
            rows[-1]["G multiply-adds"] = products_of_it / 1e9 or "-"
            of_rate = 100 * products_of_it / value / rate
            rows[-1]["% of matrix rate"] = of_rate or "-"
        return {"rows": rows, "rate": rate, "seconds": total}

    # The pieces: functions of state, frozen, prepared batch and key.

    def _gradient(self, name: str, loss: Loss) -> Callable[..., Any]:
        """Make a function of a loss's gradient in a network, and its metrics."""

        def run(state: TrainState, frozen: Any, batch: Any, key: Any) -> Any:
            def of_trained(trained: Any) -> Any:
                params = {**state.params, **trained}
                inputs = Inputs(frozen, batch, key, progress=0.0, kimg=0.0)
                value, (_, metrics) = loss(params, state.stats, inputs)
                return value, metrics

            return jax.grad(of_trained, has_aux=True)({name: state.params[name]})

        return run

    def _pieces(self) -> dict[str, Callable[..., Any]]:
        system = self._system
        undistilled = dataclasses.replace(system, teacher=None)

        def teach(state: TrainState, frozen: Any, batch: Any, key: Any) -> Any:
            return system.teach(Inputs(frozen, batch, key, 0.0, 0.0))

        def complete(state: TrainState, frozen: Any, batch: Any, key: Any) -> Any:
            inputs = Inputs(frozen, batch, key, 0.0, 0.0)
            return system.complete(state.params, state.stats, inputs)

        def update(state: TrainState, frozen: Any, batch: Any, key: Any) -> Any:
            """Use the parameters as gradients."""
            updated = {}
            for name, optimizer in system.optimizers.items():
                own = {name: state.params[name]}
                updates, moments = optimizer.update(own, state.opt_state[name], own)
                updated[name] = (optax.apply_updates(own, updates), moments)
            new = updated["generator"][0]
            ema = optax.incremental_update(new, state.ema, 1 - EMA_DECAY)
            return updated, ema

        return {
            "teacher forward": teach,
            "G forward (in both steps)": complete,
            "G step, no teacher": self._gradient(
                "generator", undistilled.generator_loss
            ),
            "D step": self._gradient("discriminator", system.discriminator_loss),
            "R1 step": self._gradient("discriminator", system.r1_loss),
            "Adam and EMA": update,
        }

    def _multiply_adds(self) -> dict[str, int]:
        """Count multiply-adds of convolutions, dense layers and filters by piece."""

        def forward(network: Any) -> int:
            costs = count(network, *network.inputs()).values()
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
