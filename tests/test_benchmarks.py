"""The benchmarks run; they stop if their alternatives disagree."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("pytorch_fid")

import migan_jax

# Benchmarks are not installed, and each takes seconds to start.
pytestmark = [pytest.mark.torch, pytest.mark.full]

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = {
    "forward": ["--resolutions", "16", "--batches", "1", "2"],
    "operations": ["--shapes", "2x8x8x4"],
    "imputation_forward": "--shapes 1x16x16x8 --generators 16x16".split(),
    "adaptive_conv": ["--shapes", "1x8x6x4"],
    "hypergradient": (
        "--recipe=distillation_scenes64:net3 --modes unrolled first_order --settings "
        "resolution=16 batch_size=1 distillation.channels=2"
    ).split(),
    "inpaint": ["--photos", "900x700", "--resolution", "16"],
    "data": ["--sizes", "16", "--batches", "2"],
    "onnx": "--resolutions 16 --width=0.03125 --photos 40x30".split(),
    "evaluate": ["--size=32", "--batch=2", "--batches=3"],
    "scaling": "--resolution=32 --meshes 1x1 2x2".split(),
    "syncing": "--smoke --photos=2 --side=32".split(),
    # Without the variant `compiled`, which takes minutes at any size.
    "train_step": "--resolution=32 --width=0.03125 --variants ours eager".split(),
}


def run(name, *options):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options]
    # Compiling takes longer than measuring.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", TINY)
def test_benchmark_runs(name, tmp_path):
    path = tmp_path / "table.json"
    run(name, *TINY[name], "--repeats=1", "--threads=1", f"--json={path}")
    rows = json.loads(path.read_text())
    assert rows
    for row in rows:
        assert all(value > 0 for value in row.values() if isinstance(value, float))


def test_taught_network_can_be_loaded(tmp_path):
    path = tmp_path / "taught.safetensors"
    tiny = "--resolution=32", "--width=0.03125", "--steps=4", "--scenes=3"
    run("teach", str(path), *tiny)
    model = migan_jax.load(path)
    assert model.network.resolution == 32
    assert np.isfinite(model.forward(np.zeros((1, 32, 32, 4), np.float32))).all()
