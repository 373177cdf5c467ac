"""Dtypes of a half-precision training step.

CPUs compute bfloat16 in float32, so dtypes are checked in programs lowered for TPUs.
test_plan.py compiles a step.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.models import comodgan, discriminators, migan
from migan_jax.systems.base import Inputs
from migan_jax.systems.comodgan import CoModGAN
from migan_jax.systems.migan import MIGAN
from migan_jax.systems.optimizers import lazy_adam
from migan_jax.training.step import init_state
from migan_jax.weights.names import abstract_variables

BATCH, SIZE = 8, 32
PARTS = 3 * 3  # channels of an image in three parts, whose sum is exact
HALF = {
    "resolution": SIZE,
    "channel_base": 256,
    "channel_max": 8,
    "dtype": jnp.bfloat16,
}
CODES = {"z_dim": 6, "w_dim": 6, "encoder_dim": 6}
NETWORKS = {
    "migan": migan.MIGANGenerator(**HALF),
    "comodgan": comodgan.CoModGANGenerator(**HALF, **CODES),
    "migan_discriminator": discriminators.MIGANDiscriminator(**HALF),
    "comodgan_discriminator": discriminators.CoModGANDiscriminator(**HALF),
}
TEACHER, BOX = NETWORKS["comodgan"], SAMPLERS["box"]


def optimizers_of(network):
    reparam = getattr(network, "reparam", None)
    return {
        "generator": lazy_adam(1e-3, 0.0, 0.99, 4, reparam),
        "discriminator": lazy_adam(1e-3, 0.0, 0.99, 16, reparam),
    }


SYSTEMS = {
    "migan": MIGAN(
        NETWORKS["migan"],
        NETWORKS["migan_discriminator"],
        BOX,
        optimizers_of(NETWORKS["migan"]),
        teacher=TEACHER,
    ),
    "comodgan": CoModGAN(
        TEACHER, NETWORKS["comodgan_discriminator"], BOX, optimizers_of(TEACHER)
    ),
}


def lowered_for_tpu(function, *args):
    """Return the StableHLO program for a TPU; no TPU is needed."""
    traced = jax.jit(function).trace(*args)
    return traced.lower(lowering_platforms=("tpu",)).as_text()


def products(program):
    """Yield (dtype, shape) of operands and result of each convolution and product."""
    for line in program.splitlines():
        if re.search(r"stablehlo\.(convolution|dot_general)\b", line):
            types = re.findall(r"tensor<((?:\d+x)+)(\w+)>", line.rsplit(" : ", 1)[1])
            yield [
                (dtype, tuple(int(size) for size in sizes[:-1].split("x")))
                for sizes, dtype in types
            ]


def feature_maps(product):
    """Return those that are images or features."""
    return [
        (dtype, shape)
        for dtype, shape in product
        if len(shape) == 4 and shape[0] == BATCH and shape[1] == shape[2] > 1
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_half_precision_and_images_are_not(name):
    """A single NumPy float64 scalar would promote all later features to float32."""
    network = NETWORKS[name]
    variables = abstract_variables(network)
    params = variables.pop("params")
    inputs = [
        jax.ShapeDtypeStruct((BATCH, *x.shape[1:]), x.dtype) for x in network.inputs()
    ]

    def loss(params, other, *inputs):
        output = network.apply({"params": params, **other}, *inputs)
        return sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(output))

    counts = {"bf16": 0, "f32": 0}
    for product in products(
        lowered_for_tpu(jax.grad(loss), params, variables, *inputs)
    ):
        maps = feature_maps(product)
        if not maps:
            continue
        if name == "migan":
            dtype, shape = product[-1]
            assert dtype == "f32" or shape[-1] != PARTS, product
            maps = [(dtype, shape) for dtype, shape in maps if shape[-1] != PARTS]
        to_rgb = any(shape[-1] == 3 for _, shape in maps)
        expected = "f32" if to_rgb else "bf16"
        assert {dtype for dtype, _ in maps} == {expected}, product
        counts[expected] += 1
    assert counts["bf16"] > 20
    assert (counts["f32"] > 0) == ("discriminator" not in name)


@pytest.mark.parametrize("name", SYSTEMS)
def test_r1_is_computed_in_float32(name):
    system = SYSTEMS[name]
    state = abstract_state(system)
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32),
        "mask": jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 1), jnp.float32),
        "sample": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }

    def gradient_program(loss):
        def scalar(discriminator, state, batch):
            params = {**state.params, "discriminator": discriminator}
            inputs = Inputs(frozen_of(system), batch, jax.random.key(0), 0.0, 0.0)
            return loss(params, state.stats, inputs)[0]

        discriminator = state.params["discriminator"]
        return lowered_for_tpu(jax.grad(scalar), discriminator, state, batch)

    penalty = gradient_program(system.r1_loss)
    assert "bf16" not in penalty
    assert sum(1 for product in products(penalty) if feature_maps(product)) > 20
    assert "bf16" in gradient_program(system.discriminator_loss)


def abstract_state(system):
    return jax.eval_shape(lambda: init_state(system, jax.random.key(0)))


def frozen_of(system):
    return (
        {"teacher": abstract_variables(TEACHER)} if system is SYSTEMS["migan"] else {}
    )
