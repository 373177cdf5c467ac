"""A family added as in docs/add_a_family.md works everywhere."""

import dataclasses
import functools
import json
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import toy
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from variables import assert_same_trees
from verbs import assert_error_line, run_here

import migan_jax
from migan_jax import convert, evaluate, export, inpaint, summary
from migan_jax.config import load_config
from migan_jax.errors import UserError
from migan_jax.families import FAMILIES, load_checkpoints, save_checkpoint
from migan_jax.systems.base import Inputs
from migan_jax.training.loop import train
from migan_jax.training.programs import build_system, initial_state, make_timeline
from migan_jax.training.setup import set_up
from migan_jax.training.step import make_step

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "add_a_family.md"
FROZEN = {"guide": toy.load_guide("3").variables}
DEVICES = jax.devices()
STEPS, CHANGE = 10, 4  # in total, and in the first stage


@pytest.fixture(autouse=True, scope="module")
def registered(cache, request):
    """Register the family; use one device, for which programs compile faster."""
    first = DEVICES[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *kind: first)
        patch.setitem(FAMILIES, "toy", toy.TOY)
        for name, value in runs.cache_settings(cache).items():
            before = getattr(jax.config, name)
            jax.config.update(name, value)
            request.addfinalizer(functools.partial(jax.config.update, name, before))
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "toy_scenes.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n"
        "import toy\ntoy.register()\nget_config = toy.get_config\n"
    )
    return path


class Killed(Exception):
    pass


class StopAt:
    """Replaces `StopSignals`: stops or kills the run at a step."""

    def __init__(self, step, kills=False):
        self.step, self.kills = step, kills

    def should_stop(self, step):
        if self.kills and step == self.step:
            raise Killed
        return step == self.step

    def defer(self):
        pass


def continue_run(recipe, workdir, stop=None, *settings, kills=False):
    """Start or resume a run, to its end or to a step; return its outcome."""
    config = load_config(str(recipe), settings, tiny=False)
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    setup = set_up(config, workdir)
    with setup.checkpoints:
        outcome = train(setup, StopAt(stop, kills))
    setup.samples.save_example(workdir)
    return outcome


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    outcome = continue_run(recipe, workdir)
    assert (outcome.step, outcome.saved, outcome.stopped_early) == (STEPS, STEPS, False)
    return workdir


def test_stages_have_different_turns_batches_and_sizes(whole):
    every = map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
    every = [line for line in every if "paint/l1" in line]
    lines = [line for line in runs.metrics(whole) if "paint/l1" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    small, main = lines[:CHANGE], lines[CHANGE:]
    assert not any("critic/loss" in line or "weigh/loss" in line for line in small)
    assert all("critic/loss" in line and "weigh/loss" in line for line in main)
    fade = [line["paint/progress"] for line in lines]
    assert fade == pytest.approx([i / 4 for i in range(4)] + [i / 6 for i in range(6)])
    # After every third step of the run, but not in the first stage.
    assert [n["step"] for n in lines if "penalty/fraction" in n] == [7, 10]
    images = [line["time/images_per_second"] * line["time/step"] for line in every]
    assert images == pytest.approx([12] * CHANGE + [6] * (STEPS - CHANGE), rel=1e-6)


@pytest.mark.parametrize(
    "stops",
    [
        (CHANGE - 1, CHANGE + 1),
        pytest.param((CHANGE,), marks=pytest.mark.full),
        pytest.param((2, CHANGE, 7), marks=pytest.mark.full),
    ],
)
def test_a_run_resumes_before_and_after_a_stage_change(stops, recipe, whole, tmp_path):
    for stop in stops:
        assert continue_run(recipe, tmp_path / "run", stop).step == stop
    continue_run(recipe, tmp_path / "run")
    runs.assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_run_without_an_average(recipe, tmp_path):
    without = "optimizer.ema_halflife_kimg=0"
    for stop in (2, 5):
        assert continue_run(recipe, tmp_path / "run", stop, without).step == stop
    saved = runs.read_checkpoint(tmp_path / "run")
    for role, checkpoint in load_checkpoints(tmp_path / "run").items():
        trained = saved["params"]["params"][role]
        jax.tree.map(np.testing.assert_array_equal, checkpoint.params, trained)


@pytest.mark.parametrize("step", [CHANGE, CHANGE + 1])
def test_a_run_killed_at_a_stage_change_resumes(step, recipe, whole, tmp_path):
    """The state is saved at the change, after `should_stop`."""
    with pytest.raises(Killed):
        continue_run(recipe, tmp_path / "run", step, kills=True)
    assert runs.steps(tmp_path / "run")[-1] == (3 if step == CHANGE else CHANGE)
    continue_run(recipe, tmp_path / "run")
    runs.assert_same(tmp_path / "run", whole)


@pytest.mark.full
def test_a_process_killed_at_a_stage_change_resumes(recipe, cache, tmp_path):
    """In a separate process, by a signal that cannot be handled."""
    arguments = f"--config={recipe}", f"--workdir={tmp_path / 'run'}"
    process = runs.start_verb("migan_jax.train", *arguments, cache=cache)
    for line in process.stderr:
        if "compiling main" in line:
            process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert runs.steps(tmp_path / "run")[-1] in (CHANGE - 1, CHANGE)
    ended = runs.run("migan_jax.train", *arguments, cache=cache)
    assert ended.returncode == 0 and "resuming at step" in ended.stderr, ended.stderr
    undisturbed = runs.run(
        "migan_jax.train", arguments[0], f"--workdir={tmp_path / 'b'}", cache=cache
    )
    assert undisturbed.returncode == 0
    runs.assert_same(tmp_path / "run", tmp_path / "b")


def test_a_run_refuses_another_frozen_network(recipe, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(UserError, match="guide"):
        continue_run(recipe, tmp_path / "run", None, "teacher=7")


# The turns of its main stage, in float64.


@pytest.fixture
def exact(float64, recipe):
    """Return the system, and the main stage's span, a state and a batch."""
    config = load_config(str(recipe), [], tiny=False)
    system = build_system(config, {})

    class Exact(toy.Toy):
        def prepare(self, batch, key, progress):
            return batch

    fields = {f.name: getattr(system, f.name) for f in dataclasses.fields(system)}
    system = Exact(**fields)
    span = make_timeline(config, system).at(CHANGE)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape)) / 4,
        jax.eval_shape(lambda: initial_state(config, system)),
    )
    moments = jax.tree.map(jnp.abs, state.opt_state)  # some are second moments
    state = dataclasses.replace(state, step=jnp.int32(CHANGE), opt_state=moments)
    mask = (rng.random((6, 16, 16, 1)) < 0.7).astype(np.float64)
    image = rng.standard_normal((6, 16, 16, 3)) / 2
    batch = {"image": image, "mask": mask, "points": rng.random((6, 7, 2))}
    return system, span, state, batch | {"sample": np.arange(6)}


def select_turns(span, *names):
    """Return the span with these turns only."""
    groups = [
        tuple(turn for turn in group if turn.name in names)
        for group in span.stage.turns
    ]
    stage = dataclasses.replace(span.stage, turns=tuple(filter(None, groups)))
    return dataclasses.replace(span, stage=stage)


def run_step(system, span, state, batch, **options):
    step = jax.jit(make_step(system, span, **options))
    return step(state, FROZEN, batch, jax.random.key(1))


def assert_close(actual, expected, tolerance=1e-12):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance),
        actual,
        expected,
    )


def test_turns_of_a_group_see_the_same_parameters(exact):
    """Each updates its networks as if alone, but the vectors pass through both."""
    system, span, state, batch = exact
    both, _ = run_step(system, select_turns(span, "paint", "critic"), state, batch)
    paint, _ = run_step(system, select_turns(span, "paint"), state, batch)
    critic, _ = run_step(system, select_turns(span, "critic"), state, batch)
    assert_close(both.params["fine"], paint.params["fine"])
    moved = jax.tree.map(np.subtract, both.params["fine"], state.params["fine"])
    assert np.abs(moved["last"]["bias"]).min() > 1e-3
    # Three iterations: one in the painters' turn, two in the critic's.
    vectors = state.stats["critic"]["vector"]
    for _ in range(3):
        vectors, _ = toy.power_iteration(state.params["critic"]["weight"], vectors)
    assert_close(both.stats["critic"]["vector"], vectors)
    with_stats = dataclasses.replace(state, stats=paint.stats)
    after, _ = run_step(system, select_turns(span, "critic"), with_stats, batch)
    assert_close(both.params["critic"], after.params["critic"])
    assert not np.allclose(
        critic.params["critic"]["weight"], after.params["critic"]["weight"]
    )


def test_devices_do_not_change_results(exact):
    """Eight devices; each image is split over four."""
    system, span, state, batch = exact
    turns = select_turns(span, "paint", "critic")
    alone, metrics = run_step(system, turns, state, batch)
    grid = np.array(DEVICES).reshape(2, 4)
    mesh = Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        state, batch = jax.device_put(state, whole), jax.device_put(batch, split)
        split_state, split_metrics = run_step(system, turns, state, batch)
    assert_close((split_state, split_metrics), (alone, metrics), 1e-9)


def test_microbatches_iterate_vectors_once(exact):
    """Once in each turn, as for the whole batch."""
    system, span, state, batch = exact
    turns = select_turns(span, "paint", "critic")
    whole, _ = run_step(system, turns, state, batch)
    accumulated, _ = run_step(system, turns, state, batch, microbatches=3)
    assert_close(accumulated, whole, 1e-9)


def test_a_bilevel_turn_uses_the_explicit_hypergradient(exact):
    """Compare with reverse mode by hand, through each step of the painters."""
    system, span, state, batch = exact
    updated, _ = run_step(system, select_turns(span, "weigh"), state, batch)
    painters, steps = ("coarse", "fine"), toy.UNROLLED
    inputs = Inputs(FROZEN, batch, jax.random.key(0), 0.0, 0.0)
    names = [name for name in state.params if name not in painters]
    others = {name: state.params[name] for name in names}

    @jax.jit
    def inner_step(theta, weigher, moments):
        params = {**others, **theta, "weigher": weigher}
        gradient = jax.grad(lambda p: system.inner_loss({**params, **p}, inputs))(theta)
        updates, moments = system.painter_adam.update(gradient, moments, theta)
        return jax.tree.map(jnp.add, theta, updates), moments

    def outer(theta):
        return system.outer_loss({**others, **theta}, state.stats, inputs)[0]

    weigher = state.params["weigher"]
    theta = {name: state.params[name] for name in painters}
    states = [(theta, state.opt_state["painters"])]
    for _ in range(steps):
        theta, moments = states[-1]
        states.append(inner_step(theta, weigher, moments))
    cotangents = (
        jax.jit(jax.grad(outer))(states[-1][0]),
        jax.tree.map(zero_like, states[-1][1]),
    )
    total = jax.tree.map(jnp.zeros_like, weigher)
    for theta, moments in states[-2::-1]:
        _, vjp = jax.vjp(inner_step, theta, weigher, moments)
        of_theta, of_weigher, of_moments = vjp(cotangents)
        total = jax.tree.map(jnp.add, total, of_weigher)
        cotangents = of_theta, of_moments
    rate = 100 * 1e-2
    expected = jax.tree.map(lambda w, h: w - rate * h, weigher, total)
    assert_close(updated.params["weigher"], expected)
    assert np.abs(total["weights"]).min() > 1e-9  # not trivially equal
    assert_close({name: updated.params[name] for name in painters}, states[-1][0])
    assert_close(updated.opt_state["painters"], states[-1][1])


def zero_like(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


# The verbs.


def test_both_networks_are_exported(whole):
    loaded = load_checkpoints(whole)
    assert set(loaded) == {"coarse", "fine"}
    saved = runs.read_checkpoint(whole)
    for role, checkpoint in loaded.items():
        jax.tree.map(
            np.testing.assert_array_equal,
            checkpoint.params,
            saved["exported"][role]["params"],
        )
        moved = jax.tree.map(
            np.subtract, checkpoint.params, saved["params"]["params"][role]
        )
        assert np.abs(moved["last"]["kernel"]).max() > 0  # an average, not a copy
    model = migan_jax.load(whole)
    assert repr(model) == "Model(toy, 16 px, 518 parameters)"


def test_complete_returns_intermediate_stages(whole):
    model = migan_jax.load(whole)
    rng = np.random.default_rng(0)
    image = rng.random((2, 24, 20, 3), np.float32)
    known = (rng.random((2, 24, 20, 1)) < 0.5).astype(np.float32)
    result, stages = model.complete(image, known, stages=True)
    assert set(stages) == {"coarse"} and stages["coarse"].shape == image.shape
    assert np.array_equal(np.where(known, result, 0), np.where(known, image, 0))


def test_verbs_work_or_refuse(recipe, whole, monkeypatch, tmp_path, capsys):
    run = functools.partial(run_here, monkeypatch)
    checkpoint, samples = f"--checkpoint={whole}", whole / "samples"
    example = f"--image={samples}/example.png", f"--mask={samples}/example_mask.png"
    filled = tmp_path / "filled.png"
    assert run(inpaint, checkpoint, *example, f"--output={filled}") == 0
    assert filled.is_file()
    report = f"--output={tmp_path / 'report'}", "--images=scenes", "--samples=2"
    assert run(evaluate, checkpoint, *report) == 0
    capsys.readouterr()
    assert run(summary, checkpoint) == 0
    exported = capsys.readouterr().out
    assert "toy_coarse, 16 px" in exported and "toy_fine, 16 px" in exported
    assert run(summary, f"--config={recipe}") == 0
    trained = capsys.readouterr().out
    assert trained.startswith(exported) and "critic" in trained and "weigher" in trained
    refused = run(export, checkpoint, "--kind=network", f"--output={tmp_path}/x.onnx")
    assert_error_line(refused)
    assert "toy_coarse" in refused and "MI-GAN" in refused
    assert run(convert, str(whole), str(tmp_path / "both.safetensors")) == 0
    assert (
        run(convert, str(tmp_path / "both.safetensors"), str(tmp_path / "again")) == 0
    )
    for role, converted in load_checkpoints(tmp_path / "again").items():
        assert_same_trees(converted, load_checkpoints(whole)[role])
    refused = run(convert, str(whole), str(tmp_path / "x.pt"), "--check")
    assert_error_line(refused, "twin", "Coarse")
    coarse = load_checkpoints(whole)["coarse"]
    save_checkpoint(coarse, tmp_path / "coarse.safetensors", "training")
    with pytest.raises(UserError, match=r"coarse.*fine"):
        migan_jax.load(tmp_path / "coarse.safetensors")
    picture = f"--picture={tmp_path / 'forward.png'}"
    assert run(summary, checkpoint, picture) == 0


# The document.


def test_the_document_names_existing_files_and_all_fields():
    text = DOCUMENT.read_text()
    assert len(text.splitlines()) < 60
    for path in re.findall(
        r"`((?:migan_jax|tests|configs|docs)/[\w/]+(?<!F)\.py)`", text
    ):
        assert (TESTS.parent / path).is_file(), path
    for field in dataclasses.fields(toy.TOY):
        assert f"`{field.name}`" in text or field.name in ("name", "title")
