"""Kernel forms: the same network fused, un-fused, collapsed and expanded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_weights_names import NETWORKS, random_tensors

from migan_jax.errors import UserError
from migan_jax.families import (
    from_tensors,
    load_checkpoint,
    save_checkpoint,
    to_tensors,
)
from migan_jax.inpainting import Model
from migan_jax.models.layers import Reparam
from migan_jax.weights import kernel_forms
from migan_jax.weights.checkpoint import to_form
from migan_jax.weights.tensor_files import write_tensors

X = np.random.default_rng(3).standard_normal((2, 16, 16, 4)).astype(np.float32)
TOLERANCE = 2e-6


def forward(checkpoint):
    rgb, pyramid = Model.of(checkpoint).forward(X, pyramid=True)
    return [np.asarray(rgb), *(np.asarray(pyramid[r]) for r in sorted(pyramid))]


def assert_same_outputs(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        difference = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert difference <= TOLERANCE


def normalised(params):
    """Return all normalised weights by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {tuple(part.key for part in path): leaf for path, leaf in leaves}
    return {
        path: leaf
        for path, leaf in named.items()
        if path[-1] == "kernel" or path[-2:] == ("fromrgb", "weight")
    }


@pytest.fixture(scope="module")
def expanded():
    return from_tensors(random_tensors(NETWORKS["migan_3_kernels"]))


@pytest.fixture(scope="module")
def outputs(expanded):
    return forward(expanded)


@pytest.fixture(scope="module")
def fused(expanded):
    return to_form(expanded, "fused")


def test_fused_network_is_the_same(fused, outputs):
    assert fused.network.reparam.form == "fused"
    assert_same_outputs(forward(fused), outputs)


def test_unfused_network_is_the_same(fused, outputs):
    unfused = to_form(fused, "training")
    assert unfused.network.reparam.form == "collapsed"
    assert_same_outputs(forward(unfused), outputs)


def test_collapsed_network_is_the_same(expanded, outputs, tmp_path):
    write_tensors(tmp_path / "x.safetensors", to_tensors(expanded))
    collapsed = load_checkpoint(tmp_path / "x.safetensors")
    assert collapsed.network.reparam == Reparam("collapsed", 3)
    assert_same_outputs(forward(collapsed), outputs)


def test_norms(fused):
    """Fused kernels have norm 1, un-fused ones that of newly initialised kernels."""
    unfused = to_form(fused, "training")
    before, after = normalised(fused.params), normalised(unfused.params)
    assert before.keys() == after.keys()
    for path, kernel in after.items():
        fan_in = np.prod(kernel.shape[:3])
        norms = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)
        np.testing.assert_allclose(norms, fan_in**0.5, rtol=1e-5, err_msg=str(path))
        norms = np.linalg.norm(before[path].reshape(fan_in, -1), axis=0)
        np.testing.assert_allclose(norms, 1, rtol=1e-5, err_msg=str(path))
    depthwise = after["synthesis", "b8", "conv1", "depthwise", "kernel"]
    np.testing.assert_allclose(np.linalg.norm(depthwise[..., 0, 0]), 3, rtol=1e-5)
    from_rgb = after["encoder", "b16", "fromrgb", "weight"]
    np.testing.assert_allclose(np.linalg.norm(from_rgb[0, 0, :, 0]), 2, rtol=1e-5)


def test_fusing_changes_kernels_only(expanded, fused):
    before = kernel_forms.collapse(expanded.params)
    changed = normalised(before)
    assert len(changed) == 28  # the encoder's 13 and the decoder's 15
    for path, leaf in jax.tree_util.tree_leaves_with_path(before):
        keys = tuple(part.key for part in path)
        after = fused.params
        for key in keys:
            after = after[key]
        assert np.array_equal(leaf, after) != (keys in changed), keys


def test_stats_stay_unchanged(expanded, fused):
    for checkpoint in (fused, to_form(fused, "training")):
        jax.tree.map(np.testing.assert_array_equal, checkpoint.stats, expanded.stats)


def test_fusing_twice_changes_nothing(fused):
    assert to_form(fused, "fused") is fused
    unfused = to_form(fused, "training")
    assert to_form(unfused, "training") is unfused
    again = to_form(unfused, "fused")
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)  # noqa: E731
    jax.tree.map(close, again.params, fused.params)


def test_half_precision_is_accepted(fused):
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), fused.params)
    bfloat = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), fused.params)
    for rounded in (half, bfloat):
        read = jax.tree.map(lambda x: x.astype(np.float32), rounded)
        kernel_forms.unfuse(read, "a file in half precision")


@pytest.mark.parametrize("norm", [0.0, 0.99, 1.01, 2.0, np.nan])
@pytest.mark.parametrize(
    "path", [("conv1", "pointwise", "kernel"), ("fromrgb", "weight")]
)
def test_other_norms_are_refused(norm, path, fused):
    params = jax.tree.map(np.array, fused.params)
    leaf = params["encoder"]["b16"]
    for key in path:
        leaf = leaf[key]
    leaf[..., 3] *= norm
    with pytest.raises(UserError) as caught:
        kernel_forms.unfuse(params, "that.pt")
    message = str(caught.value)
    assert "that.pt" in message and "--form=fused" in message
    assert f"encoder.b16.{'.'.join(path)}" in message and f"{norm:.4g}" in message


def test_refusals_name_the_file_and_write_nothing(tmp_path):
    """Random kernels have other norms: all 28 are refused, three are named."""
    path = tmp_path / "odd.safetensors"
    write_tensors(path, random_tensors(NETWORKS["migan_fused"]))
    checkpoint = load_checkpoint(path)
    with pytest.raises(UserError, match=r"norm \S+; .*norm \S+; .* 25 more") as caught:
        save_checkpoint(checkpoint, tmp_path / "new" / "run", "training")
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["odd.safetensors"]


# Collapse and expand.


@pytest.mark.parametrize("count", [1, 3, 9])
def test_expand_and_collapse(count):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 5))
    bias = jnp.arange(5.0)
    params = {"a": {"kernel": kernel, "bias": bias}, "b": {"weight": kernel}}
    expanded = kernel_forms.expand(params, count)
    assert expanded["a"].keys() == {"kernels", "bias"}
    assert expanded["a"]["kernels"].shape == (count, 3, 3, 1, 5)
    assert np.array_equal(expanded["b"]["weight"], kernel)
    collapsed = kernel_forms.collapse(expanded)
    np.testing.assert_allclose(collapsed["a"]["kernel"], kernel, rtol=1e-6)
    assert np.array_equal(collapsed["a"]["bias"], bias)
    assert jax.tree.structure(collapsed) == jax.tree.structure(params)


def test_collapsing_is_linear():
    """Hence the EMA of a collapsed kernel is the collapsed EMA."""
    first, second = (
        {"kernels": jax.random.normal(jax.random.key(seed), (3, 1, 1, 4, 5))}
        for seed in (0, 1)
    )
    mean = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, first, second)
    one, two = (kernel_forms.collapse(tree)["kernel"] for tree in (first, second))
    actual = kernel_forms.collapse(mean)["kernel"]
    np.testing.assert_allclose(actual, 0.9 * one + 0.1 * two, rtol=1e-5, atol=1e-6)
