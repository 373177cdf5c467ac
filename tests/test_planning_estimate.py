"""What a step costs, from the costs of its ops and a chip's numbers."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from migan_jax.errors import UserError
from migan_jax.planning.chips import CHIPS, GPUS, Chip, open_topology
from migan_jax.planning.estimate import estimate, link_seconds, part_of, purpose_of
from migan_jax.planning.hlo import Collective, Op, OpKind, Program, read_program

CHIP = Chip(
    name="chip",
    flops=100.0,
    float32_passes={},
    hbm_bandwidth=10.0,
    hbm_bytes=1000,
    clock=50.0,
    link_bandwidth=4.0,
    axes=2,
    links=(2, 2),
)
GPU = dataclasses.replace(CHIP, clock=None)
MEMORY = SimpleNamespace(
    peak_memory_in_bytes=600,
    argument_size_in_bytes=300,
    output_size_in_bytes=250,
    alias_size_in_bytes=200,
    temp_size_in_bytes=240,
    generated_code_size_in_bytes=10,
)
TURNS, NETWORKS = ("first", "second"), {"Net": "network", "Critic": "critic"}


def op(op_name="", kind=OpKind.ELEMENTWISE, cycles=0, hbm=0.0, flops=0.0, passes=1):
    return Op("x", "fusion", kind, op_name, 1, cycles, hbm, flops, passes * flops)


def collective(kind="all-reduce", size=64.0, group=8, dtype="f32", is_async=False):
    return Collective(kind, dtype, "", 1, size, group, is_async)


OPS = (
    op("jit(step)/first/jvp(Net)/conv", OpKind.CONVOLUTION, 100, 20.0, 400.0, 2),
    op("jit(step)/first/transpose(jvp(Net))/conv", OpKind.CONVOLUTION, 150, 100.0, 100),
    op("jit(step)/first/optimizer/add", OpKind.ELEMENTWISE, 50, 30.0),
)


def estimate_of(ops=OPS, collectives=(), chip=CHIP):
    program = Program(tuple(ops), tuple(collectives))
    return estimate(program, chip, 8, MEMORY, TURNS, NETWORKS)


def test_times_and_their_parts():
    found = estimate_of()
    assert found.total.seconds == 300 / 50 and found.has_compiler_time
    # The first op computes longer than it moves bytes, the others do not.
    assert found.total.floor_seconds == pytest.approx(8 + 10 + 3)
    assert (found.total.hbm_bytes, found.total.flops) == (150, 500)
    assert found.compute_seconds == pytest.approx(9)
    assert found.hbm_seconds == pytest.approx(15)
    assert (found.link_seconds, found.bound) == (0, "HBM")
    seconds = {name: cost.seconds for name, cost in found.by_part.items()}
    assert seconds == {
        "first: network backward": 3,
        "first: network forward": 2,
        "optimizer": 1,
    }
    assert list(seconds) == sorted(seconds, key=lambda name: -seconds[name])
    assert found.by_kind["convolution"].ops == 2
    assert found.by_kind["elementwise"].hbm_bytes == 30


def test_without_cycles_the_time_is_the_floor():
    found = estimate_of(chip=GPU)
    assert not found.has_compiler_time
    assert found.total.seconds == found.total.floor_seconds == pytest.approx(21)
    assert found.by_part["first: network forward"].seconds == pytest.approx(8)


def test_memory():
    memory = estimate_of().memory
    assert (memory.peak, memory.available, memory.code) == (610, 1000, 10)
    # Of the results, 50 bytes replace no arguments.
    assert (memory.arguments, memory.activations) == (300, 600 - 300 - 50)


def test_collectives_are_added_by_kind_and_dtype():
    found = estimate_of(
        collectives=[
            collective(),
            collective(size=32.0, is_async=True),
            collective(dtype="bf16"),
            collective("collective-permute", 800.0),
        ]
    )
    rows = [(one.kind, one.dtype, one.times, one.bytes) for one in found.exchanges]
    assert rows == [
        ("collective-permute", "f32", 1, 800),
        ("all-reduce", "f32", 2, 96),
        ("all-reduce", "bf16", 1, 64),
    ]
    assert found.exchanges[1].async_times == 1
    assert found.link_seconds == pytest.approx(200 + (96 + 64) * 2 * 7 / 8 / 16)
    assert found.bound == "interconnect"


@pytest.mark.parametrize(
    ("kind", "group", "seconds"),
    [
        ("all-reduce", 8, 2 * 64 * 7 / 8 / 16),  # four links of two axes
        ("all-reduce", 4, 2 * 64 * 3 / 4 / 8),  # two links of one
        ("all-gather", 8, 64 * 7 / 8 / 16),
        ("reduce-scatter", 2, 64 / 2 / 8),
        ("collective-permute", 8, 64 / 4),
    ],
)
def test_links(kind, group, seconds):
    found = link_seconds(collective(kind, group=group), CHIP, devices=8)
    assert found == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("jit(step)/first/jvp(Net)/b64/conv/dot_general", "first: network forward"),
        ("jit(step)/first/transpose(jvp(Net))/b64/mul", "first: network backward"),
        ("jit(step)/second/jvp(first)/jvp(Critic)/mul", "second: critic forward"),
        ("jit(step)/first/Net/Critic/mul", "first: network forward"),
        ("jit(step)/first/Net/noise/add", "first: network forward"),
        ("jit(step)/Net/add", "network forward"),
        ("jit(step)/prepare/masks/while/body/add", "masks"),
        ("jit(step)/first/noise/jit(_normal)/mul", "noise"),
        ("jit(step)/first/optimizer/add", "optimizer"),
        ("jit(step)/first/reduce_sum", "first: other"),
        ("jit(step)/ema/sub", "ema"),
        ("jit(step)/add", "other"),
        ("", "other"),
    ],
)
def test_parts(op_name, part):
    assert part_of(op_name, TURNS, NETWORKS) == part


def test_estimates_are_json():
    found = estimate_of(collectives=[collective()])
    again = json.loads(json.dumps(dataclasses.asdict(found)))
    assert again["by_kind"]["convolution"]["flops"] == 500
    assert again["exchanges"][0]["kind"] == "all-reduce"


@pytest.mark.parametrize(
    "name", ["v5e", "v5:4x4", "v5e:2x2x2", "v4:2x2", "v5e:2y", "h200:2", "h300"]
)
def test_unknown_topologies(name):
    with pytest.raises(UserError, match=name):
        open_topology(name)


@pytest.fixture
def variables(monkeypatch):
    """Restore the environment variables that opening a topology sets."""
    for name in (
        *("TPU_SKIP_MDS_QUERY", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES"),
        *("ALLOW_MULTIPLE_LIBTPU_LOAD", "CUDA_VISIBLE_DEVICES", "XLA_FLAGS"),
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def compiled_product(device, dtype):
    """Compile a product of 256x512 and 512x1024."""
    sharding = SingleDeviceSharding(device)
    x, y = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for shape in ((256, 512), (512, 1024))
    )
    return jax.jit(lambda x, y: x @ y).lower(x, y).compile()


def check(name, dtype):
    (device, *others), chip = open_topology(name)
    compiled = compiled_product(device, dtype)
    found = estimate(
        read_program(compiled.as_text(), chip.float32_passes),
        chip,
        1,
        compiled.memory_analysis(),
        (),
        {},
    )
    assert found.total.flops == 2 * 256 * 512 * 1024
    assert found.compute_seconds <= found.total.floor_seconds
    assert found.total.seconds >= found.total.floor_seconds
    assert 0 < found.memory.peak < chip.hbm_bytes
    return 1 + len(others), chip


@pytest.mark.aot
@pytest.mark.parametrize(
    ("name", "devices", "links"),
    [
        ("v4:2x2x1", 4, (1, 1)),
        ("v5e:1x1", 1, (1,)),
        ("v5e:4x4", 16, (2, 2)),
        ("v5p:2x2x2", 8, (1, 1, 1)),
        ("v6e:2x4", 8, (1, 2)),
        ("tpu7x:2x2x1", 8, (1, 1)),
    ],
)
def test_tpus(name, devices, links, variables):
    pytest.importorskip("libtpu")
    count, chip = check(name, jnp.bfloat16)
    assert (count, chip.links) == (devices, links)
    sides = name.partition(":")[2].split("x")
    assert count == chip.devices_per_chip * math.prod(map(int, sides))


@pytest.mark.aot
def test_a_shape_that_the_compiler_refuses(variables):
    pytest.importorskip("libtpu")
    with pytest.raises(UserError, match="v5e:3x5"):
        open_topology("v5e:3x5")


@pytest.mark.aot
@pytest.mark.parametrize("name", GPUS)
def test_gpus(name, variables):
    pytest.importorskip("jax_cuda12_plugin")
    count, chip = check(name, jnp.float32 if name == "t4" else jnp.bfloat16)
    assert count == 1 and chip == CHIPS[name]


@pytest.mark.parametrize(
    "kind, op_name, purpose",
    [
        ("all-reduce", "jit(step)/a/transpose(jvp(Net))/conv/dot_general", "gradients"),
        ("all-reduce", "jit(step)/a/jvp(Net)/b4/batch_statistics/sum", None),
        ("all-reduce", "jit(step)/a/transpose(jvp(Net))/batch_statistics/sum", None),
        ("collective-permute", "jit(step)/a/jvp(Net)/conv/shard_map/ppermute", "halo"),
        ("collective-permute", "jit(step)/prepare/rev", None),
        ("all-gather", "jit(step)/a/jvp(Net)/sharding_constraint", "gather"),
        ("all-to-all", "jit(step)/prepare/masks/shard_map", None),
    ],
)
def test_collectives_without_a_known_purpose_are_named(kind, op_name, purpose):
    one = Collective(kind, "f32", op_name, 1, 8.0, 4, False)
    assert purpose_of(one) == (purpose or op_name.removeprefix("jit(step)/"))
    (exchange,) = estimate_of(collectives=[one]).exchanges
    assert exchange.purpose == purpose_of(one)
    assert estimate_of(collectives=[one]).other_bytes == (0 if purpose else 8)
