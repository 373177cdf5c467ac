"""The verb: its errors, and training end to end, from a teacher to an inpainting."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from PIL import Image
from test_config import RECIPES
from variables import saved_network
from verbs import assert_error_line, run_here

import migan_jax
from migan_jax import convert, inpaint, train
from migan_jax.config import load_config
from migan_jax.errors import UserError
from migan_jax.families import load_checkpoint, save_checkpoint
from migan_jax.models import comodgan, migan
from migan_jax.training import processes

# Errors, before anything long is started.


def run_and_fail(monkeypatch, tmp_path, *arguments, recipe="scenes64"):
    message = run_here(
        monkeypatch,
        train,
        f"--config={recipe}",
        "--smoke",
        f"--workdir={tmp_path / 'run'}",
        *arguments,
    )
    assert_error_line(message)
    return message


AT_32 = "--config.resolution=32"  # the minimum at which there is distillation
NARROW = {"channel_base": 256, "channel_max": 8}


def test_teacher_of_another_resolution(monkeypatch, tmp_path):
    teacher = saved_network(
        comodgan.CoModGANGenerator(16, **NARROW), tmp_path / "teacher"
    )
    message = run_and_fail(monkeypatch, tmp_path, f"--config.teacher={teacher}", AT_32)
    assert str(teacher) in message and "16" in message and "32" in message


def test_teacher_of_another_kind(monkeypatch, tmp_path):
    teacher = saved_network(migan.MIGANGenerator(32, **NARROW), tmp_path / "teacher")
    message = run_and_fail(monkeypatch, tmp_path, f"--config.teacher={teacher}", AT_32)
    assert str(teacher) in message and "comodgan" in message


def test_missing_teacher(monkeypatch, tmp_path):
    teacher = "--config.teacher=nothing.safetensors"
    message = run_and_fail(monkeypatch, tmp_path, teacher, AT_32)
    assert "nothing.safetensors" in message and "--config.teacher=none" in message
    assert "python -m migan_jax.train --config=comodgan_" in message


def test_batch_that_does_not_divide(monkeypatch, tmp_path):
    message = run_and_fail(monkeypatch, tmp_path, "--config.batch_size=13")
    assert "batch_size 13" in message and f"{len(jax.devices())} devices" in message
    split = "--config.microbatches=2", "--config.mesh.space=2"
    message = run_and_fail(monkeypatch, tmp_path, *split, "--config.batch_size=12")
    assert "batch_size 12" in message and "2 microbatches" in message


def test_missing_dataset(monkeypatch, tmp_path):
    message = run_and_fail(monkeypatch, tmp_path, "--config.data.source=nowhere/photos")
    assert "migan_jax.prepare PHOTOS nowhere/photos --size=16" in message
    message = run_and_fail(monkeypatch, tmp_path, "--config.data.source", "gs://a/b")
    assert "gs://a/b" in message and "/mnt/a/b" in message
    assert not (tmp_path / "run").exists()


def test_misspelt_setting(monkeypatch, tmp_path):
    message = run_and_fail(monkeypatch, tmp_path, "--config.batchsize=8")
    assert "batch_size" in message
    assert not (tmp_path / "run").exists()


def test_workdir_at_an_address(monkeypatch):
    message = run_here(monkeypatch, train, "--config=scenes64", "--workdir=hdfs://a/b")
    assert_error_line(message, "hdfs://a/b")


def test_workdir_with_weights_only(monkeypatch, tmp_path):
    """A converted checkpoint cannot be resumed; --init-from reads it."""
    saved_network(migan.MIGANGenerator(16, **NARROW), tmp_path / "run")
    message = run_and_fail(monkeypatch, tmp_path, "--config.optimizer.warmup_kimg=1")
    assert f"--init-from={tmp_path / 'run'}" in message


def test_workdir_that_is_a_file(monkeypatch, tmp_path):
    (tmp_path / "run").write_text("a file")
    assert f"--workdir={tmp_path / 'run'}" in run_and_fail(monkeypatch, tmp_path)


def test_incomplete_process_flags(monkeypatch, tmp_path):
    message = run_and_fail(monkeypatch, tmp_path, "--processes=2")
    assert "--coordinator" in message and "--process-id" in message


def test_warm_up_without_pretrained_weights(monkeypatch, tmp_path):
    message = run_and_fail(monkeypatch, tmp_path, "--config.optimizer.warmup_kimg=1")
    assert "warmup_kimg" in message and "--init-from" in message
    other = saved_network(
        migan.MIGANGenerator(16, **NARROW), tmp_path / "other.safetensors"
    )
    frozen = f"--init-from={other}", "--config.optimizer.frozen_levels=1"
    message = run_and_fail(monkeypatch, tmp_path, *frozen)
    assert "frozen_levels" in message and "--init-from" in message


def test_unknown_metric(monkeypatch, tmp_path):
    message = run_and_fail(monkeypatch, tmp_path, "--config.best_by=fud")
    assert "best_by" in message and "hole_psnr" in message and "fid" in message


def test_zero_patience(monkeypatch, tmp_path):
    message = run_and_fail(monkeypatch, tmp_path, "--config.patience_kimg=0")
    assert "patience_kimg" in message and "0.0" in message


def test_unknown_arguments(monkeypatch, tmp_path, capsys):
    arguments = "--config=scenes64", f"--workdir={tmp_path}", "--batch=3"
    assert run_here(monkeypatch, train, *arguments) == 2
    assert "--batch" in capsys.readouterr().err
    arguments = "--config=scenes64", f"--workdir={tmp_path}", "--config.KEY=3"
    assert_error_line(run_here(monkeypatch, train, *arguments), "--config.KEY")


@pytest.mark.parametrize(
    "recipe, smoke, expected",
    [
        ("configs/places512.py", False, "runs/places512"),
        ("places256:baseline", False, "runs/places256-baseline"),
        ("/elsewhere/mine.py:a/b c", True, "runs/mine-a_b_c-smoke"),
    ],
)
def test_default_workdir(recipe, smoke, expected, monkeypatch):
    assert train.default_workdir(recipe, smoke) == Path(expected)
    words = ["train", f"--config={recipe}", *(["--smoke"] if smoke else [])]
    monkeypatch.setattr(sys, "argv", words)
    arguments = train.parse_arguments()
    assert arguments.workdir == Path(expected) and arguments.clear == smoke
    monkeypatch.setattr(sys, "argv", [*words, "--workdir=there"])
    assert not train.parse_arguments().clear


def test_smoke_test_clears_its_workdir(tmp_path):
    """Resuming would test nothing. A locked workdir is not cleared."""
    checkpoint = tmp_path / "run" / "checkpoints" / "2"
    checkpoint.mkdir(parents=True)
    with processes.lock_workdir(tmp_path / "run"):
        with pytest.raises(UserError, match=str(tmp_path / "run")):
            with processes.lock_workdir(tmp_path / "run", clear=True):
                pass
    assert checkpoint.exists()
    with processes.lock_workdir(tmp_path / "run", clear=True):
        assert list((tmp_path / "run").rglob("*")) == [checkpoint.parent]


def test_workdir_is_logged_first(monkeypatch, tmp_path, capsys):
    run_and_fail(monkeypatch, tmp_path, "--config.data.source=nowhere")
    assert capsys.readouterr().err.splitlines()[0] == f"workdir: {tmp_path / 'run'}"


def test_settings_with_an_equals_sign_or_a_space(monkeypatch):
    words = "--config=a --config.x.y=1=2 --config.z 3 --config.w --smoke --config.last"
    monkeypatch.setattr(sys, "argv", ["train", *words.split()])
    arguments = train.parse_arguments()
    assert arguments.settings == ["x.y=1=2", "z=3", "w=", "last="] and arguments.smoke


def test_help_shows_commands_with_line_breaks(monkeypatch, capsys):
    assert run_here(monkeypatch, train, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("\\") for line in lines) == 2


def test_pretrained_weights_are_checked_before_compiling(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "jit", None)
    message = run_and_fail(monkeypatch, tmp_path, "--init-from=nothing.pt")
    assert "nothing.pt" in message


def test_pretrained_weights_that_do_not_fit(monkeypatch, tmp_path):
    other = saved_network(migan.MIGANGenerator(32, **NARROW), tmp_path / "other")
    message = run_and_fail(monkeypatch, tmp_path, f"--init-from={other}")
    assert str(other) in message and "32" in message and "16" in message
    wide = saved_network(migan.MIGANGenerator(16, 512, 16), tmp_path / "wide")
    message = run_and_fail(monkeypatch, tmp_path, f"--init-from={wide}")
    assert str(wide) in message and "networks.*" in message
    alone = saved_network(migan.MIGANGenerator(16, **NARROW), tmp_path / "alone")
    frozen = f"--init-from={alone}", "--config.optimizer.frozen_levels=1"
    message = run_and_fail(monkeypatch, tmp_path, *frozen)
    assert "frozen_levels" in message


# End to end.


@pytest.fixture(scope="module")
def teacher(cache, tmp_path_factory):
    """A Co-Mod-GAN, trained for two steps."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    ended = smoke("comodgan_places256", workdir, cache, AT_32)
    assert ended.returncode == 0, ended.stderr
    return workdir


def smoke(recipe, workdir, cache, *more):
    return runs.run(
        "migan_jax.train",
        f"--config={recipe}",
        "--smoke",
        f"--workdir={workdir}",
        *more,
        cache=cache,
    )


# tests/test_config.py traces all programs of every recipe; below, one of each family
# runs.
@pytest.mark.full
@pytest.mark.parametrize("recipe", [*RECIPES, "places256:baseline"])
def test_every_recipe_runs_two_steps(recipe, teacher, cache, tmp_path):
    """Recipes with a teacher distil from a small one."""
    workdir, more = tmp_path / "run", []
    config = load_config(recipe, [], False)
    if config.teacher:
        more = [f"--config.teacher={teacher}", AT_32]
    ended = smoke(recipe, workdir, cache, *more)
    assert ended.returncode == 0, ended.stderr
    lines = runs.metrics(workdir)
    assert [line["step"] for line in lines] == [0, 1, 1, 2, 2]
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert ("g/distillation" in lines[1]) == bool(config.teacher)
    has_no_teacher = "teacher: none (config.teacher)" in ended.stderr
    assert has_no_teacher == (config.system == "migan" and not config.teacher)
    assert (workdir / "samples" / "step_00000002.png").exists()
    assert "generator/" in (workdir / "parameters.txt").read_text()


@pytest.mark.slow
@pytest.mark.torch
def test_from_a_teacher_to_an_inpainting(teacher, cache, tmp_path, monkeypatch, capsys):
    """Distil, export the EMA in the released form, load, inpaint."""
    student = tmp_path / "student"
    options = f"--config.teacher={teacher}", AT_32, "--config.total_kimg=0.04"
    ended = smoke("places256", student, cache, *options)
    assert ended.returncode == 0, ended.stderr
    assert runs.steps(student)[-1] == 5

    released = tmp_path / "student.pt"
    assert run_here(monkeypatch, convert, student, released, "--check") == 0
    model = migan_jax.load(released)
    assert model.network.reparam.form == "fused"
    ema = runs.read_checkpoint(student)["exported"]["generator"]["params"]
    live = runs.read_checkpoint(student)["params"]["params"]["generator"]
    exported, trained, loaded = (
        tree["encoder"]["b32"]["conv1"]["depthwise"]["bias"]
        for tree in (ema, live, model.params)
    )
    np.testing.assert_array_equal(loaded, exported)
    assert not np.array_equal(loaded, trained)

    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    hole = np.zeros((50, 70), bool)
    hole[20:30, 30:45] = True
    filled = model.inpaint(photo, hole, feather=0)
    assert np.array_equal(filled[~hole], photo[~hole])
    assert (filled[hole] != photo[hole]).mean() > 0.5


@pytest.mark.slow
def test_init_from_a_run_and_a_file(cache, tmp_path):
    """A run provides both networks, a file only the generator."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert runs.train(first, 2, cache).returncode == 0
    constant = {"optimizer.learning_rate": 1e-30}
    ended = runs.train(second, 2, cache, f"--init-from={first}", **constant)
    assert "generator and discriminator; randomly initialised: all" in ended.stderr
    before, after = runs.read_checkpoint(first), runs.read_checkpoint(second)
    jax.tree.map(
        np.testing.assert_array_equal,
        after["exported"]["generator"]["params"],
        before["exported"]["generator"]["params"],
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        after["params"]["params"]["discriminator"],
        before["params"]["params"]["discriminator"],
    )
    fused = tmp_path / "fused.safetensors"
    save_checkpoint(load_checkpoint(first), fused, "fused")
    ended = runs.train(third, 2, cache, f"--init-from={fused}", **constant)
    assert "generator; randomly initialised: discriminator and all" in ended.stderr
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32)
    ours, theirs = (
        np.asarray(migan_jax.load(path).forward(x)) for path in (third, fused)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    resumed = runs.train(third, 2, cache, f"--init-from={fused}", **constant)
    assert f"ignoring --init-from={fused}" in resumed.stderr


@pytest.mark.slow
def test_early_stopping(cache, tmp_path, monkeypatch):
    """The best checkpoint is kept, and the command that the run prints works."""
    workdir = tmp_path / "run"
    settings = {
        "patience_kimg": 0.02,  # five steps: the second evaluation after the best
        "optimizer.learning_rate": 1e-30,
        "keep_last": 1,
        "keep_best": 1,
        "best_by": "hole_l1",
    }
    ended = runs.train(workdir, 100, cache, **settings)
    assert ended.returncode == 0, ended.stderr
    best = runs.metrics(workdir)[0]["eval/hole_l1"]
    assert "stopped early" in ended.stdout and "hole_l1" in ended.stdout
    assert f"{best:.4g}" in ended.stdout and "0.02 kimg" in ended.stdout
    (step,) = {line["step"] for line in runs.metrics(workdir)[-1:]}
    assert step < 20
    best = workdir / "checkpoints" / str(runs.steps(workdir)[0])
    assert migan_jax.load(best).network.resolution == 8
    again = runs.train(workdir, 100, cache, **settings)
    assert "stopped early" in again.stdout and runs.steps(workdir)[-1] == step

    command = again.stdout.partition("python -m migan_jax.inpaint")[2]
    arguments = command.replace("\\", "").split()
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, inpaint, *arguments) == 0
    output, example = (
        np.asarray(Image.open(path))
        for path in (tmp_path / "inpainted.png", workdir / "samples" / "example.png")
    )
    hole = np.asarray(Image.open(workdir / "samples" / "example_mask.png")) > 0
    assert hole.any() and output.shape == example.shape
    np.testing.assert_array_equal(output[~hole], example[~hole])
    assert (workdir / "curves.png").stat().st_size > 1000


@pytest.mark.full
def test_diverging_run_stops_and_keeps_its_checkpoint(cache, tmp_path):
    workdir = tmp_path / "run"
    assert runs.train(workdir, 4, cache).returncode == 0
    before = runs.read_checkpoint(workdir)
    settings = {"optimizer.learning_rate": 1e38, "nonfinite_steps": 5}
    ended = runs.train(workdir, 1000, cache, "--force-resume", **settings)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    message = ended.stderr.splitlines()[-1]
    assert "optimizer.learning_rate" in message and "5 steps" in message
    assert runs.steps(workdir) == [4]
    jax.tree.map(np.testing.assert_array_equal, runs.read_checkpoint(workdir), before)
