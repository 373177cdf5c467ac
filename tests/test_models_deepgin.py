"""DeepGIN's networks against PyTorch under released names, and their identities."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import entries, random_variables, relative_l2

from migan_jax.families import from_tensors, load_checkpoints, save_checkpoint
from migan_jax.models.deepgin import (
    LADDER,
    SPD_4,
    SPD_8,
    DeepGINDiscriminator,
    DeepGINGenerator,
    NonLocal,
    SPDBlock,
    halve,
)
from migan_jax.models.layers import PaddedConv
from migan_jax.models.spectral import SpectralConv, power_iteration
from migan_jax.ops.align_corners import resize_align_corners
from migan_jax.summary import count_parameters
from migan_jax.weights.names import abstract_variables

GOLDEN = Path(__file__).parent / "golden"
FLOAT32 = jnp.dtype("float32")
# Between them, they have everything that the others have.
DIFFERENT = "coarse_only", "std_sa", "dil_mssa", "full"
COUNTS = {  # of section 5 of the fact sheet, from the authors' code
    "coarse_only": 8_167_843,
    "std": 40_849_990,
    "std_sa": 41_375_558,
    "std_mssa": 42_892_134,
    "dil_mssa": 42_892_134,
    "spd_mssa": 42_892_134,
    "full": 42_930_186,
}


def draw(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def draw_input(size=(32, 48), seed=0, dtype=np.float64):
    """Draw two masked images with their holes, as the generators take them."""
    rng = np.random.default_rng(seed)
    image = rng.random((2, *size, 3))
    hole = (rng.random((2, *size, 1)) < 0.4).astype(float)
    masked = image * (1 - hole) + hole
    return np.concatenate([masked, hole], axis=-1).astype(dtype)


def scaled(variables, factor=0.2):
    """Scale random weights, so that signals neither vanish nor explode."""

    def scale(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 1
        scale = factor if leaf.ndim == 1 else 1.2 / np.sqrt(fan_in)
        return (leaf * scale).astype(leaf.dtype)

    return jax.tree.map(scale, variables)


def make(variant, dtype=np.float64, seed=0):
    network = DeepGINGenerator(32, variant, channels=8)
    return network, scaled(random_variables(network, seed, dtype))


@pytest.mark.parametrize("variant", LADDER)
def test_parameter_counts_of_the_ladder(variant):
    network = DeepGINGenerator(variant=variant)
    count = sum(count_parameters(network).values())
    assert count == COUNTS[variant]
    assert f"{count / 1e6:.3f}" == LADDER[variant].parameters


def test_parameter_count_of_the_discriminators():
    variables = abstract_variables(DeepGINDiscriminator())
    trainable, stats = (
        sum(leaf.size for leaf in jax.tree.leaves(variables[part]))
        for part in ("params", "stats")
    )
    assert (trainable, stats) == (3_421_568, 15_936)


@pytest.mark.parametrize(
    ("file", "network"),
    [
        ("deepgin_G", DeepGINGenerator()),
        ("deepgin_G_ngf8", DeepGINGenerator(channels=8)),
        ("deepgin_D", DeepGINDiscriminator()),
        ("deepgin_D_ndf8", DeepGINDiscriminator(channels=8)),
    ],
)
def test_released_names_and_shapes(file, network):
    ours = {n: list(e.tensor_shape) for e in entries(network) for n in e.names}
    assert ours == json.loads((GOLDEN / f"{file}.json").read_text())


@pytest.mark.parametrize("variant", LADDER)
def test_files_tell_the_rows_apart(variant, tmp_path):
    network, variables = make(variant, np.float32)
    checkpoint = from_tensors(
        {
            name: array
            for entry in entries(network)
            for name, array in entry.to_tensors(leaf_of(variables, entry)).items()
        }
    )
    assert checkpoint.network == network.clone(resolution=256)
    jax.tree.map(
        np.testing.assert_array_equal,
        checkpoint.variables["params"],
        variables["params"],
    )
    save_checkpoint(checkpoint, tmp_path / "x.safetensors", "fused")
    (back,) = load_checkpoints(tmp_path / "x.safetensors").values()
    jax.tree.map(np.testing.assert_array_equal, back.params, checkpoint.params)


def leaf_of(variables, entry):
    leaf = variables[entry.collection]
    for key in entry.path:
        leaf = leaf[key]
    return leaf


@pytest.mark.torch
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(row, marks=() if row in DIFFERENT else pytest.mark.full)
        for row in LADDER
    ],
)
def test_outputs_equal_pytorchs(variant):
    import deepgin_torch
    import torch
    from parity import nhwc, to_arrays

    torch.manual_seed(1)
    theirs = deepgin_torch.Generator(variant, ngf=8).double()
    enlarge(theirs)
    ours = from_tensors(to_arrays(theirs))
    x = draw_input()
    masked, hole = (
        torch.from_numpy(np.moveaxis(part, -1, 1).copy())
        for part in (x[..., :3], x[..., 3:])
    )
    expected = theirs(masked, hole)
    output, stages = jax.jit(ours.network.apply)(ours.variables, x)
    assert relative_l2(output, nhwc(expected["output"])) < 1e-9
    names = (
        {"coarse", "lr", "refined"} & expected.keys()
        if variant == "full"
        else {"coarse"}
    )
    assert stages.keys() == (names if variant != "coarse_only" else set())
    for name in stages:
        assert relative_l2(stages[name], nhwc(expected[name])) < 1e-9


def enlarge(module):
    """Enlarge PyTorch's initial weights: at a tenth, signals of 1e-5 prove little."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter *= 6
            else:
                parameter.normal_(std=0.1)


@pytest.mark.torch
@pytest.mark.usefixtures("float64")
def test_scores_and_singular_vectors_equal_pytorchs_after_three_passes():
    import deepgin_torch
    import torch
    from parity import nhwc, to_arrays

    torch.manual_seed(2)
    theirs = deepgin_torch.Discriminator(ndf=8).double()
    ours = from_tensors(to_arrays(theirs))
    stats = ours.stats
    apply = jax.jit(functools.partial(ours.network.apply, mutable=["stats"]))
    for seed in range(3):
        x = draw((2, 33, 40, 6), seed)
        expected = theirs(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
        scores, updated = apply({"params": ours.params, "stats": stats}, x)
        stats = updated["stats"]
        for score, their_score in zip(scores, expected, strict=True):
            assert relative_l2(score, nhwc(their_score)) < 1e-9
    buffers = to_arrays(theirs)
    for entry in entries(ours.network):
        if entry.collection == "stats":
            (name,) = entry.names
            leaf = leaf_of({"stats": stats}, entry)
            assert relative_l2(leaf, buffers[name]) < 1e-9


# The identities of the paper's blocks.


def test_pyramid_of_one_dilation_is_the_standard_block():
    """And all have the same number of parameters."""
    x = jnp.asarray(draw((1, 12, 12, 16), dtype=np.float32))
    standard, dilated, *pyramids = (
        SPDBlock(dilations) for dilations in ((1,), (2,), SPD_4, SPD_8)
    )
    variables = standard.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    branch, fuse = (variables["params"][name] for name in ("branch1", "fuse"))
    dimensions = ("NHWC", "HWIO", "NHWC")

    def convolve(x, layer):
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        y = jax.lax.conv_general_dilated(
            padded, layer["weight"], (1, 1), "VALID", dimension_numbers=dimensions
        )
        return y + layer["bias"][None, None, None]

    expected = x + convolve(jax.nn.relu(convolve(x, branch)), fuse)
    np.testing.assert_allclose(standard.apply(variables, x), expected, atol=1e-5)
    wider = {"params": {"dilated1": branch, "fuse": fuse}}
    assert jnp.abs(dilated.apply(wider, x) - expected).max() > 1e-3
    counts = {
        sum(leaf.size for leaf in jax.tree.leaves(block.init(jax.random.key(0), x)))
        for block in (standard, dilated, *pyramids)
    }
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("block", "last"), [(SPDBlock(SPD_8), "fuse"), (NonLocal(), "W")]
)
def test_blocks_are_the_identity_without_their_last_layer(block, last):
    x = jnp.asarray(draw((1, 6, 8, 16), dtype=np.float32))
    variables = block.init(jax.random.key(0), x)
    zeros = jax.tree.map(jnp.zeros_like, variables["params"][last])
    params = {**variables["params"], last: zeros}
    np.testing.assert_array_equal(block.apply({"params": params}, x), x)


def test_back_projection():
    """Without its weight nothing is added; without a difference neither."""
    network, variables = make("full", np.float32)
    x = draw_input(dtype=np.float32)
    known, hole = x[..., :3], x[..., 3:]
    refinement = dict(variables["params"]["refinement"])
    alpha = refinement["alpha"]

    def run(**layers):
        params = {**variables["params"], "refinement": {**refinement, **layers}}
        return jax.jit(network.apply)({"params": params}, x)

    off = {"weight": 0 * alpha["weight"], "bias": alpha["bias"] - 1e4}
    output, stages = run(alpha=off)
    pasted = stages["refined"] * hole + known * (1 - hole)
    np.testing.assert_array_equal(output, pasted)
    # A constant image equals its own small completion.
    x = np.concatenate([np.full_like(known, 0.25), hole * 0], axis=-1)
    flat = {
        "weight": 0 * refinement["lr2"]["weight"],
        "bias": np.full(3, 0.25, np.float32),
    }
    output, _ = run(lr2=flat)
    np.testing.assert_allclose(output, x[..., :3], atol=1e-6)


@pytest.mark.parametrize("variant", ["std", "full"])
def test_any_height_and_width_divisible_by_16(variant):
    network, variables = make(variant, np.float32)
    x = draw_input((48, 16), dtype=np.float32)
    output, stages = jax.eval_shape(network.apply, variables, x)
    assert output.shape == (2, 48, 16, 3) == stages["coarse"].shape
    if variant == "full":
        assert stages["lr"].shape == (2, 12, 4, 3)


@pytest.mark.parametrize("size", [(24, 32), (32, 8)])
def test_other_sizes_are_refused(size):
    network, variables = make("std", np.float32)
    with pytest.raises(ValueError, match=str(size[0])) as caught:
        jax.eval_shape(network.apply, variables, draw_input(size, dtype=np.float32))
    assert "\n" not in str(caught.value)


def test_initial_weights_are_small_and_discriminators_are_pytorchs():
    layer = PaddedConv(128, size=4, stride=2)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 64)))["params"]
    expected = 0.1 * np.sqrt(2 / (16 * 64))
    np.testing.assert_allclose(np.std(params["weight"]), expected, rtol=0.02)
    assert not np.any(params["bias"])
    conv = SpectralConv(64, 4)
    variables = conv.init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))
    bound = 1 / np.sqrt(16 * 32)
    for leaf in jax.tree.leaves(variables["params"]):
        assert 0.9 * bound < np.abs(leaf).max() <= bound
    for name in "uv":
        np.testing.assert_allclose(
            np.linalg.norm(variables["stats"][name]), 1, rtol=1e-5
        )


@pytest.mark.usefixtures("float64")
def test_spectral_norm_converges_to_the_largest_singular_value():
    matrix = jnp.asarray(draw((6, 20)))
    u = jnp.asarray(draw(6))
    for _ in range(500):
        u, v = power_iteration(matrix, u)
    largest = np.linalg.svd(matrix, compute_uv=False)[0]
    np.testing.assert_allclose(u @ matrix @ v, largest, rtol=1e-9)
    gradient = jax.grad(lambda m: jnp.sum(m / (u @ m @ v)))(matrix)
    assert np.isfinite(gradient).all()


def test_passes_refine_singular_vectors_only_if_they_may_change():
    conv = SpectralConv(4, size=4, padding=2)
    x = jnp.asarray(draw((1, 16, 16, 6), dtype=np.float32))
    variables = conv.init(jax.random.key(0), x)
    y, changed = conv.apply(variables, x, mutable=["stats"])
    np.testing.assert_array_equal(conv.apply(variables, x), y)
    assert np.abs(changed["stats"]["u"] - variables["stats"]["u"]).max() > 1e-3


def test_resizing_and_pooling_equal_the_reference():
    with np.load(GOLDEN / "deepgin_ops.npz") as arrays:
        x = arrays["x"]
        expected = {name: arrays[name] for name in arrays}
    for name, size in (("up2", 32), ("up4", 64), ("down4", 4), ("resize_23", 23)):
        resized = resize_align_corners(x, size, size)
        np.testing.assert_allclose(resized, expected[f"x_{name}"], atol=1e-5)
    np.testing.assert_allclose(halve(x), expected["x_avgpool3s2"], atol=1e-5)


def test_resizing_keeps_ramps_and_corners():
    ramp = jnp.arange(16.0).reshape(1, 16, 1, 1) * jnp.ones((1, 16, 16, 1))
    for size in (4, 23, 32):
        resized = resize_align_corners(ramp, size, 5)
        expected = np.linspace(0, 15, size)
        np.testing.assert_allclose(resized[0, :, 2, 0], expected, atol=1e-5)


def gradients(network, variables, x):
    def loss(params):
        output, stages = network.apply({"params": params}, x)
        return sum(jnp.sum(image**2) for image in (output, *stages.values()))

    return jax.jit(jax.value_and_grad(loss))(variables["params"])


def test_half_precision_outputs_and_gradients_are_float32():
    network, variables = make("full", np.float32)
    x = draw_input(dtype=np.float32)
    half = network.clone(dtype=jnp.bfloat16)
    output, stages = jax.jit(half.apply)(variables, x)
    expected, _ = jax.jit(network.apply)(variables, x)
    assert {image.dtype for image in (output, *stages.values())} == {FLOAT32}
    assert relative_l2(output, expected) < 0.02
    shapes = jax.eval_shape(functools.partial(gradients, half), variables, x)
    leaves = jax.tree.leaves(shapes)
    assert {leaf.dtype for leaf in leaves} == {FLOAT32}


@pytest.mark.full
def test_recomputed_activations_change_no_gradient():
    network, variables = make("full", np.float32)
    x = draw_input(dtype=np.float32)
    recomputing = network.clone(remat=True)
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        assert_close, *(gradients(n, variables, x) for n in (recomputing, network))
    )


def test_large_inputs_have_bounded_scores():
    """At 1,024 pixels even a row of queries has more than the bound."""
    network, variables = make("full", np.float32)
    x = jax.ShapeDtypeStruct((1, 1024, 1024, 4), jnp.float32)
    output, _ = jax.eval_shape(network.apply, variables, x)
    assert output.shape == (1, 1024, 1024, 3)
