"""Recipes and settings, found by name and by path; errors name what is wrong."""

import argparse
import ast
import functools
import json
import math
import pickle
import re
import shlex
from operator import getitem
from pathlib import Path

import jax
import numpy as np
import pytest

from migan_jax.config import (
    RANGES,
    base_config,
    flat,
    load_config,
    recipe_names,
    smoke,
    whole_number,
)
from migan_jax.errors import UserError
from migan_jax.settings import RENAMED, warn_of_renamed
from migan_jax.training.programs import build_system, initial_state, make_timeline
from migan_jax.training.setup import check_settings
from migan_jax.training.step import make_step

VARIANTS = ("baseline", "reparam", "reparam_kd", "teacher")
FOLDER = Path(__file__).parent.parent / "configs"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.py"))
RUNGS = [f"places256:{rung}" for rung in ("baseline", "reparam", "reparam_kd")]
ROWS = [f"imputation_fdf128:{row}" for row in ("a", "b", "c", "d", "e_conv")]


def load(recipe, *settings, tiny=False):
    return load_config(recipe, settings, tiny)


def steps_of(config):
    return make_timeline(config, build_system(config, {})).end_step


def refused(recipe, *settings):
    with pytest.raises(UserError) as caught:
        load(recipe, *settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_recipes_exist():
    assert (
        set(RECIPES)
        == set(recipe_names())
        == {
            "places512",
            "places256",
            "ffhq256",
            "comodgan_places512",
            "comodgan_places256",
            "folder256",
            "comodgan_folder256",
            "finetune256",
            "finetune512",
            "scenes64",
            "deepgin_celebahq256",
            "deepgin_ade256",
            "deepgin_scenes64",
            "imputation_fdf128",
            "imputation_places256",
            "imputation_celebahq256",
            "imputation_scenes64",
            "distillation_places256",
            "distillation_celeba256",
            "distillation_paris256",
            "distillation_scenes64",
            "migan_distilled256",
            "migan_distilled_scenes64",
        }
    )


@pytest.mark.parametrize("recipe", RECIPES + RUNGS + ROWS)
def test_recipes_are_valid_and_documented(recipe):
    config = load(recipe)
    check_settings(config)
    name, _, rung = recipe.partition(":")
    documentation = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    for section in ("Hardware", "Length", "Command"):
        assert f"\n{section}" in documentation
    if not rung:
        stated = documentation.replace(",", "")
        assert f"{config.total_kimg:.0f} kimg {steps_of(config)} steps" in stated
    (line,) = (x for x in documentation.splitlines() if x.startswith("Command"))
    assert f"--config={name}" in shlex.split(line)
    assert str(config.resolution) in name


# One recipe for each kind of program; the others differ in sizes only.
DIFFERENT = (
    *("scenes64", "scenes64:baseline", "scenes64:teacher"),
    *("deepgin_scenes64", "imputation_scenes64"),
)


@pytest.mark.parametrize("recipe", [*RECIPES, *RUNGS, *ROWS])
def test_a_first_state_of_every_recipe_can_be_made(recipe):
    config = load(recipe)
    state = jax.eval_shape(lambda: initial_state(config, build_system(config, {})))
    assert state.params.keys() == build_system(config, {}).networks.keys()
    assert state.ema.keys() == ({"generator"} if has_ema(config) else set())
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) > 1e5


def has_ema(config):
    return config.optimizer.ema_halflife_kimg > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(name, marks=() if name in DIFFERENT else pytest.mark.full)
        for name in (
            *(*RECIPES, *RUNGS, *ROWS),
            *(f"scenes64:{name}" for name in VARIANTS),
        )
    ],
)
def test_all_programs_of_a_recipe_can_be_made(recipe):
    """Steps of all stages, at full size, without a teacher."""
    config = load(recipe)
    system = build_system(config, {})
    state = jax.eval_shape(lambda: initial_state(config, system))
    key = jax.eval_shape(lambda: jax.random.key(0))
    for span in make_timeline(config, system).spans:
        pictures = span.batch_size, span.resolution, span.resolution, 3
        batch = {"image": jax.ShapeDtypeStruct(pictures, np.uint8)}
        if config.data.points:
            points = span.batch_size, 7, 2
            batch["points"] = jax.ShapeDtypeStruct(points, np.float32)
        for every in (1, *span.stage.lazy):
            step = make_step(system, span, ema_halflife_kimg=1, every=every)
            after, metrics = jax.eval_shape(step, state, {}, batch, key)
            assert jax.tree.map(shape_of, after) == jax.tree.map(shape_of, state)
            assert metrics and {shape_of(x) for x in metrics.values()} == {()}


def shape_of(leaf):
    return leaf.shape


def test_a_warm_up_does_not_compute_the_generators_gradient():
    config = load("finetune256", "optimizer.warmup_kimg=0.008", tiny=True)
    system = build_system(config, {})
    state = jax.eval_shape(lambda: initial_state(config, system))
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((8, 16, 16, 3), np.uint8)}
    batch["mask"] = jax.ShapeDtypeStruct((8, 16, 16, 1), np.uint8)
    flops = {}
    for span in make_timeline(config, system).spans:
        step = jax.jit(make_step(system, span))
        cost = step.lower(state, {}, batch, key).cost_analysis()
        flops[span.stage.name] = cost["flops"]
    assert flops["warm-up"] < 0.7 * flops["main"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_recipe_by_path(recipe):
    assert flat(load(recipe)) == flat(load(str(FOLDER / f"{recipe}.py")))


def test_ablation_variants_differ_in_one_setting():
    baseline, reparam, distilled = (flat(load(recipe)) for recipe in RUNGS)
    assert flat(load("places256")) == distilled
    assert {k for k in baseline if baseline[k] != reparam[k]} == {"reparam.kernels"}
    assert {k for k in baseline if reparam[k] != distilled[k]} == {"teacher"}
    assert baseline["reparam.kernels"] == 1 and reparam["reparam.kernels"] == 9
    message = refused("places256:best")
    assert "baseline, reparam, reparam_kd" in message and "'best'" in message


def test_systems_have_the_papers_settings():
    system = build_system(load("places512"), {})
    assert system.distillation_weight == 2 and system.r1_gamma == 10
    assert system.generator.reparam.kernels == 9
    assert system.generator.resolution == system.discriminator.resolution == 512
    teacher = build_system(load("comodgan_places512", "losses.l1=3"), {})
    assert teacher.mixing_probability == 0.5 and teacher.l1_weight == 3
    expanded = build_system(load("places256", "reparam.expanded=true"), {})
    assert expanded.generator.reparam.form == "expanded"


def test_settings_get_the_types_of_their_defaults():
    config = load(
        "places256",
        "batch_size=1_024",
        "total_kimg=2.5",
        "optimizer.learning_rate=1e-4",
        "networks.remat=True",
        "teacher=none",
        "data.source=a=b",
        "data.smallest_side=40",
        "data.validation=none",
    )
    assert config.data.validation is None
    assert load("places256", "data.smallest_side=None").data.smallest_side is None
    assert config.batch_size == 1024 and config.total_kimg == 2.5
    assert config.optimizer.learning_rate == 1e-4 and config.networks.remat is True
    assert config.teacher is None and config.data.source == "a=b"
    assert config.data.smallest_side == 40
    json.dumps(flat(config))


@pytest.mark.parametrize(
    "setting, parts",
    [
        ("optimizer.learning_rat=1", ("optimizer.learning_rat:", "learning_rate?")),
        ("batchsize=1", ("--config.batchsize:", "batch_size?")),
        ("learning_rate=1", ("optimizer.learning_rate?",)),
        ("batch_size=many", ("--config.batch_size", "whole number", "'many'")),
        ("batch_size=1.5", ("--config.batch_size", "whole number", "'1.5'")),
        ("mesh.space=two", ("--config.mesh.space", "auto", "'two'")),
        ("total_kimg=", ("--config.total_kimg", "number", "''")),
        ("networks.remat=1", ("--config.networks.remat", "true or false", "'1'")),
        ("data=scenes", ("--config.data:",)),
    ],
)
def test_wrong_settings_are_named(setting, parts):
    message = refused("places256", setting)
    for part in parts:
        assert part in message


def test_recipes_that_do_not_exist_or_fail(tmp_path):
    assert "places512?" in refused("place512")
    assert "nowhere.py" in refused("nowhere.py")
    broken = "def get_config(): return confg"
    empty = "def get_config(): pass"
    for text in ("def get_config(:", "x = 1", "import nothing_at_all", broken, empty):
        (tmp_path / "mine.py").write_text(text)
        assert "mine.py" in refused(str(tmp_path / "mine.py"))


def test_a_recipes_typo_is_not_a_new_setting(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from migan_jax.config import base_config\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.batchsize = 3\n"
        "    return config\n"
    )
    message = refused(str(recipe))
    assert "batchsize" in message and "batch_size?" in message


def test_earlier_names_of_settings_are_still_read(tmp_path, caplog):
    """On the command line and in recipes, with a warning."""
    warn_of_renamed.cache_clear()
    given = "parts=4", "data.bad_share=0.25"
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from migan_jax.config import base_config\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.parts = 2\n"
        "    config.parts *= 2\n"
        "    config.update({'data': {'bad_share': 0.25}})\n"
        "    assert config.data.bad_share == config.get('parts') / 16\n"
        "    return config\n"
    )
    for loaded in (load("scenes64", *given), load(str(recipe))):
        assert loaded.microbatches == 4 and loaded.data.max_rejected_fraction == 0.25
        assert flat(loaded).keys() == flat(base_config()).keys()
    messages = [record.getMessage() for record in caplog.records]
    config = base_config()
    config.data = {**config.data, "bad_share": 0.25}
    assert pickle.loads(pickle.dumps(config)).data.max_rejected_fraction == 0.25
    for old, new in RENAMED.items():
        assert any(old in line and new in line for line in messages)


def test_a_recipe_may_return_any_config_dict(tmp_path):
    """Its settings override the defaults, and get their types."""

    def recipe(content):
        lines = "import ml_collections", "def get_config():"
        made = f"    return ml_collections.ConfigDict({content})"
        (tmp_path / "mine.py").write_text("\n".join((*lines, made)))
        return str(tmp_path / "mine.py")

    own = recipe("{'total_kimg': 3, 'seed': 7}")
    config = load(own, "patience_kimg=2")
    assert flat(config) == flat(base_config()) | {
        "total_kimg": 3.0,
        "seed": 7,
        "patience_kimg": 2.0,
    }
    for content, part in {
        "{'data': {'source': 3}}": "mine.py.*'source'",
        "{'batch_size': 1.5}": "mine.py.*'batch_size'",
        "{'data': {'sauce': 'x'}}": "mine.py.*sauce",
        "{'data': 3}": "mine.py.*'data'",
        "{'seed': 2**63}": "^seed .*9223372036854775808",
        "{'seed': None}": "^seed .*None",
        "{'networks': None}": "^networks.channel_base .*None",
        "{'total_kimg': 10**400}": "mine.py",
    }.items():
        own = recipe(content)
        for tiny in (False, True):
            with pytest.raises(UserError, match=part):
                load(own, tiny=tiny)


@pytest.mark.parametrize(
    "setting, part",
    [
        ("system=gan", "system .*comodgan.*migan.*'gan'"),
        ("resolution=100", "resolution.*power of two"),
        ("networks.dtype=float16", "networks.dtype .*auto, float32, bfloat16"),
        ("networks.channel_base=128", "networks.channel_base .*128.*512"),
        ("microbatches=0", "microbatches .*0"),
        ("mesh.space=0", "mesh.space .*0.*16,384.*auto"),
        ("keep_last=0", "keep_last .*0"),
        ("total_kimg=0", "total_kimg .*0.0"),
        ("optimizer.learning_rate=nan", "learning_rate .*nan"),
        ("losses.r1_interval=0", "r1_interval .*0"),
        ("losses.r1_gamma=-1", "r1_gamma .*-1"),
        ("losses.distillation=nan", "distillation .*nan"),
        ("total_kimg=inf", "total_kimg .*inf"),
        ("optimizer.b2=1", "optimizer.b2 .*1"),
        ("comodgan.mixing_probability=7", "mixing_probability .*7"),
        ("resolution=16", "teacher.*32.*16"),
    ],
)
def test_invalid_settings(setting, part):
    with pytest.raises(UserError, match=part):
        check_settings(load("places512", setting))
    with pytest.raises(UserError, match=r"teacher.*comodgan"):
        check_settings(load("comodgan_places512", "teacher=x"))


def holder_of(config, key):
    """Return the section of a configuration that holds a setting, and its last name."""
    *path, last = key.split(".")
    return functools.reduce(getitem, path, config), last


def with_setting(key, value):
    """Return a configuration with a value of any type."""
    config = base_config()
    inner, last = holder_of(config, key)
    with inner.ignore_type():
        inner[last] = value
    return config


def test_every_number_has_a_range():
    config = base_config()
    kinds = {}
    for key in flat(config):
        inner, last = holder_of(config, key)
        kinds[key] = inner.get_type(last)
    numbers = {key for key, kind in kinds.items() if kind in (int, float, object)}
    assert numbers == set(RANGES)
    for key, (minimum, maximum) in RANGES.items():
        assert (
            type(minimum) is type(maximum) is {object: int}.get(kinds[key], kinds[key])
        )


@pytest.mark.parametrize("key", RANGES)
def test_numbers_outside_of_their_ranges_are_refused(key):
    minimum, maximum = RANGES[key]
    beyond = minimum - 1, maximum + 1, True
    if isinstance(minimum, float):
        beyond = math.nextafter(minimum, -1), math.nextafter(maximum, math.inf)
    for value in (minimum, maximum):
        assert flat(load("scenes64", f"{key}={value}"))[key] == value
    for value in (*beyond, 10**300, -math.inf, math.inf, math.nan, "x", [1]):
        with pytest.raises(UserError, match=rf"^{re.escape(key)} "):
            check_settings(with_setting(key, value))
        assert key in refused("scenes64", f"{key}={value}")


def test_int32_counts_the_steps_of_the_longest_runs():
    longest = f"total_kimg={RANGES['total_kimg'][1]}"
    warm_up = f"optimizer.warmup_kimg={RANGES['optimizer.warmup_kimg'][1]}"
    config = load("scenes64", longest, warm_up, "batch_size=1")
    spans = make_timeline(config, build_system(config, {})).spans
    assert max(span.total_steps for span in spans) < 2**31


def test_whole_number_arguments():
    read = whole_number(1, 1000)
    assert [read(text) for text in ("1", "1000", "٣")] == [1, 1000, 3]
    for text in ("0", "1001", "-1", "1.5", "", "inf", "²", "9" * 20, "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 1,000"):
            read(text)
    assert whole_number(0)(f"{10**9}") == 10**9


def test_one_override_shrinks_any_recipe():
    for recipe in RECIPES:
        config = load(recipe, tiny=True)
        assert steps_of(config) == 2 and config.resolution <= 32
        assert config.teacher is None
        faces = ":faces" if config.data.points else ""
        assert config.data.source == f"scenes{faces}"
    config = base_config()
    smoke(config)
    assert config.networks.channel_max == 8


def test_halving_the_batch_doubles_the_steps():
    assert steps_of(load("places512")) == 781_250
    assert steps_of(load("places512", "batch_size=16")) == 1_562_500
    assert steps_of(load("places512", "total_kimg=0.001")) == 1
