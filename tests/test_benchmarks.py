"""The benchmarks run, and their alternatives agree (they stop if not)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("pytorch_fid")

pytestmark = [pytest.mark.torch, pytest.mark.slow]

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = {
    "forward": ["--resolutions", "16", "--batches", "1", "2"],
    "operations": ["--shapes", "2x8x8x4"],
    "inpaint": ["--photos", "900x700", "--resolution", "16"],
    "data": ["--sizes", "16", "--batches", "2"],
    "onnx": "--resolutions 16 --width=0.03125 --photos 40x30".split(),
    "evaluate": ["--size=32", "--batch=2", "--batches=3"],
    # Not `compiled`, which takes minutes at any size.
    "train_step": "--resolution=32 --width=0.03125 --variants ours eager".split(),
}


@pytest.mark.parametrize("name", TINY)
def test_benchmark_runs(name, tmp_path):
    path = tmp_path / "table.json"
    options = [*TINY[name], "--repeats=1", "--threads=1", f"--json={path}"]
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options]
    # What is compiled takes longer than what is measured.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    assert rows
    for row in rows:
        assert all(value > 0 for value in row.values() if isinstance(value, float))
