"""Noise: drawn per sample, or stored and tiled to the image size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from migan_jax.models.layers import NoiseInjection
from migan_jax.models.noise import layer_noise, random_noise, tile_noise

SHAPES = {"b8/conv1": (8, 8), "b8/conv2": (8, 8), "b16/conv1": (16, 20)}


@jax.jit
def draw(keys):
    return random_noise(keys, SHAPES)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_random_noise_has_one_channel_per_layer():
    noise = draw(keys(2))
    shapes = {name: value.shape for name, value in noise.items()}
    assert shapes == {name: (2, h, w, 1) for name, (h, w) in SHAPES.items()}
    assert all(value.dtype == jnp.float32 for value in noise.values())


def test_random_noise_does_not_depend_on_how_a_batch_is_split():
    whole = draw(keys(2))
    halves = [draw(keys(2)[:1]), draw(keys(2)[1:])]
    for name, value in whole.items():
        joined = np.concatenate([half[name] for half in halves])
        np.testing.assert_array_equal(value, joined)


def test_random_noise_differs_by_key_and_by_layer():
    noise = draw(keys(2))
    samples = [noise[name][n] for name in ("b8/conv1", "b8/conv2") for n in range(2)]
    samples.append(draw(keys(2, seed=1))["b8/conv1"][0])
    correlations = np.corrcoef(np.reshape(samples, (5, 64)))
    off_diagonal = correlations[~np.eye(5, dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.5


def test_random_noise_is_standard_normal():
    noise = [draw(keys(2, seed))["b16/conv1"] for seed in range(10)]
    assert abs(np.mean(noise)) < 0.04
    assert abs(np.std(noise) - 1) < 0.04


@pytest.mark.parametrize(
    "size", [(4, 4), (2, 3), (1, 1), (8, 8), (9, 4), (3, 11), (16, 6)]
)
def test_tile_noise_repeats_from_the_top_left_corner(size):
    stored = np.arange(16.0, dtype=np.float32).reshape(4, 4)
    expected = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            expected[i, j] = stored[i % 4, j % 4]
    np.testing.assert_array_equal(tile_noise(stored, *size), expected)


def test_layer_noise():
    noise = draw(keys(2))
    assert layer_noise("stored", "b8/conv1") == "stored"
    assert layer_noise("none", "b8/conv1") == "none"
    assert layer_noise(noise, "b8/conv1") is noise["b8/conv1"]


@pytest.fixture(scope="module")
def layer():
    """A noise layer of nominal resolution 4, and its variables with strength 2."""
    module = NoiseInjection(4)
    x = jnp.zeros((1, 4, 4, 3))
    variables = module.init(jax.random.key(0), x, "stored")
    return module, {**variables, "params": {"strength": jnp.float32(2)}}


def test_strength_is_initially_zero():
    variables = NoiseInjection(4).init(
        jax.random.key(0), jnp.zeros((1, 4, 4, 1)), "none"
    )
    np.testing.assert_array_equal(variables["params"]["strength"], 0)


@pytest.mark.parametrize("size", [(4, 4), (2, 2), (8, 8), (6, 3), (4, 10)])
def test_stored_noise_on_any_size(size, layer):
    module, variables = layer
    stored = variables["stats"]["noise"]
    assert stored.shape == (4, 4)
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)

    y = module.apply(variables, x, "stored")

    added = 2 * np.asarray(tile_noise(stored, *size))[None, :, :, None]
    np.testing.assert_allclose(y, x + added, rtol=1e-6, atol=1e-6)


def test_given_noise_is_added_to_all_channels(layer):
    module, variables = layer
    noise = draw(keys(2))["b16/conv1"]
    y = module.apply(variables, jnp.zeros((2, 16, 20, 3)), noise)
    np.testing.assert_array_equal(y, 2 * np.repeat(noise, 3, axis=-1))


def test_no_noise(layer):
    module, variables = layer
    x = jnp.ones((2, 5, 6, 3))
    np.testing.assert_array_equal(module.apply(variables, x, "none"), x)


@pytest.mark.parametrize("mode", ["stored", "given"])
def test_noise_keeps_half_precision(mode, layer):
    module, variables = layer
    x = jnp.ones((1, 4, 4, 3), jnp.bfloat16)
    noise = "stored" if mode == "stored" else jnp.ones((1, 4, 4, 1))
    assert module.apply(variables, x, noise).dtype == jnp.bfloat16


def test_gradient_of_the_strength(layer):
    module, variables = layer
    noise = draw(keys(2))["b8/conv1"]
    x = jnp.zeros((2, 8, 8, 3))

    def total(strength):
        changed = {**variables, "params": {"strength": strength}}
        return jnp.sum(module.apply(changed, x, noise))

    gradient = jax.grad(total)(jnp.float32(0))
    np.testing.assert_allclose(gradient, 3 * np.sum(noise), rtol=1e-5)


def test_initialising_without_noise_still_stores_it():
    variables = NoiseInjection(4).init(
        jax.random.key(0), jnp.zeros((1, 2, 2, 1)), "none"
    )
    assert variables["stats"]["noise"].shape == (4, 4)
    assert np.std(variables["stats"]["noise"]) > 0.3
