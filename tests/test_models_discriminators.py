"""Discriminators: sizes, minibatch groups, precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import TINY, randomised, relative_l2

from migan_jax.models.discriminators import CoModGANDiscriminator, MIGANDiscriminator
from migan_jax.models.layers import Reparam

KINDS = {"migan": MIGANDiscriminator, "comodgan": CoModGANDiscriminator}
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)


def images(count, seed=0, size=8):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, size, size, 4)).astype(np.float32)


def variable_shapes(network):
    """Shapes of its variables."""
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
    variables = variable_shapes(network)
    assert variables.keys() == {"params"}
    leaves = jax.tree.leaves(variables)
    assert sum(leaf.size for leaf in leaves) == count
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


@ALL_KINDS
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 12])
def test_one_logit_per_image(kind, batch):
    network = KINDS[kind](resolution=32, channel_base=256, channel_max=16)
    x = jax.ShapeDtypeStruct((batch, 32, 32, 4), jnp.float32)
    logits = jax.eval_shape(network.apply, variable_shapes(network), x)
    assert logits.shape == (batch, 1)
    assert logits.dtype == jnp.float32


@ALL_KINDS
def test_batch_that_does_not_split_into_groups_raises(kind):
    network, variables = randomised(KINDS[kind](**TINY))
    with pytest.raises(ValueError, match=r"\b6\b.*\b4\b"):
        jax.eval_shape(network.apply, variables, images(6))


@ALL_KINDS
@pytest.mark.parametrize("shape", [(4, 16, 16, 4), (4, 8, 4, 4), (4, 8, 8, 3)])
def test_wrong_sizes_raise(kind, shape):
    network, variables = randomised(KINDS[kind](**TINY))
    with pytest.raises(ValueError) as error:
        jax.eval_shape(network.apply, variables, np.zeros(shape, np.float32))
    assert "[N, 8, 8, 4]" in str(error.value)
    assert str(shape) in str(error.value)


@ALL_KINDS
def test_an_image_affects_only_its_group(kind):
    """With eight images, the group is those of the same parity."""
    network, variables = randomised(KINDS[kind](**TINY))
    x = images(8)
    changed = x.copy()
    changed[5] = 3 * images(1, seed=1)[0]
    before, after = (runner(network)(variables, a) for a in (x, changed))
    affected = np.flatnonzero(np.ravel(before != after))
    np.testing.assert_array_equal(affected, [1, 3, 5, 7])


@ALL_KINDS
def test_order_within_a_group_does_not_matter(kind):
    network, variables = randomised(KINDS[kind](**TINY))
    x = images(8)
    order = [6, 7, 2, 3, 0, 1, 4, 5]
    logits = np.asarray(runner(network)(variables, x))
    assert len(np.unique(logits)) == 8
    np.testing.assert_allclose(
        runner(network)(variables, x[order]), logits[order], rtol=1e-4, atol=1e-5
    )


@ALL_KINDS
def test_half_precision(kind):
    network, variables = randomised(KINDS[kind](**TINY))
    half = network.clone(dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(variable_shapes(half))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    x = images(8)

    logits = runner(half)(variables, x)

    assert logits.dtype == jnp.float32
    assert 1e-4 < relative_l2(logits, runner(network)(variables, x)) < 0.05


@ALL_KINDS
def test_input_gradient_in_half_precision(kind):
    """R1's gradient has the input's float32 and is close to full precision."""
    network, variables = randomised(KINDS[kind](**TINY))
    half = network.clone(dtype=jnp.bfloat16)
    x = images(8)

    gradient = jax.jit(jax.grad(lambda x: jnp.sum(half.apply(variables, x))))(x)

    assert gradient.dtype == jnp.float32
    direction = gradient / np.linalg.norm(gradient)
    ahead, behind = (
        jnp.sum(runner(network)(variables, x + step * direction))
        for step in (1e-2, -1e-2)
    )
    slope = (ahead - behind) / 2e-2
    np.testing.assert_allclose(slope, np.linalg.norm(gradient), rtol=0.03)
