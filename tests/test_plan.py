"""Plans: errors before compilation, the programs that train runs, and their cost."""

import dataclasses
import gzip
import json
import math
import re

import jax
import pytest
from PIL import Image
from variables import CODES, SLIM, saved_network
from verbs import assert_error_line, run_here

from migan_jax import plan
from migan_jax.config import load_config
from migan_jax.errors import UserError
from migan_jax.models import comodgan
from migan_jax.planning import compilation, plans, report
from migan_jax.planning.chips import TPUS, open_topology
from migan_jax.planning.estimate import Estimate, Memory, OpCost, estimate, purpose_of
from migan_jax.planning.hlo import read_program
from migan_jax.planning.plans import Plan, StagePlan
from migan_jax.training.programs import plan_programs
from migan_jax.training.setup import set_up
from migan_jax.training.stages import Stages

TINY = [
    "resolution=32",
    "batch_size=8",
    "networks.channel_base=256",
    "networks.channel_max=8",
]


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--config=places256", "--topology=v5f:4x4"], ["v5f", "v5e"]),
        (["--config=places256", "--topology=v5e:4x4x4"], ["v5e:4x4x4"]),
        (["--config=places256", "--topology=v5e"], ["v5e:4x4"]),
        (["--config=places25", "--topology=v5e:4x4"], ["places25", "places256"]),
        (
            ["--config=places256", "--topology=v5e:4x4", "--config.batch_sise=3"],
            ["batch_sise", "batch_size"],
        ),
    ],
)
def test_mistakes_are_reported_before_anything_is_compiled(
    arguments, parts, monkeypatch, tmp_path
):
    output = tmp_path / "plan"
    message = run_here(monkeypatch, plan, *arguments, f"--output={output}")
    assert_error_line(message, *parts)
    assert not output.exists()


def test_every_topology_and_batch_is_checked_first(monkeypatch, tmp_path):
    pytest.importorskip("libtpu")
    monkeypatch.setattr(plans, "make_plan", pytest.fail)
    arguments = "--config=places256", "--topology=v5e:2x2,v5e:4x4"
    output = f"--output={tmp_path / 'plan'}"
    message = run_here(monkeypatch, plan, *arguments, "--batch-size=32,34", output)
    assert_error_line(message, "v5e:2x2", "34")
    message = run_here(monkeypatch, plan, *arguments, "--config.mesh.space=3", output)
    assert_error_line(message, "v5e:2x2", "mesh.space")


@pytest.mark.parametrize("flag", ["--price=free", "--price=-1", "--batch-size=0"])
def test_bad_numbers_are_usage_errors(flag, monkeypatch, capsys):
    arguments = "--config=places256", "--topology=v5e:2x2", flag
    assert run_here(monkeypatch, plan, *arguments) == 2
    name, _, value = flag.partition("=")
    assert name in (message := capsys.readouterr().err) and value in message


@pytest.mark.parametrize(
    "is_distilled", [True, pytest.param(False, marks=pytest.mark.full)]
)
def test_plan_lowers_the_programs_that_train_runs(is_distilled, tmp_path):
    teacher = comodgan.CoModGANGenerator(32, **SLIM, **CODES)
    saved_network(teacher, tmp_path / "teacher")
    settings = [
        *TINY,
        f"teacher={tmp_path / 'teacher' if is_distilled else 'none'}",
        "data.source=scenes",
        "data.held_out=0",
        "losses.r1_interval=2",
    ]
    config = load_config("places256", settings, False)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    trained = Stages(set_up(config, tmp_path / "run")).programs
    planned, timeline, _ = plan_programs(config, jax.devices())
    assert bool(planned.frozen) == is_distilled
    (span,) = timeline.spans
    for every in (1, 2):
        ours, theirs = (p.lower(span, every).as_text() for p in (planned, trained))
        assert ours == theirs
        assert "stablehlo.convolution" in ours or "stablehlo.dot_general" in ours


def test_folders_that_cannot_be_written_are_reported_first(monkeypatch, tmp_path):
    pytest.importorskip("libtpu")
    monkeypatch.setattr(plans, "make_plan", pytest.fail)
    (file := tmp_path / "file").touch()
    arguments = "--config=places256", "--topology=v5e:2x2"
    output = f"--output={tmp_path / 'plan'}"
    for flags in (
        [f"--output={file}"],
        [f"--output={file / 'plan'}"],
        [output, f"--dump-hlo={file}"],
    ):
        message = run_here(monkeypatch, plan, *arguments, *flags)
        assert_error_line(message, file)
    monkeypatch.setattr(compilation, "PLANS", file)
    assert_error_line(run_here(monkeypatch, plan, *arguments, output), file)


@pytest.mark.parametrize("damage", [b"", b"{}", gzip.compress(b'{"hlo": ""}', mtime=0)])
def test_a_damaged_cache_entry_is_named(damage, tmp_path):
    (path := tmp_path / "entry.json.gz").write_bytes(damage)
    with pytest.raises(UserError, match=path.name):
        compilation._read(path)


# Estimates, from numbers that are easy to add up.


def an_estimate(seconds, links, peak, available):
    cost = OpCost(10, seconds, seconds / 2, 1e9, 2e12)
    memory = Memory(peak, available, 10**9, peak - 10**9, 0)
    times = dict(compute_seconds=0.1, hbm_seconds=0.2, link_seconds=links)
    collectives = dict(exchanges=(), gradient_bytes=0.0, other_bytes=0.0)
    parts = {"by_part": {"main: painter forward": cost}, "by_kind": {"copy": cost}}
    return Estimate(
        "chip",
        4,
        cost,
        True,
        **times,
        bound="HBM",
        memory=memory,
        **collectives,
        **parts,
    )


def a_plan(available=16e9, missing=0.0, peak=4 * 10**9):
    step, lazy = (an_estimate(s, 0.25, peak, available) for s in (2.0, 4.0))
    stage = StagePlan("main", 1000, 32, step, {16: lazy})
    return Plan(
        recipe="places256",
        settings=(),
        topology="v5e:2x2",
        chip="TPU v5e",
        chips=4,
        devices=4,
        mesh=(2, 2),
        resolution=256,
        batch_size=32,
        microbatches=2,
        dtype="bfloat16",
        remat=False,
        available=available,
        state={"parameters": 24_000_000},
        stages=() if missing else (stage,),
        missing=missing,
        versions={},
    )


def test_lazy_turns_and_collectives_count_in_the_duration():
    one = a_plan()
    (stage,) = one.stages
    mean = 2.0 + 0.25 + (4.0 + 0.25) / 16
    assert stage.seconds == pytest.approx(mean)
    assert one.days == pytest.approx(1000 * mean / 86_400)
    assert one.chip_hours == pytest.approx(4 * 1000 * mean / 3600)
    assert one.images_per_second == pytest.approx(32 / mean)


def test_the_verdict_says_by_how_much_a_program_does_not_fit():
    *_, line = report.describe(a_plan(), None)
    assert "verdict: fits" in line and "25%" in line
    large = a_plan(missing=2e9)
    *_, line = report.describe(large, None)
    assert "verdict: does not fit" in line and "2 GB" in line
    for setting in ("microbatches=4", "networks.remat=true", "mesh.space=4"):
        assert setting in line
    assert "bfloat16" not in line  # it is
    other = dataclasses.replace(large, dtype="float32", remat=True, mesh=(1, 4))
    *_, line = report.describe(other, None)
    assert "networks.dtype=bfloat16" in line
    assert "remat" not in line and "mesh.space" not in line


def test_table_has_a_row_per_plan():
    plans = a_plan(), a_plan(missing=2e9)
    rows = report.table([report.row(plan, 2.0) for plan in plans]).splitlines()
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1
    cost = 2 * a_plan().chip_hours
    assert f"| {cost:,.0f} |" in rows[2] and "does not fit" in rows[3]


# Compiled for a TPU.


@pytest.fixture(scope="module")
def programs():
    """A tiny distilled MI-GAN on four chips, of which two share an image."""
    pytest.importorskip("libtpu")
    settings = [*TINY, "mesh.space=2", "networks.dtype=auto"]
    config = load_config("places256", settings, False)
    return plan_programs(config, open_topology("v5e:2x2")[0])


@pytest.fixture(scope="module")
def compiled(programs):
    """Its step."""
    programs, timeline, _ = programs
    return programs.compile(programs.lower(timeline.spans[0]))


@pytest.mark.aot
def test_the_compiled_step(programs, compiled):
    programs, *_ = programs
    text = compiled.as_text()
    # A float64 would be a mistake, and a callback would wait for the host.
    assert "f64[" not in text and "bf16[" in text
    assert not re.search(r"callback|infeed|outfeed|\bsend\(|\brecv\(", text)
    memory = compiled.memory_analysis()
    chip = dataclasses.replace(TPUS["v5e"], links=(1, 1))
    program = read_program(text, chip.float32_passes)
    found = estimate(program, chip, 4, memory, ["generator"], {}).memory
    assert 0 < found.activations < found.peak
    # The state comes back as it was given, in the same memory.
    before, after = compiled.input_shardings[0][0], compiled.output_shardings[0]
    assert jax.tree.leaves(before) == jax.tree.leaves(after)
    leaves = len(jax.tree.leaves(programs.state))
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry", text)[1]
    assert len(re.findall(r"-alias\)", aliases)) == leaves
    size = plans._bytes(programs.state)
    assert memory.alias_size_in_bytes >= size


@pytest.mark.aot
def test_collectives_of_the_compiled_step(programs, compiled):
    programs, *_ = programs
    found = read_program(compiled.as_text(), TPUS["v5e"].float32_passes).collectives
    sums = [one for one in found if one.kind == "all-reduce"]
    assert {one.dtype for one in sums} <= {"f32", "s32", "u32", "pred"}
    for name, params in programs.state.params.items():
        # In each one's turn, only its own gradients are reduced. The discriminator's of
        # real and fake images are reduced separately. Minibatch statistics are a lot
        # compared with so few weights.
        turn = f"jit(step)/{name}/"
        total = sum(one.bytes for one in sums if one.op_name.startswith(turn))
        trained = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert 4 * trained <= total <= 2.2 * 4 * trained, name
    halos = [one for one in found if one.kind == "collective-permute"]
    assert {(one.dtype, one.group_size) for one in halos} == {("bf16", 2)}
    assert {purpose_of(one) for one in halos} == {"halo"}


@pytest.mark.aot
@pytest.mark.full
def test_plan_writes_table_picture_and_programs(monkeypatch, tmp_path, capsys):
    pytest.importorskip("libtpu")
    monkeypatch.setattr(compilation, "PLANS", tmp_path / "cache")
    output, dump = tmp_path / "plan", tmp_path / "hlo"
    arguments = [
        "--config=places256:baseline",
        "--topology=v5e:2x2",
        "--price=2",
        f"--output={output}",
        f"--dump-hlo={dump}",
        *(f"--config.{setting}" for setting in TINY),
    ]
    assert run_here(monkeypatch, plan, *arguments) == 0
    shown = capsys.readouterr().out
    assert "verdict: fits" in shown and "r1" in shown
    (content,) = json.loads((output / plan.JSON_FILE).read_text())["plans"]
    assert content["topology"] == "v5e:2x2" and math.prod(content["mesh"]) == 4
    assert content["stages"][0]["step"]["total"]["seconds"] > 0
    assert content["fits"] and content["cost"] == 2 * content["chip_hours"] > 0
    assert "v5e:2x2" in (output / plan.TABLE_FILE).read_text()
    with Image.open(output / plan.PICTURE_FILE) as picture:
        assert picture.width > 500
    texts = [gzip.decompress(path.read_bytes()) for path in dump.iterdir()]
    assert len(texts) == 2 and all(text.startswith(b"HloModule") for text in texts)
    # The second time it reads the cache.
    monkeypatch.setattr(compilation, "_compile_program", pytest.fail)
    assert run_here(monkeypatch, plan, *arguments) == 0
    assert capsys.readouterr().out == shown
