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


def test_imputation_ladder_tables(script, tmp_path):
    """Tables and curves of finished runs, of which one has diverged."""
    ladder = script("imputation_ladder")
    saved = {"penalties": {}, "architecture": {}}
    for table, runs in saved.items():
        for place, row in enumerate(ladder.TABLES[table]):
            for seed in range(2):
                run = {"steps": 3, "hole_psnr": 15.0 + place + seed}
                run["mean_colour_psnr"] = 12.0 + seed
                if table == "penalties":
                    run |= {"hole_psnr": None} if place == 0 else {}
                    values = [1.5, 2.5, None if place == 0 else 3.5]
                    run["diverged"] = place == 0
                    run["curves"] = {
                        name: [[1, 2, 3], values] for name in ladder.CURVES
                    }
                runs[f"{row}-{seed}"] = run
    path = tmp_path / "ladder.json"
    ladder.save(path, saved)
    assert "[1, 2, 3]" in path.read_text() and json.loads(path.read_text()) == saved
    penalties, architecture = (
        {row.pop(""): row for row in ladder.make_rows(table, runs)}
        for table, runs in saved.items()
    )
    assert list(penalties) == ["mean colour", *ladder.TABLES["penalties"]]
    assert penalties["everywhere"]["diverged"] == 2
    assert penalties["everywhere"]["mean dB"] == "-"
    assert penalties["one_sided"]["diverged"] == 0
    assert penalties["one_sided"]["norm"] == 3.5
    assert architecture["mean colour"]["mean dB"] == 12.5
    assert architecture["e"]["over e"] == "-" and architecture["e"]["seed 1"] == 16
    assert (
        architecture["e_conv"]["over e"] == 1 and architecture["e_conv"]["its sd"] == 0
    )
    ladder.draw(saved["penalties"]).savefig(tmp_path / "curves.jpg", dpi=30)


@pytest.mark.full
def test_imputation_ladder(script, monkeypatch, tmp_path):
    ladder = script("imputation_ladder")
    tables = {t: dict(list(rows.items())[-1:]) for t, rows in ladder.TABLES.items()}
    monkeypatch.setattr(ladder, "TABLES", tables)
    monkeypatch.setattr(ladder, "ADVERSARIAL", ["losses.l1=0", "batch_size=8"])
    monkeypatch.setattr(
        ladder, "time_steps", lambda: dict.fromkeys(tables["architecture"], 1000.0)
    )
    options = "--seeds=1", "--steps=2", f"--minutes={2 / 60}"
    saved = run(ladder, monkeypatch, tmp_path, *options)
    (penalty,), (architecture,) = (saved[table].values() for table in tables)
    assert penalty["steps"] == architecture["steps"] == 2
    assert architecture["hole_psnr"] > 0 and penalty["hole_psnr"] > 0
    assert penalty["curves"]["eval/hole_psnr"][0] == [0, 1, 2]
    monkeypatch.setattr(ladder, "train", None)  # finished runs are not repeated
    monkeypatch.setattr(sys, "argv", [*sys.argv, f"--plot={tmp_path / 'curves.jpg'}"])
    ladder.main()
    assert (tmp_path / "curves.jpg").stat().st_size > 5000


def test_distillation_ladder_plans_and_tables(script, tmp_path):
    """Runs take as long, whatever their stages; tables are those of finished seeds."""
    ladder = script("distillation_ladder")
    recipes = ladder.TABLES["distillation"]
    ms = {"pre-training": 100.0, "constant meta networks": 200.0, "main": 400.0}
    steps = ladder.plan(recipes["net8"], ms, minutes=2)
    assert steps["pre-training"] <= 40_000 / 100
    assert sum(ms[stage] * count for stage, count in steps.items()) == (
        pytest.approx(120_000, rel=0.01)
    )
    assert ladder.plan(recipes["baseline"], {"main": 50.0}, minutes=2) == {"main": 2400}
    saved = {}
    for table in ladder.TABLES:
        saved[table] = {
            f"{row}-{seed}": {
                "steps": {"main": 3},
                "hole_psnr": 15.0 + place + seed,
                "mean_colour_psnr": 12.0 + seed,
                **({"kernel": 2.0 + seed} if row == "guided" else {}),
            }
            for place, row in enumerate(ladder.TABLES[table])
            for seed in range(2)
        }
    del saved["distillation"]["net8-1"]
    rows, migan = (
        {row.pop(""): row for row in ladder.make_rows(table, runs)}
        for table, runs in saved.items()
    )
    assert rows["mean colour"]["mean dB"] == 12 and rows["net1"]["over"] == 1
    assert rows["baseline"]["over"] == "-" and "seed 1" not in rows["net8"]
    assert migan["guided"]["mean dB"] == 16.5 and migan["guided"]["over"] == 1
    assert migan["guided"]["kernel"] == 2.5 and migan["plain"]["kernel"] == "-"


@pytest.mark.full
def test_distillation_ladder(script, monkeypatch, tmp_path, capsys):
    ladder = script("distillation_ladder")
    tables = {t: dict(list(rows.items())[-1:]) for t, rows in ladder.TABLES.items()}
    tables["distillation"] = {"net3": ladder.TABLES["distillation"]["net3"]}
    monkeypatch.setattr(ladder, "TABLES", tables)
    stages = dict.fromkeys([*ladder.PARTS, "main"], 1000.0)
    monkeypatch.setattr(
        ladder, "time_steps", lambda rows, repeats: dict.fromkeys(rows, stages)
    )
    monkeypatch.setattr(ladder, "mean_features", lambda _, x: x.mean(axis=(1, 2)))
    monkeypatch.setenv("MIGAN_JAX_FEATURES", str(tmp_path))
    options = "--seeds=1", f"--minutes={10 / 60}"
    saved = run(ladder, monkeypatch, tmp_path, *options)
    for table in tables:
        (found,) = saved[table].values()
        assert sum(found["steps"].values()) == 10 and found["hole_psnr"] > 0
        assert (tmp_path / "runs" / f"{table}.png").stat().st_size > 1000
    assert "kernel distance is left out: vgg16" in capsys.readouterr().out
    monkeypatch.setattr(ladder, "train", None)  # finished runs are not repeated
    features = "migan_jax.weights.feature_networks"
    monkeypatch.setattr(f"{features}.find", lambda name: None)
    monkeypatch.setattr(f"{features}.load_features", lambda name, path: None)
    ladder.main()
    (found,) = json.loads((tmp_path / "table.json").read_text())["migan"].values()
    assert found["kernel"] is not None
