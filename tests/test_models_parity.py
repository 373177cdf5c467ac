"""Flax against the PyTorch twins: values, first and second derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from parity import (  # noqa: E402
    by_name,
    flax_of,
    inputs_like,
    nhwc,
    randomise,
)
from variables import CODES, NARROW, relative_l2  # noqa: E402

from migan_jax.twins import comodgan, migan  # noqa: E402
from migan_jax.twins.discriminators import (  # noqa: E402
    TorchCoModGANDiscriminator,
    TorchMIGANDiscriminator,
)

pytestmark = pytest.mark.torch

BATCH = 8
# Scales of the inputs; with the second, activations reach the clamp at 256.
SCALES = 1.0, 3000.0

# Fused networks are not trained; test_weights_kernel_forms.py checks their outputs.
GENERATORS = {
    "migan_fused": lambda: migan.TorchMIGANGenerator(**NARROW),
    "migan_3_kernels": lambda: migan.TorchMIGANGenerator(**NARROW, num_kernels=3),
    "comodgan": lambda: comodgan.TorchCoModGANGenerator(**NARROW, **CODES),
}
DISCRIMINATORS = {
    "migan": lambda: TorchMIGANDiscriminator(**NARROW, num_kernels=3),
    "comodgan": lambda: TorchCoModGANDiscriminator(**NARROW),
}


def generator_inputs(twin, dtype, scale):
    """Inputs of a generator for both sides: x and, for Co-Mod-GAN, z."""
    size = NARROW["resolution"]
    pairs = [inputs_like((BATCH, size, size, 4), dtype, 1, scale)]
    if isinstance(twin, comodgan.TorchCoModGANGenerator):
        pairs.append(inputs_like((BATCH, CODES["z_dim"]), dtype, 2))
    ours, theirs = zip(*pairs, strict=True)
    return ours, theirs


def hits_the_clamp(twin, inputs, monkeypatch):
    """Return whether the clamp changes the output."""
    with torch.no_grad(), monkeypatch.context() as patch:
        clamped = twin(*inputs)
        patch.setattr("migan_jax.twins.layers.ACTIVATION_LIMIT", math.inf)
        return not torch.equal(twin(*inputs), clamped)


def all_outputs(rgb, pyramid):
    return {"rgb": rgb, **{f"y_{r}": y for r, y in pyramid.items()}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if "fused" in name else ())
        for name in GENERATORS
    ],
)
def test_generator_in_float64(name, float64, monkeypatch):
    twin = randomise(GENERATORS[name](), torch.float64)
    checkpoint = flax_of(twin)

    def loss(probes, params, *inputs):
        variables = {"params": params, "stats": checkpoint.stats}
        mine = all_outputs(*checkpoint.network.apply(variables, *inputs))
        return sum(jnp.sum(mine[key] * probes[key]) for key in mine), mine

    inputs, _ = generator_inputs(twin, np.float64, 1)
    argnums = tuple(range(1, 2 + len(inputs)))
    grad = jax.jit(jax.grad(loss, argnums, has_aux=True))
    for scale in SCALES:
        twin.zero_grad()
        inputs, their_inputs = generator_inputs(twin, np.float64, scale)
        outputs = all_outputs(*twin(*their_inputs, pyramid=True))
        assert hits_the_clamp(twin, their_inputs, monkeypatch) == (scale > 1)
        probes = {
            key: np.random.default_rng(7).standard_normal(nhwc(value).shape)
            for key, value in outputs.items()
        }
        (gradient, *of_inputs), mine = grad(probes, checkpoint.params, *inputs)
        sum(
            (value * torch.from_numpy(np.moveaxis(probes[key], -1, 1))).sum()
            for key, value in outputs.items()
        ).backward()

        for key, value in outputs.items():
            assert mine[key].dtype == np.float64
            assert relative_l2(mine[key], nhwc(value)) <= 1e-9, key
        for mine_grad, their_input in zip(of_inputs, their_inputs, strict=True):
            assert relative_l2(mine_grad, nhwc(their_input.grad)) <= 1e-9
        named = by_name(checkpoint.network, gradient)
        expected = {k: p.grad.numpy() for k, p in twin.named_parameters()}
        assert named.keys() == expected.keys()
        for key, value in expected.items():
            assert np.any(value), key
            assert relative_l2(named[key], value) <= 1e-9, key


@pytest.mark.full  # test_systems_parity and test_training_step also cover these
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_and_r1_in_float64(name, float64, monkeypatch):
    twin = randomise(DISCRIMINATORS[name](), torch.float64)
    checkpoint = flax_of(twin)
    probe = np.random.default_rng(7).standard_normal((BATCH, 1))
    parameters = dict(twin.named_parameters())

    def weighted(params, x):
        logits = checkpoint.network.apply({"params": params}, x)
        return jnp.sum(logits * probe), logits

    def penalty(params, x):
        gradient = jax.grad(lambda x: jnp.sum(weighted(params, x)[1]))(x)
        return jnp.mean(jnp.sum(gradient**2, axis=(1, 2, 3)))

    first_order = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))
    second_order = jax.jit(jax.value_and_grad(penalty, (0, 1)))
    for scale in SCALES:
        shape = (BATCH, NARROW["resolution"], NARROW["resolution"], 4)
        x, their_x = inputs_like(shape, np.float64, 1, scale)
        first, logits = first_order(checkpoint.params, x)
        value, second = second_order(checkpoint.params, x)

        their_logits = twin(their_x)
        assert hits_the_clamp(twin, [their_x], monkeypatch) == (scale > 1)
        wrt = [*parameters.values(), their_x]
        their_first = torch.autograd.grad(
            (their_logits * torch.from_numpy(probe)).sum(), wrt, retain_graph=True
        )
        (slope,) = torch.autograd.grad(their_logits.sum(), their_x, create_graph=True)
        their_value = slope.square().sum(dim=(1, 2, 3)).mean()
        their_second = torch.autograd.grad(their_value, wrt, materialize_grads=True)

        assert relative_l2(logits, their_logits.detach().numpy()) <= 1e-9
        assert relative_l2(value, their_value.detach().numpy()) <= 1e-9
        for mine, theirs in ((first, their_first), (second, their_second)):
            named = by_name(checkpoint.network, mine[0])
            assert named.keys() == parameters.keys()
            for key, expected in zip(parameters, theirs, strict=False):
                if np.any(expected.numpy()):
                    assert relative_l2(named[key], expected.numpy()) <= 1e-9, key
                else:
                    assert not np.any(named[key]), key
            if np.any(theirs[-1].numpy()):
                assert relative_l2(mine[1], nhwc(theirs[-1])) <= 1e-9
