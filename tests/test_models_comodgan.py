"""Co-Mod-GAN's generator: styles, truncation, mixing, dropout, noise, precision."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import CODES, TINY, randomised, relative_l2

from migan_jax.models.comodgan import CoModGANGenerator, EncoderTop
from migan_jax.ops.resample import upsample2x

NETWORK = CoModGANGenerator(**TINY, **CODES)


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 8, 8, 4)).astype(np.float32)


def latents(count, seed=0):
    rng = np.random.default_rng(100 + seed)
    return rng.standard_normal((count, CODES["z_dim"])).astype(np.float32)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def draw_noise(network, seed):
    rng = np.random.default_rng(200 + seed)
    shapes = network.noise_shapes(8, 8)
    return {
        name: rng.standard_normal((2, *size, 1)).astype(np.float32)
        for name, size in shapes.items()
    }


def variable_shapes(network):
    r = network.resolution
    x = jax.ShapeDtypeStruct((2, r, r, 4), jnp.float32)
    z = jax.ShapeDtypeStruct((2, network.z_dim), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), x, z)


@functools.partial(jax.jit, static_argnames=("network", "truncation", "kind"))
def run(network, variables, x, z, kind="stored", noise=None, **kwargs):
    noise = kind if noise is None else noise
    return network.apply(variables, x, z, noise=noise, **kwargs)


# Styles are normalised over the whole batch. Demodulation cancels this except for its
# epsilon, so results in other batches agree only approximately.
CLOSE = dict(rtol=1e-4, atol=1e-4)


def test_parameter_counts():
    for resolution, count in ((256, 79_177_378), (512, 79_792_231)):
        leaves = jax.tree.leaves(
            variable_shapes(CoModGANGenerator(resolution))["params"]
        )
        assert sum(leaf.size for leaf in leaves) == count
        assert all(leaf.dtype == jnp.float32 for leaf in leaves)


def test_num_ws():
    assert CoModGANGenerator(256).num_ws == 14
    assert CoModGANGenerator(512).num_ws == 16
    assert randomised(NETWORK)[0].num_ws == 4


def test_output_and_pyramid_shapes():
    network = CoModGANGenerator(resolution=32, channel_base=256, channel_max=8, **CODES)
    x = jax.ShapeDtypeStruct((3, 32, 32, 4), jnp.float32)
    z = jax.ShapeDtypeStruct((3, CODES["z_dim"]), jnp.float32)
    (rgb, pyramid), _ = jax.eval_shape(
        network.init_with_output, jax.random.key(0), x, z
    )
    assert rgb.shape == (3, 32, 32, 3)
    shapes = {r: y.shape for r, y in pyramid.items()}
    assert shapes == {r: (3, r, r, 3) for r in (4, 8, 16, 32)}


@pytest.mark.parametrize("h, w", [(16, 16), (8, 16), (4, 8)])
def test_wrong_sizes_raise(h, w):
    network, variables = randomised(NETWORK)
    with pytest.raises(ValueError, match=f"takes 8x8 images, not {h}x{w}"):
        jax.eval_shape(
            network.apply, variables, np.zeros((1, h, w, 4), np.float32), latents(1)
        )
    with pytest.raises(ValueError, match=f"takes 8x8 images, not {h}x{w}"):
        network.noise_shapes(h, w)


def test_image_is_the_sum_of_its_levels():
    network, variables = randomised(NETWORK)
    rgb, pyramid = run(network, variables, images(2), latents(2))
    assert all(np.any(y) for y in pyramid.values())
    total = upsample2x(pyramid[4]) + pyramid[8]
    np.testing.assert_allclose(rgb, total, atol=1e-5)


# Styles.


def reference_styles(variables, z):
    """The mapping network in NumPy, in float64."""
    w = np.asarray(z, np.float64)
    w = w / np.sqrt(np.mean(w**2, axis=1, keepdims=True) + 1e-8)
    for index in range(8):
        layer = variables["params"]["mapping"][f"fc{index}"]
        weight, bias = (np.asarray(layer[k], np.float64) for k in ("weight", "bias"))
        w = w @ (weight * 0.01 / math.sqrt(len(weight))) + bias * 0.01
        w = np.clip(np.where(w > 0, w, 0.2 * w) * math.sqrt(2), -256, 256)
    return w


def test_output_depends_on_the_direction_of_z_only():
    network, variables = randomised(NETWORK)
    x, z = images(2), latents(2)
    rgb, _ = run(network, variables, x, z)
    other, _ = run(network, variables, x, latents(2, seed=1))
    scaled, _ = run(network, variables, x, 5 * z)
    assert relative_l2(other, rgb) > 1e-2
    np.testing.assert_allclose(scaled, rgb, **CLOSE)


def with_average(variables, average):
    stats = variables["stats"]
    mapping = {**stats["mapping"], "w_avg": jnp.asarray(average, jnp.float32)}
    return {**variables, "stats": {**stats, "mapping": mapping}}


def test_truncation_of_zero_ignores_the_latent():
    network, variables = randomised(NETWORK)
    x = images(2)
    one, _ = run(network, variables, x, latents(2), truncation=0)
    other, _ = run(network, variables, x, latents(2, seed=1), truncation=0)
    np.testing.assert_allclose(one, other, atol=1e-5)
    moved = with_average(variables, np.linspace(-1, 1, 10))
    elsewhere, _ = run(network, moved, x, latents(2), truncation=0)
    assert relative_l2(elsewhere, one) > 1e-2


def test_truncation_of_one_ignores_the_average():
    network, variables = randomised(NETWORK)
    x, z = images(2), latents(2)
    moved = with_average(variables, np.full(10, 100.0))
    rgb, _ = run(network, variables, x, z)
    np.testing.assert_array_equal(run(network, moved, x, z)[0], rgb)
    np.testing.assert_array_equal(run(network, variables, x, z, truncation=1)[0], rgb)


def test_truncation_moves_styles_in_proportion():
    """With the average at the latent's style, truncation has no effect."""
    network, variables = randomised(NETWORK)
    x, z = images(2), np.repeat(latents(1), 2, axis=0)
    rgb, _ = run(network, variables, x, z)
    same_average = with_average(variables, reference_styles(variables, z)[0])
    np.testing.assert_allclose(
        run(network, same_average, x, z, truncation=0.5)[0], rgb, **CLOSE
    )
    # With the average at 2 t - w, truncating w by half gives t.
    w, target = reference_styles(variables, z)[0], np.linspace(-1, 1, 10)
    half_way, _ = run(
        network, with_average(variables, 2 * target - w), x, z, truncation=0.5
    )
    there, _ = run(network, with_average(variables, target), x, z, truncation=0)
    np.testing.assert_allclose(half_way, there, **CLOSE)
    assert relative_l2(half_way, rgb) > 1e-2


def test_mixing():
    """Styles from index `first_index` come from the second latent, per sample."""
    network, variables = randomised(NETWORK)
    x, z, second = images(3), latents(3), latents(3, seed=1)
    first, first_levels = run(network, variables, x, z)
    other, other_levels = run(network, variables, x, second)

    def mixed(*first_index):
        mixing = (second, np.array(first_index))
        return run(network, variables, x, z, mixing=mixing)

    np.testing.assert_allclose(mixed(4, 5, 99)[0], first, **CLOSE)
    np.testing.assert_allclose(mixed(0, 0, 0)[0], other, **CLOSE)

    rgb, levels = mixed(4, 0, 2)
    np.testing.assert_allclose(rgb[0], first[0], **CLOSE)
    np.testing.assert_allclose(rgb[1], other[1], **CLOSE)
    # The lowest level uses styles 0 and 1, the next 1 (again), 2 and 3.
    np.testing.assert_allclose(levels[4][2], first_levels[4][2], **CLOSE)
    for unmixed in (first_levels, other_levels):
        assert relative_l2(levels[8][2], unmixed[8][2]) > 1e-2

    _, early = mixed(1, 1, 1)
    assert relative_l2(early[4], first_levels[4]) > 1e-2
    assert relative_l2(early[4], other_levels[4]) > 1e-2
    _, late = mixed(3, 3, 3)
    np.testing.assert_allclose(late[4], first_levels[4], **CLOSE)
    assert relative_l2(late[8], first_levels[8]) > 1e-2


@functools.partial(jax.jit, static_argnames="network")
def train(network, variables, x, z, mixing):
    (rgb, _), updates = network.apply(
        variables, x, z, mixing=mixing, truncation=1.0, mutable="stats"
    )
    return rgb, updates["stats"]


def test_average_style_is_updated_in_training_only():
    network, variables = randomised(NETWORK)
    x, z, second = images(3), latents(3), latents(3, seed=1)
    before = np.asarray(variables["stats"]["mapping"]["w_avg"], np.float64)

    # Every style comes from the second latents, but these do not update the average.
    rgb, stats = train(network, variables, x, z, (second, np.zeros(3, int)))

    mean = np.mean(reference_styles(variables, z), axis=0)
    after = stats["mapping"]["w_avg"]
    assert after.dtype == jnp.float32
    np.testing.assert_allclose(after, 0.995 * before + 0.005 * mean, rtol=1e-4)
    assert np.abs(after - before).max() > 1e-3
    other = {**stats, "mapping": variables["stats"]["mapping"]}
    jax.tree.map(np.testing.assert_array_equal, other, variables["stats"])
    np.testing.assert_allclose(rgb, run(network, variables, x, second)[0], **CLOSE)


# Dropout.


def test_dropout_drops_half_of_the_features_by_sample_key():
    module = EncoderTop(style_dim=400)
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 2)).astype(np.float32)
    init = jax.jit(lambda x: module.init_with_output(jax.random.key(0), x, None))
    (feature, style), variables = init(x)
    apply = jax.jit(module.apply)

    dropped_feature, dropped = apply(variables, x, keys(3))

    np.testing.assert_allclose(dropped_feature, feature, rtol=1e-5, atol=1e-6)
    kept = np.asarray(dropped != 0)
    np.testing.assert_allclose(
        dropped, np.where(kept, 2 * style, 0), rtol=1e-5, atol=1e-6
    )
    assert np.all(np.abs(kept.mean(axis=1) - 0.5) < 0.1)
    for i in range(3):
        assert 100 < np.sum(kept[i] != kept[i - 1]) < 300
        _, alone = apply(variables, x[i : i + 1], keys(3)[i : i + 1])
        np.testing.assert_array_equal(alone[0] != 0, kept[i])


def test_dropout_of_the_generator():
    network, variables = randomised(NETWORK)
    x, z = images(2), latents(2)
    evaluated, _ = run(network, variables, x, z)
    first, _ = run(network, variables, x, z, dropout_keys=keys(2))
    again, _ = run(network, variables, x, z, dropout_keys=keys(2))
    np.testing.assert_array_equal(first, again)
    assert relative_l2(first, evaluated) > 1e-2
    # A new key for the second sample does not change the first one.
    mixed = jnp.stack([keys(2)[0], keys(2, seed=1)[1]])
    other, _ = run(network, variables, x, z, dropout_keys=mixed)
    np.testing.assert_allclose(other[0], first[0], **CLOSE)
    assert relative_l2(other[1], first[1]) > 1e-2


# Noise.


def test_noise_shapes():
    network = CoModGANGenerator(resolution=16, channel_base=256, channel_max=8)
    assert network.noise_shapes(16, 16) == {
        "b4/conv": (4, 4),
        "b8/conv0": (8, 8),
        "b8/conv1": (8, 8),
        "b16/conv0": (16, 16),
        "b16/conv1": (16, 16),
    }


def test_kinds_of_noise():
    network, variables = randomised(NETWORK)
    x, z = images(2), latents(2)
    drawn = draw_noise(network, seed=0)
    inputs = (network, variables, x, z)
    outputs = [
        run(*inputs)[0],
        run(*inputs, kind="none")[0],
        run(*inputs, noise=drawn)[0],
        run(*inputs, noise=draw_noise(network, seed=1))[0],
    ]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert relative_l2(one, other) > 1e-2
    again, _ = run(*inputs, noise=draw_noise(network, seed=0))
    np.testing.assert_array_equal(again, outputs[2])
    for name in drawn:
        changed, _ = run(*inputs, noise={**drawn, name: -drawn[name]})
        assert relative_l2(changed, outputs[2]) > 1e-3, name
    # The stored values passed as a dict give the same output.
    stored = {
        f"b{r}/{layer}": jnp.tile(
            variables["stats"]["synthesis"][f"b{r}"][layer]["noise"]["noise"], (2, 1, 1)
        ).reshape(2, r, r, 1)
        for r, layer in ((4, "conv"), (8, "conv0"), (8, "conv1"))
    }
    np.testing.assert_allclose(run(*inputs, noise=stored)[0], outputs[0], atol=1e-5)


# Precision.


def test_half_precision():
    network, variables = randomised(NETWORK)
    half = network.clone(dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(variable_shapes(half))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    x, z = images(2), latents(2)

    rgb, pyramid = run(half, variables, x, z)

    exact, exact_pyramid = run(network, variables, x, z)
    assert rgb.dtype == jnp.float32
    assert 1e-4 < relative_l2(rgb, exact) < 0.05
    for r, y in exact_pyramid.items():
        assert pyramid[r].dtype == jnp.float32
        assert relative_l2(pyramid[r], y) < 0.05
