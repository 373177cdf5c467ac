"""Sharding a batch by samples and rows does not change gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import use_tpu_forms
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from variables import CODES, TINY, random_variables

from migan_jax.models import comodgan, discriminators, migan

NETWORKS = {
    "migan": migan.MIGANGenerator(**TINY),
    "comodgan": comodgan.CoModGANGenerator(**TINY, **CODES),
    "migan_discriminator": discriminators.MIGANDiscriminator(**TINY, remat=True),
    "comodgan_discriminator": discriminators.CoModGANDiscriminator(**TINY),
}
# One network per family in which samples depend on each other.
ONE_PER_FAMILY = "comodgan", "migan_discriminator"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_PER_FAMILY else pytest.mark.full)
        for name in NETWORKS
    ],
)
def test_sharded_gradients_equal_those_of_one_device(name, float64, monkeypatch):
    """Also if images are strips on each device, as on TPUs."""
    network = NETWORKS[name]
    variables = random_variables(network, dtype=np.float64)
    params = variables.pop("params")
    rng = np.random.default_rng(1)
    # Four on each device: two strips of each, also at the lowest level.
    inputs = [rng.standard_normal((16, *x.shape[1:])) for x in network.inputs()]

    def loss(params, *inputs):
        output = network.apply({"params": params, **variables}, *inputs)
        return jnp.mean(jax.tree.leaves(output)[0] ** 2)

    axes = {"axis_types": (AxisType.Auto,) * 2}
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "space"), **axes)
    # Images are sharded by samples and rows, latents by samples.
    specs = PartitionSpec("data", "space"), PartitionSpec("data")
    split = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip(inputs, specs, strict=False)
    ]
    expected = jax.jit(jax.grad(loss))(params, *inputs)
    use_tpu_forms(monkeypatch)
    with jax.set_mesh(mesh):
        sharded = jax.jit(jax.grad(loss))(params, *split)
    for ours, theirs in zip(
        jax.tree.leaves(sharded), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=1e-12 * scale, rtol=1e-10)
