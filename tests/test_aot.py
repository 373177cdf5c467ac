"""All-reduces of data-parallel gradients, compiled ahead of time for a TPU topology.

With a plain cast of the weights to bfloat16, XLA would all-reduce bfloat16 gradients.
On a CPU this is not visible, because it computes bfloat16 in float32.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from topologies import all_reduces, tpu_devices

from migan_jax.models import comodgan, discriminators, migan
from migan_jax.weights.names import abstract_variables

pytestmark = pytest.mark.aot

NARROW = {"resolution": 16, "channel_base": 512, "channel_max": 32}
CODES = {"z_dim": 32, "w_dim": 32, "encoder_dim": 32}
NETWORKS = {
    "migan": migan.MIGANGenerator(**NARROW, dtype=jnp.bfloat16),
    "migan_discriminator": discriminators.MIGANDiscriminator(
        **NARROW, dtype=jnp.bfloat16
    ),
    "comodgan": comodgan.CoModGANGenerator(**NARROW, **CODES, dtype=jnp.bfloat16),
    "comodgan_discriminator": discriminators.CoModGANDiscriminator(
        **NARROW, dtype=jnp.bfloat16
    ),
}
BATCH = 8


@pytest.fixture
def mesh(monkeypatch):
    return Mesh(tpu_devices(monkeypatch), ("data",))


# test_aot_training.py compiles whole steps of the others.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if "comodgan" in name else pytest.mark.full)
        for name in NETWORKS
    ],
)
def test_gradients_are_reduced_in_float32(name, mesh):
    network = NETWORKS[name]

    def shard(leaf, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    variables = jax.tree.map(shard, abstract_variables(network))
    batch = [
        shard(jax.ShapeDtypeStruct((BATCH, *x.shape[1:]), x.dtype), "data")
        for x in network.inputs()
    ]

    def loss(params, rest, *inputs):
        output = network.apply({"params": params, **rest}, *inputs)
        return jnp.mean(jax.tree.leaves(output)[0] ** 2)

    params = variables.pop("params")
    step = jax.jit(jax.grad(loss), out_shardings=NamedSharding(mesh, PartitionSpec()))
    program = step.lower(params, variables, *batch).compile().as_text()

    sums = list(all_reduces(program))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert {dtype for dtype, _ in sums} == {"f32"}
    total = sum(elements for _, elements in sums)
    # The rest is small: stored noise and minibatch statistics.
    assert parameters <= total <= 1.2 * parameters
