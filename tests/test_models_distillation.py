"""Distillation-guided inpainting: parameter counts, layers' identities, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import random_variables

from migan_jax.config import load_config
from migan_jax.errors import UserError
from migan_jax.families import load_checkpoint, save_checkpoint
from migan_jax.models.distillation import (
    AdaptiveTaps,
    ChannelWeights,
    CompletionBlocks,
    DistillationAuxiliary,
    DistillationDiscriminator,
    DistillationGenerator,
    FusedAttention,
    MetaNetworks,
    Projections,
    pool_hole,
)
from migan_jax.ops.adaptive_conv import adaptive_conv
from migan_jax.summary import count_parameters
from migan_jax.training.programs import build_system
from migan_jax.weights.checkpoint import Checkpoint
from migan_jax.weights.names import abstract_variables

COUNTS = {
    "baseline": 13_086_499,
    **dict.fromkeys(("net1", "net2", "net3"), 12_717_123),
    **dict.fromkeys(("net4", "net5"), 12_773_854),
    **dict.fromkeys(("net6", "net7"), 12_921_950),
    "net8": 13_083_314,
}


def count(network):
    return sum(count_parameters(network).values())


def names_of(network):
    leaves = jax.tree_util.tree_leaves_with_path(abstract_variables(network)["params"])
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize("row", COUNTS)
def test_parameters_of_the_ladder(row):
    """Parts have parameters of their own; the others stay the same."""
    config = load_config(f"distillation_places256:{row}", (), tiny=False)
    network = build_system(config, {}).generator
    assert count(network) == COUNTS[row]
    final = names_of(DistillationGenerator())
    shapes = names_of(network)
    assert all(final[n] == shape for n, shape in shapes.items() if "extra" not in n)


def test_parameters_of_the_networks():
    assert count(DistillationGenerator(kernel_size=5)) == 13_387_634
    # The gates of attention are ours; the fact that is known leaves them out.
    assert count(DistillationAuxiliary()) == 12_862_083 + 3
    discriminator = DistillationDiscriminator()
    assert count(discriminator) == 2_763_776
    scores = jax.eval_shape(
        lambda: discriminator.init_with_output(
            jax.random.key(0), jnp.zeros((1, 256, 256, 3)), mutable=True
        )[0]
    )
    assert scores.shape == (1, 30, 30, 1)


def run(layer, *inputs, **variables):
    """Apply a layer to random inputs, with its initial variables or given ones."""

    def initial_output(key):
        return layer.init_with_output(key, *inputs)

    output, initial = jax.jit(initial_output)(jax.random.key(0))
    if variables:
        output = jax.jit(lambda v: layer.apply(v, *inputs))(variables)
    return output, initial


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_completion_fills_holes_with_means_at_first():
    layer, x = CompletionBlocks(1, 4, 3, "he"), draw(1, 6, 6, 2)
    hole = jnp.zeros((1, 6, 6, 1)).at[:, 2:4, 2:4].set(1)
    y, _ = jax.jit(lambda key: layer.init_with_output(key, x, hole, 0))(
        jax.random.key(0)
    )
    means = np.mean([x[0, i : i + 4, j : j + 4] for i in range(3) for j in range(3)], 0)
    np.testing.assert_allclose(y[0, 2:4, 2:4], (x[0, 1:5, 1:5] + means)[1:3, 1:3], 1e-4)
    outside = np.asarray(hole[..., 0] == 0)
    np.testing.assert_array_equal(np.asarray(y)[outside], np.asarray(x)[outside])


def test_holes_of_levels():
    hole = jnp.zeros((1, 8, 8, 1)).at[0, 1, 1, 0].set(1)
    assert pool_hole(hole, 4, "any").sum() == 1
    assert pool_hole(hole, 4, "nearest").sum() == 0
    assert pool_hole(hole.at[0, 4, 4, 0].set(1), 4, "nearest")[0, 2, 2, 0] == 1


@pytest.mark.parametrize("bias", [50.0, -50.0])
def test_fusion_chooses_between_attention_and_adaptive_convolution(bias):
    x = draw(1, 4, 4, 4)
    layer = FusedAttention("residual", 2, 3, "he")
    _, variables = run(layer, x)
    params = jax.tree.map(lambda p: draw(*p.shape, seed=1), variables["params"])
    params["share"]["bias"] = jnp.full((1,), bias)
    params["share"]["weight"] *= 0
    (fused, inputs), _ = run(layer, x, params=params)
    taps = AdaptiveTaps(3, is_average=False)
    adapted = adaptive_conv(x, *taps.apply({"params": params["taps"]}, x))
    plain = FusedAttention("alone", 2, 0, "he")
    attended, same = plain.apply(
        {"params": {k: params[k] for k in ("query", "key")}}, x
    )
    expected = attended if bias > 0 else adapted
    np.testing.assert_allclose(fused, expected, rtol=1e-3, atol=1e-4)
    assert inputs.keys.shape == (1, 2, 2, 2) == same.keys.shape


def test_initial_choices_of_the_meta_networks():
    """Targets are the features, weights alike, and attention half as important."""
    features = [draw(2, 8, 8, c, seed=c) for c in (3, 5)]
    layer = MetaNetworks(cross=(3, 5), deeper=(5,), decoder=(3,))
    choice, _ = run(layer, *features, features[1], features[0])
    for target, x in zip(choice.targets, features, strict=True):
        np.testing.assert_allclose(target, x, atol=1e-6)
    for weights in (*choice.cross_weights, *choice.self_weights):
        np.testing.assert_allclose(weights, 1 / weights.shape[1])
    assert (choice.importance[0] == 0.5).all()


def test_weights_of_channels_have_a_sum_of_1():
    x = draw(2, 4, 4, 6)
    params = {"dense": {"weight": draw(1, 1, 6, 6), "bias": draw(6)}}
    weights, _ = run(ChannelWeights(), x, params=params)
    assert (weights > 0).all() and weights.std() > 0.01
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


def test_projections_halve():
    projected, _ = run(Projections((2, 3, 4)), draw(1, 16, 16, 2), draw(1, 8, 8, 3))
    assert [x.shape for x in projected] == [(1, 8, 8, 3), (1, 4, 4, 4)]


SMALL = {"channels": 2}


@pytest.mark.parametrize("row", ["baseline", "net3", "net5", "net6", "net8"])
def test_files_tell_rows_apart(row, tmp_path):
    config = load_config(f"distillation_places256:{row}", (), tiny=False)
    config.distillation.channels = 2
    network = build_system(config, {}).generator
    params = random_variables(network)["params"]
    path = tmp_path / "network.safetensors"
    save_checkpoint(Checkpoint(network, params, {}), path, "training")
    loaded = load_checkpoint(path)
    assert loaded.network == network
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


def test_files_do_not_lose_settings(tmp_path):
    network = DistillationGenerator(**SMALL, level_hole="nearest")
    checkpoint = Checkpoint(network, random_variables(network)["params"], {})
    with pytest.raises(UserError, match="level_hole=nearest"):
        save_checkpoint(checkpoint, tmp_path / "a.safetensors", "training")


def test_any_size_that_is_divisible_by_8():
    network = DistillationGenerator(resolution=16, **SMALL, initial="he")
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 4)))
    x = np.random.default_rng(0).random((1, 16, 40, 4)).round().astype(np.float32)
    output, features = jax.jit(network.apply)(variables, x)
    assert output.shape == (1, 16, 40, 3)
    assert [f.shape[1:3] for f in features.encoder] == [(8, 20), (4, 10), (2, 5)]
    assert ((output >= 0) & (output <= 1)).all()
    with pytest.raises(ValueError, match="divisible by 8"):
        jax.eval_shape(network.apply, variables, x[:, :12])
