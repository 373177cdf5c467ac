"""Adaptive convolution: the golden arrays, its special cases, derivatives, devices."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from migan_jax.ops.adaptive_conv import adaptive_conv
from migan_jax.ops.depthwise import depthwise
from migan_jax.ops.partition import split_images
from migan_jax.training.mesh import make_mesh

GOLDEN = np.load(Path(__file__).parent / "golden" / "distillation_ops.npz")
SHAPE = 2, 7, 6, 3
CENTRE = np.zeros((1, 1, 1, 9))
CENTRE[..., 4] = 1


def draw(seed=0, shape=SHAPE, taps=9):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    weights = rng.standard_normal((*shape[:3], taps))
    return x, weights, 1.5 * rng.standard_normal((*shape[:3], 2 * taps))


def compute(*arrays):
    return np.asarray(jax.jit(adaptive_conv)(*map(jnp.asarray, arrays)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["ada3", "ada5"])
def test_equals_the_golden_arrays(name):
    x, weights, offsets, y, plain = (
        GOLDEN[f"{name}/{key}"] for key in ("x", "V", "offset", "y", "y_zero_offset")
    )
    np.testing.assert_allclose(compute(x, weights, offsets), y, atol=1e-12)
    np.testing.assert_allclose(compute(x, weights, 0 * offsets), plain, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_constant_weights_make_a_depthwise_convolution():
    x, weights, offsets = draw()
    weights = np.broadcast_to(weights[:1, :1, :1], weights.shape)
    kernel = np.broadcast_to(weights[0, 0, 0].reshape(3, 3, 1, 1), (3, 3, 1, 3))
    expected = jax.jit(depthwise)(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(compute(x, weights, 0 * offsets), expected, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_whole_offsets_shift_and_the_centre_is_the_identity():
    x, _, offsets = draw()
    centre = np.broadcast_to(CENTRE, (*SHAPE[:3], 9))
    np.testing.assert_array_equal(compute(x, centre, 0 * offsets), x)
    moved = np.zeros_like(offsets)
    moved[..., ::2], moved[..., 1::2] = 2, -1  # down and left
    expected = np.zeros_like(x)
    expected[:, :-2, 1:] = x[:, 2:, :-1]
    np.testing.assert_allclose(compute(x, centre, moved), expected, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_channels_are_alike():
    x, weights, offsets = draw()
    order = [2, 0, 1]
    np.testing.assert_allclose(
        compute(x[..., order], weights, offsets),
        compute(x, weights, offsets)[..., order],
        atol=1e-12,
    )


@pytest.mark.usefixtures("float64")
def test_derivatives_equal_finite_differences_twice():
    """The hypergradient needs second derivatives."""
    arrays = [jnp.asarray(a) for a in draw(shape=(1, 4, 4, 2))]
    directions = [jnp.asarray(a) for a in draw(seed=1, shape=(1, 4, 4, 2))]

    def value(step):
        moved = [a + step * d for a, d in zip(arrays, directions, strict=True)]
        return jnp.sum(jnp.sin(adaptive_conv(*moved)))

    def slope(step):
        return jax.grad(value)(step)

    h = 1e-6
    first = (jax.jit(value)(h) - jax.jit(value)(-h)) / (2 * h)
    second = (jax.jit(slope)(h) - jax.jit(slope)(-h)) / (2 * h)
    assert float(jax.jit(slope)(0.0)) == pytest.approx(float(first), rel=1e-6)
    curvature = jax.jit(jax.grad(slope))(0.0)
    assert float(curvature) == pytest.approx(float(second), rel=1e-6)


def test_half_precision_tells_far_positions_apart():
    """bfloat16 has no whole numbers above 256 that are odd."""
    x = jnp.arange(300, dtype=jnp.float32).reshape(1, 1, 300, 1).astype(jnp.bfloat16)
    centre = jnp.broadcast_to(jnp.asarray(CENTRE, jnp.bfloat16), (1, 1, 300, 9))
    y = jax.jit(adaptive_conv)(x, centre, jnp.zeros((1, 1, 300, 18), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, x)


@pytest.mark.usefixtures("float64")
def test_devices_that_share_images_get_the_same():
    arrays = [jnp.asarray(a) for a in draw(shape=(2, 32, 4, 3))]

    def loss(*arrays):
        y = adaptive_conv(*map(split_images, arrays))
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    expected = run(*arrays)
    with jax.set_mesh(make_mesh(4, {"": (2, 32)}, 1, 1)):
        sharded = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), sharded, expected
    )
