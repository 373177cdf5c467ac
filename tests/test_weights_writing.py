"""Checkpoint files: round trips, and writing whole or not at all."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save
from test_weights_reading import TENSORS, assert_equal, state_of, tensor, write_header

from migan_jax.errors import UserError
from migan_jax.weights.reading import read_tensors, write_tensors

# Round trips.


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    assert_equal(read_tensors(path), TENSORS)
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.torch
@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_torch_round_trip(ending, tmp_path, torch):
    path = tmp_path / f"x{ending}"
    write_tensors(path, TENSORS)
    assert_equal(read_tensors(path), TENSORS)
    state = torch.load(path, weights_only=True)
    assert type(state) is dict and state["a.scalar"].shape == ()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.torch
def test_torch_files_of_every_kind(tmp_path, torch):
    from collections import OrderedDict

    path = tmp_path / "x.pt"
    state = state_of(torch)
    parameters = {name: torch.nn.Parameter(value) for name, value in state.items()}
    for content in (state, OrderedDict(state), parameters):
        for zipped in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            assert_equal(read_tensors(path), TENSORS)
    views = {"t": torch.arange(6.0).reshape(2, 3).T, "s": torch.arange(9.0)[2:8:2]}
    torch.save(views, path)
    assert np.array_equal(read_tensors(path)["t"], [[0, 3], [1, 4], [2, 5]])
    assert np.array_equal(read_tensors(path)["s"], [2, 4, 6])


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "float8_e5m2"])
def test_torch_precisions(kind, tmp_path, torch):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.tensor([1.5, -2.0]).to(getattr(torch, kind))}, path)
    array = read_tensors(path)["a"]
    assert array.dtype == (np.float64 if kind == "float64" else np.float32)
    assert np.array_equal(array, [1.5, -2])


@pytest.mark.parametrize(
    ("kind", "read_as"),
    [
        (np.float16, np.float32),
        (jnp.bfloat16, np.float32),
        (np.float64, np.float64),
        (np.int8, np.int8),
        (np.int64, np.int64),
        (np.bool_, np.bool_),
    ],
)
def test_safetensors_precisions(kind, read_as, tmp_path):
    values = np.array([1.0, 0.0], kind)
    name = {jnp.bfloat16: "BF16"}.get(kind)
    path = tmp_path / "x.safetensors"
    if name:
        write_header(path, {"a": tensor("BF16", [2])}, values.tobytes())
    else:
        path.write_bytes(save({"a": values}))
    array = read_tensors(path)["a"]
    assert array.dtype == read_as
    assert np.array_equal(array, np.array([1, 0], read_as))


def test_safetensors_need_no_torch(tmp_path):
    code = f"""
import sys
import numpy as np
sys.modules["torch"] = None
from migan_jax.weights.reading import read_tensors, write_tensors
from pathlib import Path
path = Path({str(tmp_path)!r}) / "x.safetensors"
write_tensors(path, {{"a": np.ones(3, np.float32)}})
assert read_tensors(path)["a"].sum() == 3
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_files_are_not_written_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs PyTorch.*pip install 'torch"):
        write_tensors(tmp_path / "new" / "y.pt", TENSORS)
    assert os.listdir(tmp_path) == []


# Whole or not at all.


ENDINGS = pytest.mark.parametrize(
    "ending", [pytest.param(".pt", marks=pytest.mark.torch), ".safetensors"]
)


def interrupted(*args):
    raise KeyboardInterrupt


def half_written(path, content):
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    raise OSError(28, "No space left on device")


@ENDINGS
def test_full_disk(ending, tmp_path, monkeypatch):
    path = tmp_path / f"x{ending}"
    monkeypatch.setattr(type(path), "write_bytes", half_written)
    with pytest.raises(UserError, match="No space left") as caught:
        write_tensors(path, TENSORS)
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == []


@ENDINGS
def test_interrupted_writing(ending, tmp_path, monkeypatch):
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, TENSORS)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == [path.name]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for name in ("file/x.safetensors", "file/a/x.safetensors", "/proc/x.safetensors"):
        path = tmp_path / name
        with pytest.raises(UserError, match="cannot be written") as caught:
            write_tensors(path, TENSORS)
        assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="cannot be written"):
        write_tensors(tmp_path / ("n" * 300 + ".safetensors"), TENSORS)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_folders_on_the_way_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "x.safetensors"
    write_tensors(path, TENSORS)
    assert_equal(read_tensors(path), TENSORS)
