"""Checkpoints: kernel forms, round trips, and failures while writing."""

import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_weights_names import NETWORKS, random_tensors
from variables import assert_same_trees

from migan_jax.errors import UserError
from migan_jax.families import (
    from_tensors,
    load_checkpoint,
    load_file,
    save_checkpoint,
    to_tensors,
)
from migan_jax.ops.conv import join_kernels
from migan_jax.weights.checkpoint import is_file_name, to_form
from migan_jax.weights.tensor_files import read_tensors, write_tensors

FILES = pytest.mark.parametrize(
    "suffix", [pytest.param(".pt", marks=pytest.mark.torch), ".safetensors"]
)


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert actual[name].tobytes() == value.tobytes(), name


# Forms and round trips.


@FILES
@pytest.mark.parametrize("name", NETWORKS)
def test_files_survive_bit_for_bit(name, suffix, tmp_path):
    network = NETWORKS[name]
    tensors = random_tensors(network)
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_tensors(first, tensors)
    (checkpoint,) = load_file(first).values()
    assert checkpoint.network == network
    form = "fused" if name == "migan_fused" else "training"
    save_checkpoint(checkpoint, second, form)
    assert_same_bits(read_tensors(second), tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_workdirs_survive_bit_for_bit(name, tmp_path):
    checkpoint = from_tensors(random_tensors(NETWORKS[name]))
    form = "fused" if name == "migan_fused" else "training"
    save_checkpoint(checkpoint, tmp_path / "a", form)
    read = load_checkpoint(tmp_path / "a")
    if "kernel" not in name and "migan_d" not in name:
        assert_same_trees(read, checkpoint)
    else:
        assert read.network.reparam.form == "collapsed"
    save_checkpoint(read, tmp_path / "b", form)
    assert_same_trees(load_checkpoint(tmp_path / "b"), read)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("name", ["migan_3_kernels", "migan_1_kernel"])
def test_collapsed_kernels_expand_to_the_same_sum(name, tmp_path):
    tensors = random_tensors(NETWORKS[name])
    expanded = from_tensors(tensors)
    write_tensors(tmp_path / "a.safetensors", tensors)
    collapsed = load_checkpoint(tmp_path / "a.safetensors")
    assert collapsed.network.reparam.form == "collapsed"
    save_checkpoint(collapsed, tmp_path / "b.safetensors", "training")
    (again,) = load_file(tmp_path / "b.safetensors").values()
    assert again.network == expanded.network
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(again.variables),
        jax.tree.leaves(expanded.variables),
        strict=True,
    )
    for (path, ours), theirs in pairs:
        if path[-1].key == "kernels":
            ours, theirs = join_kernels(ours), join_kernels(theirs)
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["migan_3_kernels", "migan_1_kernel", "migan_fused"])
def test_fusing_from_every_form(name):
    """Fused networks have no n-kernel leaf, and their kernels have norm 1."""
    checkpoint = from_tensors(random_tensors(NETWORKS[name]))
    fused = to_form(checkpoint, "fused")
    assert fused.network.reparam.form == "fused"
    assert to_tensors(fused).keys() == random_tensors(NETWORKS["migan_fused"]).keys()
    if name != "migan_fused":
        kernel = fused.params["encoder"]["b8"]["conv1"]["pointwise"]["kernel"]
        norms = np.linalg.norm(kernel[0, 0], axis=0)
        np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_fused_kernels_stay_unchanged():
    tensors = random_tensors(NETWORKS["migan_fused"])  # of any norm
    fused = to_form(from_tensors(tensors), "fused")
    assert_same_bits(to_tensors(fused), tensors)


def test_networks_with_one_form_only():
    for name in ("comodgan", "comodgan_discriminator"):
        checkpoint = from_tensors(random_tensors(NETWORKS[name]))
        assert to_form(checkpoint, "fused") is checkpoint
        assert to_form(checkpoint, "training") is checkpoint


def test_discriminators_are_not_fused(tmp_path):
    path = tmp_path / "d.safetensors"
    write_tensors(path, random_tensors(NETWORKS["migan_discriminator"]))
    checkpoint = load_checkpoint(path)
    with pytest.raises(UserError, match="--form=training") as caught:
        save_checkpoint(checkpoint, tmp_path / "out.safetensors", "fused")
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["d.safetensors"]


@pytest.mark.torch
@pytest.mark.parametrize("name", NETWORKS)
def test_written_files_load_into_a_twin(name, tmp_path):
    import torch

    from migan_jax.twins.build import build_twin

    network = NETWORKS[name]
    form = "fused" if name == "migan_fused" else "training"
    checkpoint = from_tensors(random_tensors(network))
    save_checkpoint(checkpoint, tmp_path / "x.pt", form)
    state = torch.load(tmp_path / "x.pt", weights_only=True)
    build_twin(network).load_state_dict(state, strict=True)


# Outputs.


@pytest.mark.parametrize(
    ("name", "is_file"),
    [
        ("a.pt", True),
        ("a.pth", True),
        ("a.safetensors", True),
        ("a", False),
        ("v1.0", False),
        ("lr0.001", False),
        ("runs.old/a", False),
    ],
)
def test_names_of_outputs(name, is_file, tmp_path):
    assert is_file_name(tmp_path / name) is is_file


@pytest.mark.parametrize(
    "name", ["a.h5", "a.npz", "a.pt2", "a.PT", "a.onnx", "a.pkl", "a.ckpt"]
)
def test_unsupported_extensions(name, tmp_path):
    checkpoint = from_tensors(random_tensors(NETWORKS["migan_fused"]))
    with pytest.raises(UserError, match=r"\.safetensors") as caught:
        save_checkpoint(checkpoint, tmp_path / name, "fused")
    assert str(tmp_path / name) in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.safetensors", "a"])
def test_existing_outputs_are_kept(name, tmp_path):
    checkpoint = from_tensors(random_tensors(NETWORKS["migan_fused"]))
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises(UserError, match="exists"):
        save_checkpoint(checkpoint, path, "fused")
    assert path.read_text() == "mine"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="exists"):
        save_checkpoint(checkpoint, path, "fused")
    assert os.listdir(path) == []
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists"):
        save_checkpoint(checkpoint, path, "fused")
    assert path.is_symlink() and os.listdir(tmp_path) == [name]


def test_workdir_below_a_file(tmp_path):
    checkpoint = from_tensors(random_tensors(NETWORKS["migan_fused"]))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file/run"):
        save_checkpoint(checkpoint, tmp_path / "file" / "run", "fused")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(28, "No space left on device"), UserError),
        (ValueError("OUT_OF_RANGE: No space left on device"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_half_written_workdirs_are_removed(failure, raised, tmp_path, monkeypatch):
    checkpoint = from_tensors(random_tensors(NETWORKS["migan_fused"]))

    def fail(writer, folder, args):
        folder.with_name("0.tmp").mkdir(parents=True)
        raise failure

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(raised) as caught:
        save_checkpoint(checkpoint, tmp_path / "run", "fused")
    if raised is UserError:
        assert str(tmp_path / "run") in str(caught.value)
        assert "No space left" in str(caught.value)
    assert os.listdir(tmp_path) == []
