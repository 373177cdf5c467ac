"""MI-GAN's generator: sizes, noise, precision, kernel forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import TINY, randomised, relative_l2

from migan_jax.models.layers import Reparam
from migan_jax.models.migan import MIGANGenerator
from migan_jax.models.noise import random_noise
from migan_jax.ops.resample import upsample2x

NETWORK = MIGANGenerator(**TINY)


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def runner(network, noise=None):
    """A compiled forward pass; with `noise` None, noise is an argument."""
    if noise is None:
        return jax.jit(network.apply)
    return jax.jit(functools.partial(network.apply, noise=noise))


# Sizes.


@pytest.mark.parametrize(
    "resolution, form, count",
    [
        (256, "collapsed", 5_865_505),
        (512, "collapsed", 5_893_158),
        (256, "fused", 5_865_505),
        (256, "expanded", 52_686_881),
        (512, "expanded", 52_935_718),
    ],
)
def test_parameter_counts(resolution, form, count):
    network = MIGANGenerator(resolution, reparam=Reparam(form))
    x = jax.ShapeDtypeStruct((1, resolution, resolution, 4), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == count
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (192, 80)])
def test_output_and_pyramid_shapes(size):
    network = MIGANGenerator(resolution=64, channel_base=256, channel_max=8)
    h, w = size
    x = jax.ShapeDtypeStruct((3, h, w, 4), jnp.float32)
    (rgb, pyramid), _ = jax.eval_shape(network.init_with_output, jax.random.key(0), x)
    assert rgb.shape == (3, h, w, 3)
    shapes = {r: y.shape for r, y in pyramid.items()}
    assert shapes == {r: (3, h * r // 64, w * r // 64, 3) for r in (4, 8, 16, 32, 64)}


@pytest.mark.parametrize("size", [(6, 14)])
def test_runs_on_other_sizes(size):
    network, variables = randomised(NETWORK)
    x = random_image(2, *size, 4)
    rgb, _ = runner(network, "stored")(variables, x)
    assert rgb.shape == (2, *size, 3)
    assert np.all(np.isfinite(rgb))


@pytest.mark.parametrize(
    "shape", [(1, 18, 16, 4), (1, 16, 22, 4), (1, 16, 16, 3), (2, 2, 2, 4)]
)
def test_wrong_sizes_raise(shape):
    network, variables = randomised(NETWORK.clone(resolution=16))
    with pytest.raises(ValueError) as error:
        network.apply(variables, np.zeros(shape, np.float32))
    assert str(shape) in str(error.value)
    assert "by 4" in str(error.value)


@pytest.mark.parametrize("resolution", [4, 6, 24])
def test_wrong_resolutions_raise(resolution):
    network = MIGANGenerator(resolution=resolution, channel_base=256, channel_max=8)
    x = np.zeros((1, 240, 240, 4), np.float32)
    with pytest.raises(ValueError, match=rf"resolution .*\b{resolution}\b"):
        jax.eval_shape(network.init, jax.random.key(0), x)


def test_noise_shapes_follow_the_image():
    network = MIGANGenerator(resolution=32, channel_base=256, channel_max=8)
    assert network.stride == 8
    assert network.noise_shapes(64, 48) == {
        "b8/conv1": (16, 12),
        "b8/conv2": (16, 12),
        "b16/conv1": (32, 24),
        "b16/conv2": (32, 24),
        "b32/conv1": (64, 48),
        "b32/conv2": (64, 48),
    }


# Noise.


@functools.partial(jax.jit, static_argnums=0)
def draw_noise(network, seed):
    """Draw noise for two images of 16 x 16 pixels."""
    keys = jax.random.split(jax.random.key(seed), 2)
    return random_noise(keys, network.noise_shapes(16, 16))


def test_noise_has_no_effect_before_training():
    network, variables = randomised(NETWORK)
    x = random_image(2, 16, 16, 4)
    # Strengths are initially zero (test_models_noise.py).
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].key == "strength" else leaf, variables
    )
    none, _ = runner(network, "none")(variables, x)
    stored, _ = runner(network, "stored")(variables, x)
    drawn, _ = runner(network)(variables, x, noise=draw_noise(network, 0))
    np.testing.assert_allclose(stored, none, atol=1e-5)
    np.testing.assert_allclose(drawn, none, atol=1e-5)


def test_kinds_of_noise_differ_with_nonzero_strengths():
    network, variables = randomised(NETWORK)
    x = random_image(2, 16, 16, 4)
    outputs = [
        runner(network, "none")(variables, x)[0],
        runner(network, "stored")(variables, x)[0],
        *[
            runner(network)(variables, x, noise=draw_noise(network, seed))[0]
            for seed in (0, 1)
        ],
    ]
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert relative_l2(one, other) > 1e-2
    again, _ = runner(network)(variables, x, noise=draw_noise(network, 0))
    np.testing.assert_array_equal(again, outputs[2])
    stored, _ = network.apply(variables, x)
    np.testing.assert_allclose(stored, outputs[1], atol=1e-5)


def test_every_noise_layer_has_an_effect():
    network, variables = randomised(NETWORK)
    x = random_image(2, 16, 16, 4)
    noise = draw_noise(network, 0)
    reference, _ = runner(network)(variables, x, noise=noise)
    for name in noise:
        changed = {**noise, name: -noise[name]}
        rgb, _ = runner(network)(variables, x, noise=changed)
        assert relative_l2(rgb, reference) > 1e-4, name


def test_noise_affects_its_sample_only():
    network, variables = randomised(NETWORK)
    x = random_image(2, 16, 16, 4)
    noise, other = draw_noise(network, 0), draw_noise(network, 1)
    mixed = {k: jnp.stack([noise[k][0], other[k][1]]) for k in noise}
    ours, _ = runner(network)(variables, x, noise=mixed)
    first, _ = runner(network)(variables, x, noise=noise)
    second, _ = runner(network)(variables, x, noise=other)
    np.testing.assert_array_equal(ours[0], first[0])
    np.testing.assert_array_equal(ours[1], second[1])


# Outputs.


def test_compiled_and_eager_agree():
    network, variables = randomised(NETWORK)
    x = random_image(2, 16, 16, 4)
    eager_rgb, eager_pyramid = network.apply(variables, x)
    rgb, pyramid = runner(network, "stored")(variables, x)
    np.testing.assert_allclose(rgb, eager_rgb, atol=2e-5)
    for r, y in eager_pyramid.items():
        np.testing.assert_allclose(pyramid[r], y, atol=2e-5)


def test_image_is_the_sum_of_its_levels():
    network, variables = randomised(NETWORK.clone(resolution=16))
    rgb, pyramid = runner(network, "stored")(variables, random_image(2, 8, 24, 4))
    total = pyramid[4]
    for r in (8, 16):
        total = upsample2x(total) + pyramid[r]
        assert np.any(pyramid[r])
    np.testing.assert_allclose(rgb, total, atol=1e-5)


def test_samples_do_not_mix():
    network, variables = randomised(NETWORK)
    x = random_image(2, 16, 16, 4)
    changed = np.stack([x[0], -x[1]])
    before, _ = runner(network, "stored")(variables, x)
    after, _ = runner(network, "stored")(variables, changed)
    np.testing.assert_array_equal(before[0], after[0])
    assert np.any(before[1] != after[1])


# With two levels, an output pixel depends on inputs less than 20 pixels away.
REACH = 20


@pytest.mark.parametrize("noise, period", [("none", 2), ("stored", 8)])
def test_is_fully_convolutional(noise, period):
    """Outputs far from the borders do not depend on where the borders are.

    They are invariant to shifts by the stride; with stored noise, to shifts by the
    period of the noise, which is the nominal resolution.
    """
    network, variables = randomised(NETWORK)
    large = random_image(1, 64, 72, 4)
    run = runner(network, noise)

    def inside(shift):
        """The same pixels, computed from a crop that starts at `shift`."""
        crop = large[:, shift : shift + 56, shift : shift + 64]
        rgb, _ = run(variables, crop)
        return rgb[:, 28 - shift : 36 - shift, 28 - shift : 44 - shift]

    assert 28 - period >= REACH
    np.testing.assert_allclose(inside(period), inside(0), atol=1e-5)
    # Other shifts move the image relative to the lowest level's grid or to the noise.
    assert relative_l2(inside(period // 2), inside(0)) > 1e-2


def test_receptive_field():
    network, variables = randomised(NETWORK)
    x = random_image(1, 56, 64, 4)
    changed = x.copy()
    changed[:, 30, 30] += 5
    before, _ = runner(network, "none")(variables, x)
    after, _ = runner(network, "none")(variables, changed)
    rows = np.flatnonzero(np.any(before != after, axis=(0, 2, 3)))
    assert 30 - REACH < rows.min() < 30 - 10
    assert 30 + 10 < rows.max() < 30 + REACH


def test_half_precision():
    network, variables = randomised(NETWORK)
    half = network.clone(dtype=jnp.bfloat16)
    x = random_image(2, 16, 16, 4)
    half_variables = jax.eval_shape(half.init, jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half_variables))

    rgb, pyramid = runner(half, "stored")(variables, x)

    exact, exact_pyramid = runner(network, "stored")(variables, x)
    assert rgb.dtype == jnp.float32
    assert 1e-4 < relative_l2(rgb, exact) < 0.03
    for r, y in exact_pyramid.items():
        assert pyramid[r].dtype == jnp.float32
        assert relative_l2(pyramid[r], y) < 0.05


def join(kernels):
    """The collapsed kernel of expanded ones."""
    return kernels.sum(axis=0) / np.sqrt(len(kernels))


def normalise(kernel):
    return kernel / np.sqrt((kernel**2).sum(axis=(0, 1, 2)) + 1e-8)


def test_forms_of_equal_kernels_agree():
    """Expanded, collapsed and fused; this maps the parameters itself."""
    expanded, variables = randomised(
        NETWORK.clone(reparam=Reparam("expanded", kernels=3))
    )
    params = jax.tree.map(np.asarray, variables["params"])

    def convert(tree, fuse, path=()):
        if "kernels" in tree:
            kernel = join(tree["kernels"])
            others = {k: v for k, v in tree.items() if k != "kernels"}
            return {**others, "kernel": normalise(kernel) if fuse else kernel}
        if fuse and path[-1:] == ("fromrgb",):
            return {**tree, "weight": normalise(tree["weight"])}
        return {
            key: convert(value, fuse, (*path, key))
            if isinstance(value, dict)
            else value
            for key, value in tree.items()
        }

    x = random_image(2, 16, 16, 4)
    stats = variables["stats"]
    expected, _ = runner(expanded, "stored")({"params": params, "stats": stats}, x)
    for form in ("collapsed", "fused"):
        network, other = randomised(NETWORK.clone(reparam=Reparam(form)))
        changed = convert(params, fuse=form == "fused")
        assert jax.tree.structure(changed) == jax.tree.structure(other["params"])
        rgb, _ = runner(network, "stored")({"params": changed, "stats": stats}, x)
        np.testing.assert_allclose(rgb, expected, atol=2e-5)


def test_output_does_not_depend_on_the_norm_of_trained_kernels():
    network, variables = randomised(NETWORK)
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 7 if path[-1].key in ("kernel", "weight") else leaf,
        variables,
    )
    x = random_image(2, 16, 16, 4)
    rgb, _ = runner(network, "stored")(scaled, x)
    np.testing.assert_allclose(
        rgb, runner(network, "stored")(variables, x)[0], atol=2e-5
    )
