"""The verb convert: what it writes, what it says, what it leaves alone."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from test_weights_names import NETWORKS, plausible_tensors, random_tensors
from verbs import one_sentence, run_here

from migan_jax import convert
from migan_jax.families import load_checkpoint
from migan_jax.weights import fusing
from migan_jax.weights.reading import read_tensors, write_tensors


@pytest.fixture(autouse=True)
def skip_without_torch(request):
    if request.node.get_closest_marker("torch"):
        pytest.importorskip("torch")


@pytest.fixture
def run(monkeypatch):
    """Run the verb in this process; returns its exit status, or its message."""
    return functools.partial(run_here, monkeypatch, convert)


def write(folder, name, ending=".safetensors"):
    path = folder / f"{name}{ending}"
    write_tensors(path, plausible_tensors(NETWORKS[name]))
    return path


# What it writes.


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
    folder, file = tmp_path / "made" / "run", tmp_path / "made" / "back.safetensors"
    for origin, output, form in (
        (source, folder, form_of_workdir),
        (folder, file, form_of_file),
    ):
        assert run(origin, output) == 0
        network = load_checkpoint(output).network
        assert getattr(network, "reparam", None) is None or network.reparam.form == form
        read, wrote = capsys.readouterr().out.splitlines()
        assert read.startswith(f"read    {origin}: ")
        assert wrote.startswith(f"wrote   {output}: ")
        assert "16 px" in wrote and wrote.endswith(" parameters")
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


# Checking.


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "output"),
    [("migan_fused", "run"), ("migan_3_kernels", "x.pt"), ("comodgan", "x.pt")],
)
def test_check(name, output, run, tmp_path, capsys):
    source = write(tmp_path, name, ".pt")
    assert run(source, tmp_path / "made" / output, "--check") == 0
    assert "checked largest difference " in capsys.readouterr().out


@pytest.mark.torch
def test_check_into_a_workdir_and_out_of_it(run, tmp_path, capsys):
    source = write(tmp_path, "migan_discriminator")
    assert run(source, tmp_path / "run", "--check") == 0
    assert run(tmp_path / "run", tmp_path / "x.pt", "--check") == 0
    assert capsys.readouterr().out.count("checked") == 2


@pytest.mark.torch
def test_check_fails_where_the_conversion_is_wrong(run, tmp_path, monkeypatch):
    right = fusing.fuse

    def wrong(params):
        fused = right(params)
        kernel = fused["encoder"]["b8"]["conv1"]["depthwise"]["kernel"]
        fused["encoder"]["b8"]["conv1"]["depthwise"]["kernel"] = kernel[::-1]
        return fused

    monkeypatch.setattr(fusing, "fuse", wrong)
    source, output = write(tmp_path, "migan_3_kernels"), tmp_path / "x.safetensors"
    message = run(source, output, "--check")
    one_sentence(message, source, output, "differ", "rounding", "removed")
    assert not output.exists()


def test_output_that_is_not_finite(run, tmp_path, monkeypatch):
    right = fusing.fuse

    def wrong(params):
        fused = right(params)
        bias = fused["synthesis"]["b16"]["torgb"]["bias"]
        fused["synthesis"]["b16"]["torgb"]["bias"] = bias + 3e38 + 3e38
        return fused

    monkeypatch.setattr(fusing, "fuse", wrong)
    source = write(tmp_path, "migan_3_kernels")
    message = run(source, tmp_path / "x.safetensors")
    assert message.startswith("error: ") and "NaN or infinity" in message


def test_check_without_torch_writes_nothing(run, tmp_path, monkeypatch):
    source = write(tmp_path, "migan_fused")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = run(source, tmp_path / "run", "--check")
    one_sentence(message, "--check needs PyTorch", "pip install 'torch")
    assert os.listdir(tmp_path) == [source.name]


# Mistakes: one sentence, and nothing is lost.


def test_output_that_exists(run, tmp_path):
    source = write(tmp_path, "migan_fused")
    before = source.read_bytes()
    other, folder = tmp_path / "other.safetensors", tmp_path / "folder"
    other.write_text("mine")
    folder.mkdir()
    for output in (source, other, folder):
        one_sentence(run(source, output), output, "exists already")
    assert source.read_bytes() == before
    assert other.read_text() == "mine"
    assert os.listdir(folder) == []
    assert len(os.listdir(tmp_path)) == 3


def test_outputs_that_cannot_be(run, tmp_path):
    source = write(tmp_path, "migan_fused")
    one_sentence(run(source, tmp_path / "x.onnx"), "x.onnx", ".safetensors")
    for name in ("x.safetensors", "run"):
        below = source / name
        one_sentence(run(source, below), below, "cannot be written")
    assert os.listdir(tmp_path) == [source.name]


def test_inputs_that_cannot_be(run, tmp_path):
    output = tmp_path / "out" / "x.safetensors"
    one_sentence(run(tmp_path / "absent.pt", output), tmp_path / "absent.pt")
    one_sentence(run(tmp_path, output), tmp_path, "no folder checkpoints/")
    (tmp_path / "x.pkl").write_bytes(b"")
    one_sentence(run(tmp_path / "x.pkl", output), "x.pkl", "would run code")
    half = tmp_path / "half.safetensors"
    half.write_bytes(write(tmp_path, "migan_fused").read_bytes()[:5000])
    one_sentence(run(half, output), half, "damaged")
    assert not output.parent.exists()


def test_forms_that_cannot_be(run, tmp_path):
    discriminator = write(tmp_path, "migan_discriminator")
    output = tmp_path / "x.safetensors"
    message = run(discriminator, output, "--form=fused")
    one_sentence(message, discriminator, "--form=training")
    odd = tmp_path / "odd.safetensors"
    write_tensors(odd, random_tensors(NETWORKS["migan_fused"]))  # of any norm
    message = run(odd, tmp_path / "run")
    one_sentence(message, odd, "have norm 1", "--form=fused")
    assert run(odd, output) == 0  # as it is
    assert sorted(os.listdir(tmp_path)) == sorted(
        [discriminator.name, odd.name, output.name]
    )


def test_misfits_name_the_file(run, tmp_path):
    source = tmp_path / "x.safetensors"
    tensors = random_tensors(NETWORKS["migan_fused"])
    del tensors["synthesis.b8.torgb.bias"]
    write_tensors(source, {**tensors, "extra": np.ones(1, np.float32)})
    message = run(source, tmp_path / "run")
    assert message.splitlines() == [
        f"error: {source} does not fit: it looks like a migan at 16 px, but for 2 "
        f"tensors:",
        "  missing: synthesis.b8.torgb.bias, shape [3]",
        "  not part of this network: extra",
    ]
    assert os.listdir(tmp_path) == [source.name]


def test_interruption(run, tmp_path, monkeypatch):
    source = write(tmp_path, "migan_fused")

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    for name in ("x.safetensors", "run"):
        assert run(source, tmp_path / name) == "interrupted"
    assert os.listdir(tmp_path) == [source.name]


# As a program.


def program(*arguments, shell_limit=None):
    command = [sys.executable, "-m", "migan_jax.convert", *map(str, arguments)]
    if shell_limit:
        command = ["bash", "-c", f'{shell_limit}; exec "$@"', "bash", *command]
    return subprocess.run(command, capture_output=True, text=True)


def test_full_disk(tmp_path):
    """A limit of 4 KiB a file stands for it."""
    source = write(tmp_path, "migan_fused")
    ended = program(source, tmp_path / "x.safetensors", shell_limit="ulimit -f 4")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert f"error: {tmp_path / 'x.safetensors'} cannot be written" in ended.stderr
    assert os.listdir(tmp_path) == [source.name]


def test_help_is_quick():
    """It imports neither JAX nor anything else that is large."""
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
