"""Rematerialisation does not change results, and stores fewer activations."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals
from variables import CODES, TINY, random_variables

from migan_jax.models import comodgan, discriminators, migan
from migan_jax.weights.names import abstract_variables

NETWORKS = {
    "migan": migan.MIGANGenerator(**TINY),
    "comodgan": comodgan.CoModGANGenerator(**TINY, **CODES),
    "migan_discriminator": discriminators.MIGANDiscriminator(**TINY),
    "comodgan_discriminator": discriminators.CoModGANDiscriminator(**TINY),
}
ONE_PER_FAMILY = "comodgan", "migan_discriminator"


def make_loss(network):
    """A loss of parameters, stats and inputs that also returns the network's output."""

    def loss(params, rest, *inputs):
        output = network.apply({"params": params, **rest}, *inputs)
        return sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(output)), output

    return loss


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_PER_FAMILY else pytest.mark.full)
        for name in NETWORKS
    ],
)
def test_remat_does_not_change_results(name, float64):
    network = NETWORKS[name]
    rematerialised = network.clone(remat=True)
    assert abstract_variables(rematerialised) == abstract_variables(network)
    variables = random_variables(network, dtype=np.float64)
    params = variables.pop("params")
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((4, *x.shape[1:])) for x in network.inputs()]

    def run(network):
        gradient = jax.value_and_grad(make_loss(network), has_aux=True)
        return jax.jit(gradient)(params, variables, *inputs)

    for ours, theirs in zip(
        *map(jax.tree.leaves, (run(rematerialised), run(network))), strict=True
    ):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=1e-12 * scale, rtol=1e-10)


def count_residuals(network, capsys):
    """Count elements stored for the backward pass, except arguments."""
    variables = random_variables(network)
    params = variables.pop("params")
    inputs = [np.zeros((4, *x.shape[1:]), x.dtype) for x in network.inputs()]
    capsys.readouterr()
    print_saved_residuals(
        lambda *args: make_loss(network)(*args)[0], params, variables, *inputs
    )
    shapes = re.findall(r"^\w+\[([\d,]*)\] (?!from)", capsys.readouterr().out, re.M)
    return sum(math.prod(map(int, filter(None, s.split(",")))) for s in shapes)


@pytest.mark.parametrize("name", NETWORKS)
def test_remat_stores_few_activations(name, capsys):
    """Counted before XLA, whose CPU programs do not save memory with remat."""
    network = NETWORKS[name].clone(resolution=32, channel_base=256)
    stored = count_residuals(network, capsys)
    assert 0 < count_residuals(network.clone(remat=True), capsys) < stored / 3
