"""Tensor files: untrusted content never runs code, round trips, atomic writing."""

import itertools
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from migan_jax.errors import UserError
from migan_jax.weights.tensor_files import read_tensors, write_tensors

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.scalar": np.array(2.5, np.float32),
    "b.bias": np.linspace(-1, 1, 5, dtype=np.float32),
}


def state_of(torch, tensors=TENSORS):
    return {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert actual[name].shape == value.shape
        assert actual[name].tobytes() == value.tobytes(), name


def error_of(path):
    """Return the error of reading: one line that names the file."""
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def read_or_refuse(path):
    """Read a damaged file, which succeeds or raises one line that names the file."""
    try:
        return read_tensors(path)
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)


# Not a checkpoint.


def test_paths_without_a_file(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe.pt")
    names = ("absent.pt", "folder.pt", "pipe.pt", "file/x.pt", "n" * 300 + ".pt")
    for name in names:
        error_of(tmp_path / name)


def test_other_extensions(tmp_path):
    for name in ("x.bin", "x", "x.PT", "x.pt.zip"):
        (tmp_path / name).write_bytes(b"x")
        assert ".pt, .pth, .ckpt, .safetensors" in error_of(tmp_path / name)
    for name in ("x.pkl", "x.pickle"):
        (tmp_path / name).write_bytes(b"x")
        assert "run code" in error_of(tmp_path / name)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", forbidden)
    assert "Permission denied" in error_of(path)


TEXTS = {
    "empty": b"",
    "text": b"hello world\n",
    "web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_content(text, suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(TEXTS[text])
    assert "damaged" in error_of(path)


# Damage.


def lengths(total):
    return sorted({*range(20), *range(0, total, max(1, total // 60)), total - 1})


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    content = save(TENSORS)
    for length in lengths(len(content)):
        path.write_bytes(content[:length])
        assert "damaged" in error_of(path)
    path.write_bytes(content + b"x")
    assert "damaged" in error_of(path)


def test_flipped_bytes_in_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    content = save(TENSORS)
    rng = np.random.default_rng(0)
    for _ in range(250):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        read_or_refuse(path)


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_torch_files(zipped, tmp_path, torch):
    path = tmp_path / "x.pt"
    torch.save(state_of(torch), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for length in lengths(len(content)):
        path.write_bytes(content[:length])
        # A truncated name in a pickle is not an allowed one.
        assert re.search("damaged" if zipped else "damaged|code", error_of(path))


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_flipped_bytes_in_torch_files(zipped, tmp_path, torch):
    path = tmp_path / "x.pt"
    torch.save(state_of(torch), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(damaged)
        read_or_refuse(path)


def tensor(kind, shape, begin=0, end=None):
    size = {"F16": 2, "BF16": 2, "F64": 8}.get(kind, 4)
    end = begin + size * int(np.prod(shape)) if end is None else end
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def write_header(path, header, data=bytes(64)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


LYING_HEADERS = {
    "shape": {"a": tensor("F32", [100], end=64)},
    "beyond the file": {"a": tensor("F32", [1600])},
    "overlap": {"a": tensor("F32", [16]), "b": tensor("F32", [16])},
    "hole": {"a": tensor("F32", [4]), "b": tensor("F32", [4], begin=48)},
    "negative": {"a": tensor("F32", [-16], end=64)},
    "overflow": {"a": tensor("F32", [2**62, 2**62], end=64)},
    "backwards": {"a": tensor("F32", [16], begin=64, end=0)},
    "vast": {"a": tensor("F32", [0, 2**62], end=0), "b": tensor("F32", [16])},
    "vaster": {"a": tensor("F16", [2**63, 0], end=0), "b": tensor("F32", [16])},
    "many dimensions": {"a": tensor("F32", [1] * 64 + [16])},
    "fractions": {"a": tensor("F32", [16.0])},
    "null": {"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 64]}},
    "strange type": {"a": tensor("X99", [16])},
    "unsupported type": {"a": tensor("F8_E4M3", [64], end=64)},
    "half bytes": {"a": tensor("F4", [128], end=64)},
    "list": b"[]",
    "nested": b"[" * 100_000,
    "not JSON": b"{xx",
    "not text": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("lie", LYING_HEADERS)
def test_lying_safetensors_headers(lie, tmp_path):
    path = tmp_path / "x.safetensors"
    write_header(path, LYING_HEADERS[lie])
    error_of(path)


def test_changed_safetensors_headers(tmp_path):
    """Files with any changed value are refused, or hold no more data than before."""
    path = tmp_path / "x.safetensors"
    values = [None, -1, 3, 2**40, 2**64, 1e300, "F64", [], [0], [0, 2**62], [1] * 65]
    fields = [(name, key) for name in "ab" for key in ("dtype", "shape", 0, 1)]
    for (name, key), value in itertools.product(fields, values):
        header = {"a": tensor("F32", [0], end=0), "b": tensor("F32", [16])}
        inside = header[name]["data_offsets"] if isinstance(key, int) else header[name]
        inside[key] = value
        write_header(path, header)
        arrays = read_or_refuse(path) or {}
        assert sum(array.nbytes for array in arrays.values()) in (0, 64)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**8, 10**12, 71, 1])
def test_lying_safetensors_header_lengths(length, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + save(TENSORS)[8:])
    assert "damaged" in error_of(path)


# Code in files.


class Marker:
    """An object whose pickle makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_the_marker_works(tmp_path):
    pickle.loads(pickle.dumps(Marker(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["alone", "beside tensors", "as a key"])
def test_code_in_torch_files_does_not_run(where, zipped, tmp_path, torch, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = Marker(tmp_path / "ran"), tmp_path / "x.pt"
    content = {
        "alone": marker,
        "beside tensors": {**state_of(torch), "z": marker},
        "as a key": {**state_of(torch), marker: torch.ones(1)},
    }[where]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "run code" in error_of(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_plain_pickles_does_not_run(protocol, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps({"a": Marker(tmp_path / "ran")}, protocol))
    error_of(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.torch
def test_whole_modules_and_scripts_are_refused(tmp_path, torch):
    path, module = tmp_path / "x.pt", torch.nn.Linear(2, 2)
    for zipped in (True, False):
        torch.save(module, path, _use_new_zipfile_serialization=zipped)
        assert re.search(r"run code.*state_dict\(\)", error_of(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(module).save(str(path))
    assert "run code" in error_of(path)


# Files of PyTorch that are not a state dict, or hold special tensors.


@pytest.mark.torch
def test_content_other_than_a_state_dict(tmp_path, torch):
    path, state = tmp_path / "x.pt", state_of(torch)
    cases = [
        ({"state_dict": state}, "(state_dict)"),
        ({"G_ema": state, "G": state, "step": 3}, "(G_ema, G, step)"),
        ({**state, "epoch": 3}, "(epoch)"),
        ({name: {} for name in "abcde"}, "a, b, c and 2 more"),
        (list(state.values()), "a list"),
        (torch.ones(3), "a Tensor"),
        (None, "a NoneType"),
        ({}, "an empty dict"),
    ]
    for content, expected in cases:
        torch.save(content, path)
        message = error_of(path)
        assert expected in message
        assert "state_dict()" in message


@pytest.mark.torch
def test_names_that_are_not_strings(tmp_path, torch):
    torch.save({1: torch.ones(2), ("a", 2): torch.ones(1)}, tmp_path / "x.pt")
    assert set(read_tensors(tmp_path / "x.pt")) == {"1", "('a', 2)"}


@pytest.mark.torch
def test_tensors_that_are_not_plain(tmp_path, torch):
    one = torch.ones(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated
        special = {
            "sparse": torch.eye(3).to_sparse(),
            "csr": torch.eye(3).to_sparse_csr(),
            "quantised": torch.quantize_per_tensor(one, 0.1, 0, torch.qint8),
            "no data": one.to("meta"),
            # Larger than memory, although the file is small.
            "stretched": one.expand(10**6, 10**9),
            "stretched half": one.half().expand(10**6, 10**9),
            "half complex": one.to(torch.complex32),
            "conjugated": (one * 1j).conj(),
        }
        for kind, value in special.items():
            path = tmp_path / f"{kind}.pt"
            torch.save({**state_of(torch), "special.one": value}, path)
            assert "special.one" in error_of(path), kind


@pytest.mark.torch
def test_other_types_are_kept(tmp_path, torch):
    values = {
        "int": torch.arange(3),
        "bool": torch.tensor([True]),
        "complex": torch.tensor([1 - 2j]),
    }
    torch.save(values, tmp_path / "x.pt")
    arrays = read_tensors(tmp_path / "x.pt")
    assert {k: v.dtype.kind for k, v in arrays.items()} == {
        "int": "i",
        "bool": "b",
        "complex": "c",
    }
    assert arrays["complex"][0] == 1 - 2j


# Round trips.


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS)
    assert_equal(read_tensors(path), TENSORS)
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.torch
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_torch_round_trip(suffix, tmp_path, torch):
    path = tmp_path / f"x{suffix}"
    write_tensors(path, TENSORS)
    assert_equal(read_tensors(path), TENSORS)
    state = torch.load(path, weights_only=True)
    assert type(state) is dict and state["a.scalar"].shape == ()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.torch
def test_other_torch_files(tmp_path, torch):
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
from migan_jax.weights.tensor_files import read_tensors, write_tensors
from pathlib import Path
path = Path({str(tmp_path)!r}) / "x.safetensors"
write_tensors(path, {{"a": np.ones(3, np.float32)}})
assert read_tensors(path)["a"].sum() == 3
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_files_are_not_written_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'torch"):
        write_tensors(tmp_path / "new" / "y.pt", TENSORS)
    assert os.listdir(tmp_path) == []


# Atomic writing.


SUFFIXES = pytest.mark.parametrize(
    "suffix", [pytest.param(".pt", marks=pytest.mark.torch), ".safetensors"]
)


def interrupt(*args):
    raise KeyboardInterrupt


def write_half(path, content):
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    raise OSError(28, "No space left on device")


@SUFFIXES
def test_full_disk(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"x{suffix}"
    monkeypatch.setattr(type(path), "write_bytes", write_half)
    with pytest.raises(UserError, match="No space left") as caught:
        write_tensors(path, TENSORS)
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == []


@SUFFIXES
def test_interrupted_writing(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(path, TENSORS)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == [path.name]


def test_unwritable_paths(tmp_path):
    (tmp_path / "file").write_text("mine")
    for name in ("file/x.safetensors", "file/a/x.safetensors", "/proc/x.safetensors"):
        path = tmp_path / name
        with pytest.raises(UserError, match=str(path)):
            write_tensors(path, TENSORS)
    with pytest.raises(UserError, match="nnn"):
        write_tensors(tmp_path / ("n" * 300 + ".safetensors"), TENSORS)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "x.safetensors"
    write_tensors(path, TENSORS)
    assert_equal(read_tensors(path), TENSORS)
