"""Benchmarks that train: they run, and their tables are correct."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = (
    "resolution=32",
    "batch_size=8",
    "networks.channel_base=256",
    "networks.channel_max=8",
    "data.held_out=8",
    "save_every_steps=1",
)


@pytest.fixture
def script(monkeypatch):
    """Import a benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: __import__(name)


def test_ablation_table(script):
    metrics = {
        "mean colour": [10.0, 12.0],
        "baseline": [11.0, 13.0],
        "reparam": [11.5, 13.5],
        "reparam_kd": [11.5, 14.5],
        "teacher": [20.0, 20.0],
    }
    rows = {row.pop(""): row for row in script("ablation").make_rows(metrics)}
    assert list(rows) == list(metrics)
    assert rows["baseline"]["mean dB"] == 12 and rows["baseline"]["over before"] == "-"
    assert rows["baseline"]["sd"] == pytest.approx(2**0.5)
    assert rows["reparam"]["over before"] == 0.5 and rows["reparam"]["its sd"] == 0
    assert rows["reparam_kd"]["over before"] == 0.5
    assert rows["reparam_kd"]["its sd"] == pytest.approx(0.5**0.5)
    assert rows["teacher"]["over before"] == "-"
    assert rows["reparam_kd"]["seed 1"] == 14.5


def run(module, monkeypatch, tmp_path, *options):
    """Run a benchmark with tiny networks, and return its table."""
    train = module.train

    def train_tiny(recipe, workdir, settings, *arguments):
        train(recipe, workdir, [*settings, *TINY], *arguments)

    monkeypatch.setattr(module, "train", train_tiny)
    table = tmp_path / "table.json"
    folders = f"--folder={tmp_path / 'runs'}", f"--json={table}"
    monkeypatch.setattr(sys, "argv", [module.__name__, *folders, *options])
    module.main()
    return json.loads(table.read_text())


@pytest.mark.full
def test_ablation(script, monkeypatch, tmp_path):
    options = "--seeds=1", "--kimg=0.016"
    rows = run(script("ablation"), monkeypatch, tmp_path, *options)
    assert len(rows) == 5 and all(row["mean dB"] > 0 for row in rows)
