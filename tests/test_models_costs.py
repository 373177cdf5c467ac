"""Multiply-adds against the papers' numbers and a profiler on the PyTorch twin."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from variables import CODES, NARROW

from migan_jax.models import comodgan, migan
from migan_jax.models.costs import Cost, block_of, count
from migan_jax.models.discriminators import CoModGANDiscriminator, MIGANDiscriminator
from migan_jax.models.layers import Reparam


def inputs_of(network, size=None):
    size = size or (network.resolution, network.resolution)
    inputs = [jax.ShapeDtypeStruct((1, *size, 4), jnp.float32)]
    if isinstance(network, comodgan.CoModGANGenerator):
        inputs.append(jax.ShapeDtypeStruct((1, network.z_dim), jnp.float32))
    return inputs


def total(network, size=None):
    return sum(count(network, *inputs_of(network, size)).values(), Cost())


@pytest.mark.parametrize(
    "resolution, papers", [(256, 11_185_210_880), (512, 15_687_796_224)]
)
def test_migan_as_published(resolution, papers):
    assert total(migan.MIGANGenerator(resolution)).papers_total == papers


@pytest.mark.parametrize("resolution, papers", [(256, 91.21e9), (512, 121.09e9)])
def test_comodgan_as_published(resolution, papers):
    counted = total(comodgan.CoModGANGenerator(resolution)).papers_total
    assert abs(counted - papers) < 0.01 * papers


def test_costs_add_up():
    cost = Cost(1, 2, 3, 4) + Cost(10, 20, 30, 40)
    assert cost == Cost(convolution=11, filter=22, zeros=33, elementwise=44)
    assert cost.papers_total == 110


@pytest.mark.parametrize(
    "path, block",
    [
        (["encoder", "b256", "conv1", "depthwise"], "encoder b256"),
        (["synthesis", "b4"], "synthesis b4"),
        (["mapping", "fc0"], "mapping"),
        (["b8", "skip"], "b8"),
        (["b4", "b2x"], "b4"),
    ],
)
def test_block_of(path, block):
    assert block_of(path) == block


@pytest.mark.parametrize(
    "network, blocks",
    [
        (
            migan.MIGANGenerator(16, 256, 8),
            "encoder b16,encoder b8,encoder b4,synthesis b4,synthesis b8,synthesis b16",
        ),
        (
            comodgan.CoModGANGenerator(16, 256, 8, **CODES),
            "mapping,encoder b16,encoder b8,encoder b4,"
            "synthesis b4,synthesis b8,synthesis b16",
        ),
        (MIGANDiscriminator(16, 256, 8), "b16,b8,b4"),
        (CoModGANDiscriminator(16, 256, 8), "b16,b8,b4"),
    ],
    ids=["migan", "comodgan", "migan_discriminator", "comodgan_discriminator"],
)
def test_blocks_are_those_of_the_parameters(network, blocks):
    inputs = inputs_of(network)
    costs = count(network, *inputs)
    assert costs.keys() == set(blocks.split(","))
    assert all(cost.convolution > 0 for cost in costs.values())
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert costs.keys() == {block_of([part.key for part in path]) for path in paths}


def test_cost_of_the_lowest_encoder_block():
    """4x4 pixels, two separable convolutions of 8 channels, no resampling."""
    cost = count(migan.MIGANGenerator(16, 256, 8), *inputs_of(migan.MIGANGenerator(16)))
    pixels, c = 16, 8
    assert cost["encoder b4"] == Cost(
        convolution=2 * pixels * (9 * c + c * c), elementwise=2 * pixels * 2 * (c + c)
    )


def test_cost_is_proportional_to_the_pixels():
    network = migan.MIGANGenerator(**NARROW)
    assert total(network, (64, 96)) == sum([total(network)] * 24, Cost())


def test_cost_does_not_depend_on_the_kernel_form():
    costs = [
        total(migan.MIGANGenerator(**NARROW, reparam=Reparam(form)))
        for form in ("collapsed", "expanded", "fused")
    ]
    assert costs[0] == costs[1] == costs[2]


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("strength", nn.initializers.ones, (1,) * x.ndim)


class ScaledAndCounted(Scaled):
    @nn.nowrap
    def cost(self, args, out):
        return Cost(elementwise=out.size)


def test_a_layer_with_a_cost_method_is_counted():
    x = jnp.zeros((1, 8, 8, 4))
    assert count(nn.Sequential([ScaledAndCounted(), ScaledAndCounted()]), x) == {
        "layers_0": Cost(elementwise=x.size),
        "layers_1": Cost(elementwise=x.size),
    }


def test_a_layer_with_parameters_needs_a_cost_method():
    with pytest.raises(TypeError, match=r"Scaled .*\(strength\).*cost"):
        count(nn.Sequential([Scaled()]), jnp.zeros((1, 8, 8, 4)))


def is_modulated(name, module):
    return type(module).__name__ == "ModulatedConv" and "torgb" not in name


@pytest.mark.torch
@pytest.mark.parametrize(
    "network",
    [
        migan.MIGANGenerator(**NARROW, reparam=Reparam("fused")),
        migan.MIGANGenerator(**NARROW),
        comodgan.CoModGANGenerator(**NARROW, **CODES),
        MIGANDiscriminator(**NARROW),
        CoModGANDiscriminator(**NARROW),
    ],
    ids=["migan_fused", "migan", "comodgan", "migan_d", "comodgan_d"],
)
def test_against_a_profiler_on_the_twin(network):
    """The profiler does not count elementwise work."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from migan_jax.twins.build import build_twin

    generator = isinstance(network, migan.MIGANGenerator | comodgan.CoModGANGenerator)
    options = {"upsampling": "reference"} if generator else {}
    twin = build_twin(network, **options)
    inputs = [torch.zeros(s.shape) for s in inputs_of(network)]
    inputs[0] = inputs[0].permute(0, 3, 1, 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(*inputs)

    cost = total(network)
    expected = cost.convolution + cost.filter + cost.zeros
    if isinstance(network, comodgan.CoModGANGenerator):
        # The twin computes the norms of modulated kernels with a matrix product.
        weights = [m.weight for n, m in twin.named_modules() if is_modulated(n, m)]
        assert len(weights) == 5
        expected += sum(weight.shape[0] * weight.shape[1] for weight in weights)
    assert counter.get_total_flops() == 2 * expected
