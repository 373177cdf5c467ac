"""All-reduces of data-parallel gradients, compiled ahead of time for a TPU topology.

With a plain cast of the weights to bfloat16, XLA would all-reduce bfloat16 gradients.
On a CPU this is not visible, because it computes bfloat16 in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from migan_jax.models import comodgan, discriminators, migan
from migan_jax.planning.chips import TPUS, open_topology
from migan_jax.planning.hlo import read_program
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
def mesh():
    pytest.importorskip("libtpu")
    return Mesh(np.array(open_topology("v5e:2x2")[0]), ("data",))


# test_plan.py compiles a whole step of the others.
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

    found = read_program(program, TPUS["v5e"].float32_passes).collectives
    sums = [one for one in found if one.kind == "all-reduce"]
    assert {one.dtype for one in sums} == {"f32"}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    # The rest is small: stored noise and minibatch statistics.
    total = sum(one.bytes for one in sums)
    assert 4 * parameters <= total <= 1.2 * 4 * parameters
