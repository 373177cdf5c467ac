"""Activations that are computed again are the same, and are not kept."""

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
    "migan": migan.Generator(**TINY),
    "comodgan": comodgan.Generator(**TINY, **CODES),
    "migan_discriminator": discriminators.MIGANDiscriminator(**TINY),
    "comodgan_discriminator": discriminators.CoModGANDiscriminator(**TINY),
}
DIFFERENT = "comodgan", "migan_discriminator"  # of each family one


def loss_of(network):
    """Of parameters, stats and inputs; and the network's whole output."""

    def loss(params, rest, *inputs):
        output = network.apply({"params": params, **rest}, *inputs)
        return sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(output)), output

    return loss


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in DIFFERENT else pytest.mark.full)
        for name in NETWORKS
    ],
)
def test_remat_changes_no_number(name, float64):
    network = NETWORKS[name]
    again = network.clone(remat=True)
    assert abstract_variables(again) == abstract_variables(network)
    variables = random_variables(network, dtype=np.float64)
    params = variables.pop("params")
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal((4, *x.shape[1:])) for x in network.inputs()]

    def run(network):
        of = jax.value_and_grad(loss_of(network), has_aux=True)
        return jax.jit(of)(params, variables, *inputs)

    for ours, theirs in zip(
        *map(jax.tree.leaves, (run(again), run(network))), strict=True
    ):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=1e-12 * scale, rtol=1e-10)


def kept(network, capsys):
    """Elements that the forward pass keeps for the backward one, but its arguments."""
    variables = random_variables(network)
    params = variables.pop("params")
    inputs = [np.zeros((4, *x.shape[1:]), x.dtype) for x in network.inputs()]
    capsys.readouterr()
    print_saved_residuals(
        lambda *args: loss_of(network)(*args)[0], params, variables, *inputs
    )
    told = re.findall(r"^\w+\[([\d,]*)\] (?!from)", capsys.readouterr().out, re.M)
    return sum(math.prod(map(int, filter(None, sizes.split(",")))) for sizes in told)


@pytest.mark.parametrize("name", NETWORKS)
def test_remat_keeps_little(name, capsys):
    """Counted before XLA, whose CPU programs do not need less memory for it."""
    network = NETWORKS[name].clone(resolution=32, channel_base=256)
    everything = kept(network, capsys)
    assert 0 < kept(network.clone(remat=True), capsys) < everything / 5
