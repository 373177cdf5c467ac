"""The verb: what it refuses, and the whole way from a teacher to a picture."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from PIL import Image
from test_config import RECIPES
from variables import saved_network
from verbs import one_sentence, run_here

import migan_jax
from migan_jax import convert, inpaint, train
from migan_jax.config import load_config
from migan_jax.errors import UserError
from migan_jax.families import load_checkpoint, save_checkpoint
from migan_jax.models import comodgan, migan
from migan_jax.training import processes

# What it refuses, before anything long is begun.


def refused(monkeypatch, tmp_path, *arguments, recipe="scenes64"):
    message = run_here(
        monkeypatch,
        train,
        f"--config={recipe}",
        "--smoke",
        f"--workdir={tmp_path / 'run'}",
        *arguments,
    )
    one_sentence(message)
    return message


AT_32 = "--config.resolution=32"  # the least at which something is distilled
NARROW = {"channel_base": 256, "channel_max": 8}


def test_a_teacher_of_another_resolution(monkeypatch, tmp_path):
    teacher = saved_network(comodgan.Generator(16, **NARROW), tmp_path / "teacher")
    message = refused(monkeypatch, tmp_path, f"--config.teacher={teacher}", AT_32)
    assert f"{teacher} works at 16 pixels, but resolution is 32" in message


def test_a_teacher_of_another_kind(monkeypatch, tmp_path):
    teacher = saved_network(migan.Generator(32, **NARROW), tmp_path / "teacher")
    message = refused(monkeypatch, tmp_path, f"--config.teacher={teacher}", AT_32)
    assert "is a migan, but must be a comodgan" in message


def test_a_teacher_that_is_not_there(monkeypatch, tmp_path):
    named = "--config.teacher=nothing.safetensors"
    message = refused(monkeypatch, tmp_path, named, AT_32)
    assert "nothing.safetensors" in message and "--config.teacher=none" in message
    assert "python -m migan_jax.train --config=comodgan_" in message


def test_a_batch_that_does_not_divide(monkeypatch, tmp_path):
    count = len(jax.devices())
    message = refused(monkeypatch, tmp_path, "--config.batch_size=13")
    assert f"batch_size 13 cannot be split over {count} devices" in message
    parts = "--config.parts=2", "--config.mesh.space=2"
    message = refused(monkeypatch, tmp_path, *parts, "--config.batch_size=12")
    assert "2 to an image in 2 parts" in message


def test_a_missing_dataset(monkeypatch, tmp_path):
    message = refused(monkeypatch, tmp_path, "--config.data.source=nowhere/photos")
    assert "migan_jax.prepare PHOTOS nowhere/photos --size=16" in message
    message = refused(monkeypatch, tmp_path, "--config.data.source", "gs://a/b")
    assert "gs://a/b is a bucket" in message and "/mnt/a/b" in message
    assert not (tmp_path / "run").exists()


def test_a_typo(monkeypatch, tmp_path):
    message = refused(monkeypatch, tmp_path, "--config.batchsize=8")
    assert "did you mean batch_size?" in message
    assert not (tmp_path / "run").exists()


def test_a_bucket_is_no_workdir(monkeypatch):
    message = run_here(monkeypatch, train, "--config=scenes64", "--workdir=gs://a/b")
    one_sentence(message, "gs://a/b", "mount it", "/mnt/a/b")


def test_weights_are_no_run(monkeypatch, tmp_path):
    """A converted checkpoint is to begin with, not to go on in."""
    saved_network(migan.Generator(16, **NARROW), tmp_path / "run")
    message = refused(monkeypatch, tmp_path, "--config.optimizer.warmup_kimg=1")
    assert f"--init-from={tmp_path / 'run'}" in message
    assert "holds weights, but no run" in message


def test_a_workdir_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "run").write_text("a file")
    assert "cannot be written to" in refused(monkeypatch, tmp_path)


def test_all_or_none_of_the_processes(monkeypatch, tmp_path):
    message = refused(monkeypatch, tmp_path, "--processes=2")
    assert "--coordinator, --processes, --process-id" in message


def test_a_warm_up_without_anything_to_warm_up_for(monkeypatch, tmp_path):
    message = refused(monkeypatch, tmp_path, "--config.optimizer.warmup_kimg=1")
    assert "name one with --init-from" in message
    other = saved_network(migan.Generator(16, **NARROW), tmp_path / "other.safetensors")
    begun = f"--init-from={other}", "--config.optimizer.frozen_levels=1"
    message = refused(monkeypatch, tmp_path, *begun)
    assert "name a run's workdir with --init-from" in message


def test_a_figure_that_there_is_not(monkeypatch, tmp_path):
    message = refused(monkeypatch, tmp_path, "--config.best_by=fud")
    assert "best_by is one of psnr, hole_psnr" in message and "fid" in message


def test_patience_that_is_none_at_all(monkeypatch, tmp_path):
    message = refused(monkeypatch, tmp_path, "--config.patience_kimg=0")
    assert "patience_kimg is 0.0, but must be above 0" in message


def test_unknown_arguments(monkeypatch, tmp_path, capsys):
    arguments = "--config=scenes64", f"--workdir={tmp_path}", "--batch=3"
    assert run_here(monkeypatch, train, *arguments) == 2
    assert "there is no flag --batch" in capsys.readouterr().err
    arguments = "--config=scenes64", f"--workdir={tmp_path}", "--config.KEY=3"
    one_sentence(run_here(monkeypatch, train, *arguments), "--config.KEY")


@pytest.mark.parametrize(
    "recipe, smoke, expected",
    [
        ("configs/places512.py", False, "runs/places512"),
        ("places256:baseline", False, "runs/places256-baseline"),
        ("/elsewhere/mine.py:a/b c", True, "runs/mine-a_b_c-smoke"),
    ],
)
def test_a_workdir_of_the_recipes_name(recipe, smoke, expected, monkeypatch):
    assert train.default_workdir(recipe, smoke) == Path(expected)
    words = ["train", f"--config={recipe}", *(["--smoke"] if smoke else [])]
    monkeypatch.setattr(sys, "argv", words)
    arguments = train.parse_arguments()
    assert arguments.workdir == Path(expected) and arguments.anew == smoke
    monkeypatch.setattr(sys, "argv", [*words, "--workdir=there"])
    assert not train.parse_arguments().anew


def test_a_smoke_test_does_not_go_on_with_an_earlier_one(tmp_path):
    """Which would test nothing. Nobody else's files are removed while they are used."""
    checkpoint = tmp_path / "run" / "checkpoints" / "2"
    checkpoint.mkdir(parents=True)
    with processes.workdir_held(tmp_path / "run"):
        with pytest.raises(UserError, match="in use by another run"):
            with processes.workdir_held(tmp_path / "run", anew=True):
                pass
    assert checkpoint.exists()
    with processes.workdir_held(tmp_path / "run", anew=True):
        assert list((tmp_path / "run").rglob("*")) == [checkpoint.parent]


def test_the_workdir_is_said_first(monkeypatch, tmp_path, capsys):
    refused(monkeypatch, tmp_path, "--config.data.source=nowhere")
    assert capsys.readouterr().err.splitlines()[0] == f"workdir: {tmp_path / 'run'}"


def test_settings_are_named_with_an_equals_sign_or_a_space(monkeypatch):
    words = "--config=a --config.x.y=1=2 --config.z 3 --config.w --smoke --config.last"
    monkeypatch.setattr(sys, "argv", ["train", *words.split()])
    arguments = train.parse_arguments()
    assert arguments.settings == ["x.y=1=2", "z=3", "w=", "last="] and arguments.smoke


def test_the_help_shows_commands_as_they_are_typed(monkeypatch, capsys):
    assert run_here(monkeypatch, train, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("\\") for line in lines) == 2


def test_weights_to_begin_with_are_looked_at_first(monkeypatch, tmp_path):
    """Before anything is computed: nothing is compiled here at all."""
    monkeypatch.setattr(jax, "jit", None)
    message = refused(monkeypatch, tmp_path, "--init-from=nothing.pt")
    assert "no checkpoint at nothing.pt" in message


def test_weights_of_another_kind_to_begin_with(monkeypatch, tmp_path):
    other = saved_network(migan.Generator(32, **NARROW), tmp_path / "other")
    message = refused(monkeypatch, tmp_path, f"--init-from={other}")
    assert "migan of 32 pixels" in message and "trains a migan of 16" in message
    wide = saved_network(migan.Generator(16, 512, 16), tmp_path / "wide")
    message = refused(monkeypatch, tmp_path, f"--init-from={wide}")
    assert "other sizes than the configuration's" in message
    alone = saved_network(migan.Generator(16, **NARROW), tmp_path / "alone")
    begun = f"--init-from={alone}", "--config.optimizer.frozen_levels=1"
    message = refused(monkeypatch, tmp_path, *begun)
    assert "keeps levels of a discriminator that has learned" in message


# The whole way.


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


# All programs of every recipe are made by tests/test_config.py; one of each family runs
# below.
@pytest.mark.full
@pytest.mark.parametrize("recipe", [*RECIPES, "places256:baseline"])
def test_every_recipe_runs_two_steps(recipe, teacher, cache, tmp_path):
    """Those with a teacher distil from a small one."""
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
    said = "teacher: none (config.teacher)" in ended.stderr
    assert said == (config.system == "migan" and not config.teacher)
    assert (workdir / "samples" / "step_00000002.png").exists()


@pytest.mark.slow
@pytest.mark.torch
def test_from_a_teacher_to_a_picture(teacher, cache, tmp_path, monkeypatch, capsys):
    """Distil, export the EMA in the released form, load, inpaint."""
    student = tmp_path / "student"
    given = f"--config.teacher={teacher}", AT_32, "--config.total_kimg=0.04"
    ended = smoke("places256", student, cache, *given)
    assert ended.returncode == 0, ended.stderr
    assert runs.steps(student)[-1] == 5

    released = tmp_path / "student.pt"
    assert run_here(monkeypatch, convert, student, released, "--check") == 0
    model = migan_jax.load(released)
    assert model.network.reparam.form == "fused"
    ema = runs.saved(student)["exported"]["generator"]["params"]
    live = runs.saved(student)["params"]["params"]["generator"]
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
def test_beginning_with_a_run_and_with_a_file(cache, tmp_path):
    """A run gives both networks, a file the generator; what starts cold is said."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert runs.train(first, 2, cache).returncode == 0
    still = {"optimizer.learning_rate": 1e-30}
    ended = runs.train(second, 2, cache, f"--init-from={first}", **still)
    assert "generator and discriminator; starting cold: all optimisers" in ended.stderr
    begun, ended_with = runs.saved(second), runs.saved(first)
    jax.tree.map(
        np.testing.assert_array_equal,
        begun["exported"]["generator"]["params"],
        ended_with["exported"]["generator"]["params"],
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        begun["params"]["params"]["discriminator"],
        ended_with["params"]["params"]["discriminator"],
    )
    fused = tmp_path / "fused.safetensors"
    save_checkpoint(load_checkpoint(first), fused, "fused")
    ended = runs.train(third, 2, cache, f"--init-from={fused}", **still)
    assert "generator; starting cold: discriminator and all optimisers" in ended.stderr
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32)
    ours, theirs = (
        np.asarray(migan_jax.load(path).forward(x)) for path in (third, fused)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    again = runs.train(third, 2, cache, f"--init-from={fused}", **still)
    assert f"--init-from={fused} is left aside" in again.stderr


@pytest.mark.slow
def test_a_run_without_progress_ends(cache, tmp_path, monkeypatch):
    """The best checkpoint is kept, and what the run says at last can be done."""
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
    sentence = f"hole_l1 has not improved for 0.02 kimg: the best, {best:.4g}, was that"
    assert sentence in ended.stdout
    (step,) = {line["step"] for line in runs.metrics(workdir)[-1:]}
    assert step < 20
    best = workdir / "checkpoints" / str(runs.steps(workdir)[0])
    assert migan_jax.load(best).network.resolution == 8
    again = runs.train(workdir, 100, cache, **settings)
    assert "has not improved" in again.stdout and runs.steps(workdir)[-1] == step

    command = again.stdout.partition("python -m migan_jax.inpaint")[2]
    arguments = command.replace("\\", "").split()
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, inpaint, *arguments) == 0
    picture, example = (
        np.asarray(Image.open(path))
        for path in (tmp_path / "inpainted.png", workdir / "samples" / "example.png")
    )
    hole = np.asarray(Image.open(workdir / "samples" / "example_mask.png")) > 0
    assert hole.any() and picture.shape == example.shape
    np.testing.assert_array_equal(picture[~hole], example[~hole])
    assert (workdir / "curves.png").stat().st_size > 1000


@pytest.mark.full
def test_a_run_that_diverges_is_stopped_with_its_last_checkpoint(cache, tmp_path):
    workdir = tmp_path / "run"
    assert runs.train(workdir, 4, cache).returncode == 0
    before = runs.saved(workdir)
    settings = {"optimizer.learning_rate": 1e38, "nonfinite_steps": 5}
    ended = runs.train(workdir, 1000, cache, "--force-resume", **settings)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "has not been finite for 5 steps" in ended.stderr.splitlines()[-1]
    assert runs.steps(workdir) == [4]
    jax.tree.map(np.testing.assert_array_equal, runs.saved(workdir), before)
