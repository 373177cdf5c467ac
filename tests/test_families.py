"""A family of its own moves in, as docs/add_a_family.md says, and everything works."""

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
from verbs import one_sentence, run_here

import migan_jax
from migan_jax import convert, evaluate, export, inpaint, summary
from migan_jax.config import load_config
from migan_jax.errors import UserError
from migan_jax.families import FAMILIES, load_checkpoints, save_checkpoint
from migan_jax.systems.base import Inputs
from migan_jax.training.loop import train
from migan_jax.training.setup import build_system, first_state, set_up, timeline_of
from migan_jax.training.step import make_step

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "add_a_family.md"
FROZEN = {"guide": toy.guide_of("3").variables}
DEVICES = jax.devices()
STEPS, CHANGE = 10, 4  # in all, and before the second stage


@pytest.fixture(autouse=True, scope="module")
def moved_in(cache, request):
    """On one device, for which programs compile sooner."""
    first = DEVICES[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *kind: first)
        patch.setitem(FAMILIES, "toy", toy.TOY)
        for name, value in compiled_once(cache).items():
            before = getattr(jax.config, name)
            jax.config.update(name, value)
            request.addfinalizer(functools.partial(jax.config.update, name, before))
        yield


def compiled_once(cache):
    """JAX's settings for programs that are the same in several runs."""
    return {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "toy_scenes.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n"
        "import toy\ntoy.move_in()\nget_config = toy.get_config\n"
    )
    return path


class Killed(Exception):
    pass


class Until:
    """Stands for a scheduler, which tells a run to stop at a step, or kills it."""

    def __init__(self, step, kills=False):
        self.step, self.kills = step, kills

    def asked(self, step):
        if self.kills and step == self.step:
            raise Killed
        return step == self.step

    def hold_back(self):
        pass


def go_on(recipe, workdir, stop=None, *settings, kills=False):
    """Train from where the run stands, to its end or to a step; return its ending."""
    config = load_config(str(recipe), settings, tiny=False)
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    setup = set_up(config, workdir)
    with setup.checkpoints:
        ending = train(setup, Until(stop, kills))
    setup.samples.save_example(workdir)
    return ending


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A run that nothing has interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    ending = go_on(recipe, workdir)
    assert (ending.step, ending.saved, ending.is_stale) == (STEPS, STEPS, False)
    return workdir


def test_stages_have_their_own_turns_batches_and_sizes(whole):
    every = map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
    every = [line for line in every if "paint/l1" in line]
    lines = [line for line in runs.metrics(whole) if "paint/l1" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    growing, main = lines[:CHANGE], lines[CHANGE:]
    assert not any("judge/loss" in line or "weigh/loss" in line for line in growing)
    assert all("judge/loss" in line and "weigh/loss" in line for line in main)
    fade = [line["paint/progress"] for line in lines]
    assert fade == pytest.approx([i / 4 for i in range(4)] + [i / 6 for i in range(6)])
    # After each third step of the run; the first stage has no lazy turn.
    assert [n["step"] for n in lines if "slope/share" in n] == [7, 10]
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
def test_a_run_goes_on_on_either_side_of_a_change(stops, recipe, whole, tmp_path):
    for stop in stops:
        assert go_on(recipe, tmp_path / "run", stop).step == stop
    go_on(recipe, tmp_path / "run")
    runs.assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_run_may_do_without_an_average(recipe, tmp_path):
    without = "optimizer.ema_halflife_kimg=0"
    for stop in (2, 5):
        assert go_on(recipe, tmp_path / "run", stop, without).step == stop
    saved = runs.saved(tmp_path / "run")
    for role, checkpoint in load_checkpoints(tmp_path / "run").items():
        trained = saved["params"]["params"][role]
        jax.tree.map(np.testing.assert_array_equal, checkpoint.params, trained)


@pytest.mark.parametrize("step", [CHANGE, CHANGE + 1])
def test_a_run_killed_at_a_change_goes_on(step, recipe, whole, tmp_path):
    """Without the last step before it, or with: the state is saved in between."""
    with pytest.raises(Killed):
        go_on(recipe, tmp_path / "run", step, kills=True)
    assert runs.steps(tmp_path / "run")[-1] == (3 if step == CHANGE else CHANGE)
    go_on(recipe, tmp_path / "run")
    runs.assert_same(tmp_path / "run", whole)


@pytest.mark.full
def test_killed_where_the_stages_change(recipe, cache, tmp_path):
    """As a process of its own, by a signal that nothing can handle."""
    arguments = f"--config={recipe}", f"--workdir={tmp_path / 'run'}"
    process = runs.begin("migan_jax.train", *arguments, cache=cache)
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


def test_another_frozen_network_is_another_run(recipe, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(UserError, match="guide's weights are others"):
        go_on(recipe, tmp_path / "run", None, "teacher=7")


# The turns of its main stage, in float64.


@pytest.fixture
def exact(float64, recipe):
    """The main stage's system, span and state, and a batch with its masks."""
    config = load_config(str(recipe), [], tiny=False)
    system = build_system(config, {})

    class Exact(toy.Toy):
        def prepare(self, batch, key, progress):
            return batch

    fields = {f.name: getattr(system, f.name) for f in dataclasses.fields(system)}
    system = Exact(**fields)
    span = timeline_of(config, system).at(CHANGE)
    rng = np.random.default_rng(0)
    numbers = np.arange(6)
    state = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape)) / 4,
        jax.eval_shape(lambda: first_state(config, system)),
    )
    moments = jax.tree.map(jnp.abs, state.opt_state)  # some are means of squares
    state = dataclasses.replace(state, step=jnp.int32(CHANGE), opt_state=moments)
    mask = (rng.random((6, 16, 16, 1)) < 0.7).astype(np.float64)
    image = rng.standard_normal((6, 16, 16, 3)) / 2
    return system, span, state, {"image": image, "mask": mask, "sample": numbers}


def only(span, *names):
    """The span with these turns alone."""
    groups = [
        tuple(turn for turn in group if turn.name in names)
        for group in span.stage.turns
    ]
    stage = dataclasses.replace(span.stage, turns=tuple(filter(None, groups)))
    return dataclasses.replace(span, stage=stage)


def after(system, span, state, batch, **options):
    step = jax.jit(make_step(system, span, **options))
    return step(state, FROZEN, batch, jax.random.key(1))


def close(actual, expected, tolerance=1e-12):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance),
        actual,
        expected,
    )


def test_turns_of_a_group_see_the_same_parameters(exact):
    """Each moves its networks as if it were alone, and the vectors go through both."""
    system, span, state, batch = exact
    both, _ = after(system, only(span, "paint", "judge"), state, batch)
    paint, _ = after(system, only(span, "paint"), state, batch)
    judge, _ = after(system, only(span, "judge"), state, batch)
    close(both.params["fine"], paint.params["fine"])
    moved = jax.tree.map(np.subtract, both.params["fine"], state.params["fine"])
    assert np.abs(moved["last"]["bias"]).min() > 1e-3
    # Three passes in a row: one of the painters' turn, two of the critic's.
    vectors = state.stats["critic"]["vector"]
    for _ in range(3):
        vectors, _ = toy.refreshed(state.params["critic"]["weight"], vectors)
    close(both.stats["critic"]["vector"], vectors)
    threaded = dataclasses.replace(state, stats=paint.stats)
    judged, _ = after(system, only(span, "judge"), threaded, batch)
    close(both.params["critic"], judged.params["critic"])
    assert not np.allclose(
        judge.params["critic"]["weight"], judged.params["critic"]["weight"]
    )


def test_devices_change_nothing(exact):
    """Eight of them, of which four share an image."""
    system, span, state, batch = exact
    turns = only(span, "paint", "judge")
    alone, metrics = after(system, turns, state, batch)
    grid = np.array(DEVICES).reshape(2, 4)
    mesh = Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        state, batch = jax.device_put(state, whole), jax.device_put(batch, split)
        together, same = after(system, turns, state, batch)
    close((together, same), (alone, metrics), 1e-9)


def test_microbatches_refresh_vectors_once(exact):
    """Of each turn, as for the whole batch, so the iteration is the same."""
    system, span, state, batch = exact
    turns = only(span, "paint", "judge")
    whole, _ = after(system, turns, state, batch)
    in_parts, _ = after(system, turns, state, batch, microbatches=3)
    close(in_parts, whole, 1e-9)


def test_a_bilevel_turn_is_the_explicit_hypergradient(exact):
    """Reverse mode by hand: a vector goes back through each step of the painters."""
    system, span, state, batch = exact
    taken, _ = after(system, only(span, "weigh"), state, batch)
    painters, steps = ("coarse", "fine"), toy.UNROLLED
    inputs = Inputs(FROZEN, batch, jax.random.key(0), 0.0, 0.0)
    names = [name for name in state.params if name not in painters]
    others = {name: state.params[name] for name in names}

    @jax.jit
    def inner_step(theta, weigher, moments):
        params = {**others, **theta, "weigher": weigher}
        gradient = jax.grad(lambda own: system.inner_loss({**params, **own}, inputs))(
            theta
        )
        updates, moments = system.painting.update(gradient, moments, theta)
        return jax.tree.map(jnp.add, theta, updates), moments

    def outer(theta):
        return system.outer_loss({**others, **theta}, state.stats, inputs)[0]

    weigher = state.params["weigher"]
    theta = {name: state.params[name] for name in painters}
    carried = [(theta, state.opt_state["painting"])]
    for _ in range(steps):
        theta, moments = carried[-1]
        carried.append(inner_step(theta, weigher, moments))
    back = (
        jax.jit(jax.grad(outer))(carried[-1][0]),
        jax.tree.map(zero_like, carried[-1][1]),
    )
    total = jax.tree.map(jnp.zeros_like, weigher)
    for theta, moments in carried[-2::-1]:
        _, pull = jax.vjp(inner_step, theta, weigher, moments)
        theta_part, weigher_part, moments_part = pull(back)
        total = jax.tree.map(jnp.add, total, weigher_part)
        back = theta_part, moments_part
    rate = 100 * 1e-2
    expected = jax.tree.map(lambda w, h: w - rate * h, weigher, total)
    close(taken.params["weigher"], expected)
    assert np.abs(total["weights"]).min() > 1e-9  # and it has something to say
    close({name: taken.params[name] for name in painters}, carried[-1][0])
    close(taken.opt_state["painting"], carried[-1][1])


def zero_like(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


# Every verb.


def test_both_networks_are_shipped(whole):
    loaded = load_checkpoints(whole)
    assert set(loaded) == {"coarse", "fine"}
    saved = runs.saved(whole)
    for role, checkpoint in loaded.items():
        jax.tree.map(
            np.testing.assert_array_equal,
            checkpoint.params,
            saved["exported"][role]["params"],
        )
        moved = jax.tree.map(
            np.subtract, checkpoint.params, saved["params"]["params"][role]
        )
        assert np.abs(moved["last"]["kernel"]).max() > 0  # an average, and no copy
    model = migan_jax.load(whole)
    assert repr(model) == "Model(toy, 16 px, 518 parameters)"


def test_complete_gives_what_came_before(whole):
    model = migan_jax.load(whole)
    rng = np.random.default_rng(0)
    image = rng.random((2, 24, 20, 3), np.float32)
    known = (rng.random((2, 24, 20, 1)) < 0.5).astype(np.float32)
    result, before = model.complete(image, known, stages=True)
    assert set(before) == {"coarse"} and before["coarse"].shape == image.shape
    assert np.array_equal(np.where(known, result, 0), np.where(known, image, 0))


def test_verbs_work_for_it_or_say_why_not(recipe, whole, monkeypatch, tmp_path, capsys):
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
    shipped = capsys.readouterr().out
    assert "toy_coarse, 16 px" in shipped and "toy_fine, 16 px" in shipped
    assert run(summary, f"--config={recipe}") == 0
    trained = capsys.readouterr().out
    assert trained.startswith(shipped) and "critic" in trained and "weigher" in trained
    refused = run(export, checkpoint, "--kind=network", f"--output={tmp_path}/x.onnx")
    one_sentence(refused)
    assert "toy_coarse" in refused and "MI-GAN" in refused
    assert run(convert, str(whole), str(tmp_path / "both.safetensors")) == 0
    assert (
        run(convert, str(tmp_path / "both.safetensors"), str(tmp_path / "again")) == 0
    )
    for role, converted in load_checkpoints(tmp_path / "again").items():
        assert_same_trees(converted, load_checkpoints(whole)[role])
    refused = run(convert, str(whole), str(tmp_path / "x.pt"), "--check")
    one_sentence(refused, "no PyTorch twin of a Coarse")
    coarse = load_checkpoints(whole)["coarse"]
    save_checkpoint(coarse, tmp_path / "coarse.safetensors", "training")
    with pytest.raises(
        UserError, match="holds coarse only: a Toy inpaints with coarse"
    ):
        migan_jax.load(tmp_path / "coarse.safetensors")
    picture = f"--picture={tmp_path / 'forward.png'}"
    assert run(summary, checkpoint, picture) == 0


# What the document says.


def test_the_document_names_what_there_is():
    text = DOCUMENT.read_text()
    assert len(text.splitlines()) < 60  # half a page
    for path in re.findall(
        r"`((?:migan_jax|tests|configs|docs)/[\w/]+(?<!F)\.py)`", text
    ):
        assert (TESTS.parent / path).is_file(), path
    for field in dataclasses.fields(toy.TOY):
        assert f"`{field.name}`" in text or field.name in ("name", "title")
