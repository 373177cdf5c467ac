"""The verb `convert`: its outputs, its messages, and what it leaves unchanged."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from test_weights_names import NETWORKS, plausible_tensors, random_tensors
from verbs import assert_error_line, run_here

from migan_jax import convert
from migan_jax.families import load_checkpoint
from migan_jax.weights import kernel_forms
from migan_jax.weights.tensor_files import read_tensors, write_tensors


@pytest.fixture(autouse=True)
def skip_without_torch(request):
    if request.node.get_closest_marker("torch"):
        pytest.importorskip("torch")


@pytest.fixture
def run(monkeypatch):
    """Run the verb in this process; return its exit status, or its error message."""
    return functools.partial(run_here, monkeypatch, convert)


def write(folder, name, suffix=".safetensors"):
    path = folder / f"{name}{suffix}"
    write_tensors(path, plausible_tensors(NETWORKS[name]))
    return path


# Outputs.


@pytest.mark.parametrize(
    ("name", "form_of_workdir", "form_of_file"),
    [
        ("migan_fused", "collapsed", "fused"),
        ("migan_3_kernels", "collapsed", "fused"),
        ("migan_discriminator", "collapsed", "collapsed"),
        ("comodgan", None, None),
        ("comodgan_discriminator", None, None),
    ],
)
def test_default_forms(name, form_of_workdir, form_of_file, run, tmp_path, capsys):
    source = write(tmp_path, name)
    folder, file = tmp_path / "new" / "run", tmp_path / "new" / "back.safetensors"
    for origin, output, form in (
        (source, folder, form_of_workdir),
        (folder, file, form_of_file),
    ):
        assert run(origin, output) == 0
        network = load_checkpoint(output).network
        assert getattr(network, "reparam", None) is None or network.reparam.form == form
        read, wrote = capsys.readouterr().out.splitlines()
        assert str(origin) in read and str(output) in wrote and "16 px" in wrote
    back, tensors = read_tensors(file), read_tensors(source)
    if form_of_file is None:
        assert {k: v.tobytes() for k, v in back.items()} == {
            k: v.tobytes() for k, v in tensors.items()
        }
    if name == "migan_fused":
        assert back.keys() == tensors.keys()
        for key, value in tensors.items():
            np.testing.assert_allclose(back[key], value, rtol=1e-5, atol=1e-6)


def test_training_form_of_a_file(run, tmp_path):
    source, output = write(tmp_path, "migan_fused"), tmp_path / "n.safetensors"
    assert run(source, output, "--form=training") == 0
    names = read_tensors(output).keys()
    assert {f"synthesis.b8.torgb.w{index}" for index in range(9)} <= names
    assert "synthesis.b8.torgb.w9" not in names


def test_fused_form_of_a_workdir(run, tmp_path):
    source, output = write(tmp_path, "migan_3_kernels"), tmp_path / "run"
    assert run(source, output, "--form=fused") == 0
    assert load_checkpoint(output).network.reparam.form == "fused"


# --check.


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "output"),
    [("migan_fused", "run"), ("migan_3_kernels", "x.pt"), ("comodgan", "x.pt")],
)
def test_check(name, output, run, tmp_path, capsys):
    source = write(tmp_path, name, ".pt")
    assert run(source, tmp_path / "new" / output, "--check") == 0
    assert "checked" in capsys.readouterr().out


@pytest.mark.torch
def test_check_into_a_workdir_and_out_of_it(run, tmp_path, capsys):
    source = write(tmp_path, "migan_discriminator")
    assert run(source, tmp_path / "run", "--check") == 0
    assert run(tmp_path / "run", tmp_path / "x.pt", "--check") == 0
    assert capsys.readouterr().out.count("checked") == 2


@pytest.mark.torch
def test_check_fails_if_the_conversion_is_wrong(run, tmp_path, monkeypatch):
    right = kernel_forms.fuse

    def wrong(params):
        fused = right(params)
        kernel = fused["encoder"]["b8"]["conv1"]["depthwise"]["kernel"]
        fused["encoder"]["b8"]["conv1"]["depthwise"]["kernel"] = kernel[::-1]
        return fused

    monkeypatch.setattr(kernel_forms, "fuse", wrong)
    source, output = write(tmp_path, "migan_3_kernels"), tmp_path / "x.safetensors"
    message = run(source, output, "--check")
    assert_error_line(message, source, output)
    assert not output.exists()


def test_nonfinite_output(run, tmp_path, monkeypatch):
    right = kernel_forms.fuse

    def wrong(params):
        fused = right(params)
        bias = fused["synthesis"]["b16"]["torgb"]["bias"]
        fused["synthesis"]["b16"]["torgb"]["bias"] = bias + 3e38 + 3e38
        return fused

    monkeypatch.setattr(kernel_forms, "fuse", wrong)
    source = write(tmp_path, "migan_3_kernels")
    message = run(source, tmp_path / "x.safetensors")
    assert message.startswith("error: ") and "NaN" in message


def test_check_without_torch_writes_nothing(run, tmp_path, monkeypatch):
    source = write(tmp_path, "migan_fused")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = run(source, tmp_path / "run", "--check")
    assert_error_line(message, "--check", "pip install 'torch")
    assert os.listdir(tmp_path) == [source.name]


# Mistakes: one line of error, and no file is lost.


def test_existing_output(run, tmp_path):
    source = write(tmp_path, "migan_fused")
    before = source.read_bytes()
    other, folder = tmp_path / "other.safetensors", tmp_path / "folder"
    other.write_text("mine")
    folder.mkdir()
    for output in (source, other, folder):
        assert_error_line(run(source, output), output, "exists")
    assert source.read_bytes() == before
    assert other.read_text() == "mine"
    assert os.listdir(folder) == []
    assert len(os.listdir(tmp_path)) == 3


def test_invalid_outputs(run, tmp_path):
    source = write(tmp_path, "migan_fused")
    assert_error_line(run(source, tmp_path / "x.onnx"), "x.onnx", ".safetensors")
    for name in ("x.safetensors", "run"):
        below = source / name
        assert_error_line(run(source, below), below)
    assert os.listdir(tmp_path) == [source.name]


def test_invalid_inputs(run, tmp_path):
    output = tmp_path / "out" / "x.safetensors"
    assert_error_line(run(tmp_path / "absent.pt", output), tmp_path / "absent.pt")
    assert_error_line(run(tmp_path, output), tmp_path, "checkpoints/")
    (tmp_path / "x.pkl").write_bytes(b"")
    assert_error_line(run(tmp_path / "x.pkl", output), "x.pkl", "run code")
    half = tmp_path / "half.safetensors"
    half.write_bytes(write(tmp_path, "migan_fused").read_bytes()[:5000])
    assert_error_line(run(half, output), half, "damaged")
    assert not output.parent.exists()


def test_invalid_forms(run, tmp_path):
    discriminator = write(tmp_path, "migan_discriminator")
    output = tmp_path / "x.safetensors"
    message = run(discriminator, output, "--form=fused")
    assert_error_line(message, discriminator, "--form=training")
    odd = tmp_path / "odd.safetensors"
    write_tensors(odd, random_tensors(NETWORKS["migan_fused"]))  # norms are not 1
    message = run(odd, tmp_path / "run")
    assert_error_line(message, odd, "norm 1", "--form=fused")
    assert run(odd, output) == 0  # unchanged
    assert sorted(os.listdir(tmp_path)) == sorted(
        [discriminator.name, odd.name, output.name]
    )


def test_mismatches_name_the_file(run, tmp_path):
    source = tmp_path / "x.safetensors"
    tensors = random_tensors(NETWORKS["migan_fused"])
    del tensors["synthesis.b8.torgb.bias"]
    write_tensors(source, {**tensors, "extra": np.ones(1, np.float32)})
    message = run(source, tmp_path / "run")
    head, *problems = message.splitlines()
    assert head.startswith("error: ") and str(source) in head and "2 tensors" in head
    assert problems == [
        "  missing: synthesis.b8.torgb.bias, shape [3]",
        "  not part of this network: extra",
    ]
    assert os.listdir(tmp_path) == [source.name]


def test_interruption(run, tmp_path, monkeypatch):
    source = write(tmp_path, "migan_fused")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    for name in ("x.safetensors", "run"):
        assert run(source, tmp_path / name) == "interrupted"
    assert os.listdir(tmp_path) == [source.name]


# As a process.


def run_process(*arguments, shell_limit=None):
    command = [sys.executable, "-m", "migan_jax.convert", *map(str, arguments)]
    if shell_limit:
        command = ["bash", "-c", f'{shell_limit}; exec "$@"', "bash", *command]
    return subprocess.run(command, capture_output=True, text=True)


def test_full_disk(tmp_path):
    """Simulated by a limit of 4 KiB per file."""
    source = write(tmp_path, "migan_fused")
    ended = run_process(source, tmp_path / "x.safetensors", shell_limit="ulimit -f 4")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert f"error: {tmp_path / 'x.safetensors'}" in ended.stderr
    assert os.listdir(tmp_path) == [source.name]


def test_help_is_quick():
    """It imports no large library."""
    command = [sys.executable, "-X", "importtime", "-m", "migan_jax.convert", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (
        "python -m migan_jax.convert migan_512_places2.pt runs/places" in ended.stdout
    )
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "migan_jax.config" in imported
    assert not imported & {"jax", "flax", "torch", "numpy", "orbax", "safetensors"}


def test_usage_mistakes(run, capsys):
    for arguments in ([], ["only_input.pt"], ["a.pt", "b.pt", "--form=other"]):
        assert run(*arguments) == 2
        assert "usage: python -m migan_jax.convert" in capsys.readouterr().err
