"""Discriminators: sizes, batches, precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import TINY, randomised, relative_l2

from migan_jax.models.discriminators import CoModGANDiscriminator, MIGANDiscriminator
from migan_jax.models.layers import Reparam

KINDS = {"migan": MIGANDiscriminator, "comodgan": CoModGANDiscriminator}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def pictures(count, seed=0, size=8):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, size, size, 4)).astype(np.float32)


def shapes_of(network):
    """Its variables, with a batch that nothing refuses."""
    r = network.resolution
    x = jax.ShapeDtypeStruct((4, r, r, 4), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), x)


@functools.cache
def runner(network):
    return jax.jit(network.apply)


@pytest.mark.parametrize(
    "network, count",
    [
        (MIGANDiscriminator(256, reparam=Reparam("expanded")), 39_002_835),
        (MIGANDiscriminator(512, reparam=Reparam("expanded")), 39_195_283),
        (CoModGANDiscriminator(256), 28_864_257),
        (CoModGANDiscriminator(256, channel_base=16384), 24_001_153),
    ],
    ids=["migan-256", "migan-512", "comodgan-256", "comodgan-256-half-base"],
)
def test_parameter_counts(network, count):
    variables = shapes_of(network)
    assert variables.keys() == {"params"}
    leaves = jax.tree.leaves(variables)
    assert sum(leaf.size for leaf in leaves) == count
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


@EVERY_KIND
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 12])
def test_one_logit_per_picture(kind, batch):
    network = KINDS[kind](resolution=32, channel_base=256, channel_max=16)
    x = jax.ShapeDtypeStruct((batch, 32, 32, 4), jnp.float32)
    logits = jax.eval_shape(network.apply, shapes_of(network), x)
    assert logits.shape == (batch, 1)
    assert logits.dtype == jnp.float32


@EVERY_KIND
def test_batch_that_cannot_be_split_is_named(kind):
    network, variables = randomised(KINDS[kind](**TINY))
    with pytest.raises(ValueError, match=r"batch of 6 .* multiple of 4"):
        jax.eval_shape(network.apply, variables, pictures(6))


@EVERY_KIND
@pytest.mark.parametrize("shape", [(4, 16, 16, 4), (4, 8, 4, 4), (4, 8, 8, 3)])
def test_wrong_sizes_are_named(kind, shape):
    network, variables = randomised(KINDS[kind](**TINY))
    with pytest.raises(ValueError) as error:
        jax.eval_shape(network.apply, variables, np.zeros(shape, np.float32))
    assert "takes [N, 8, 8, 4]" in str(error.value)
    assert f"not {shape}" in str(error.value)


@EVERY_KIND
def test_a_picture_is_compared_with_its_group_alone(kind):
    """Of eight, those with the same parity: nothing else may change."""
    network, variables = randomised(KINDS[kind](**TINY))
    x = pictures(8)
    changed = x.copy()
    changed[5] = 3 * pictures(1, seed=1)[0]
    before, after = (runner(network)(variables, a) for a in (x, changed))
    moved = np.flatnonzero(np.ravel(before != after))
    np.testing.assert_array_equal(moved, [1, 3, 5, 7])


@EVERY_KIND
def test_order_within_a_group_does_not_matter(kind):
    network, variables = randomised(KINDS[kind](**TINY))
    x = pictures(8)
    order = [6, 7, 2, 3, 0, 1, 4, 5]
    logits = np.asarray(runner(network)(variables, x))
    assert len(np.unique(logits)) == 8
    np.testing.assert_allclose(
        runner(network)(variables, x[order]), logits[order], rtol=1e-4, atol=1e-5
    )


@EVERY_KIND
def test_half_precision(kind):
    network, variables = randomised(KINDS[kind](**TINY))
    half = network.clone(dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(shapes_of(half))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    x = pictures(8)

    logits = runner(half)(variables, x)

    assert logits.dtype == jnp.float32
    assert 1e-4 < relative_l2(logits, runner(network)(variables, x)) < 0.05


@EVERY_KIND
def test_input_gradient_in_half_precision(kind):
    """What R1 penalises: float32 like the input, and close to full precision."""
    network, variables = randomised(KINDS[kind](**TINY))
    half = network.clone(dtype=jnp.bfloat16)
    x = pictures(8)

    gradient = jax.jit(jax.grad(lambda x: jnp.sum(half.apply(variables, x))))(x)

    assert gradient.dtype == jnp.float32
    direction = gradient / np.linalg.norm(gradient)
    ahead, behind = (
        jnp.sum(runner(network)(variables, x + step * direction))
        for step in (1e-2, -1e-2)
    )
    slope = (ahead - behind) / 2e-2
    np.testing.assert_allclose(slope, np.linalg.norm(gradient), rtol=0.03)
