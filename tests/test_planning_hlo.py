"""Costs of ops that are read from optimised HLO, of hand-written texts and of CPUs'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from migan_jax.planning.hlo import OpKind, read_program

PASSES = {"default": 1.0, "high": 3.0, "highest": 6.0}

# As the TPU compiler writes it: a loop around a fused convolution, whose result stays
# on the chip.
LOOP = """\
HloModule step, is_scheduled=true, replica_count=2, num_partitions=4

%inner (p.0: bf16[8,16,16,64]) -> f32[8,16,16,64] {
  %p.0 = bf16[8,16,16,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %c.0 = f32[8,16,16,64]{3,2,1,0:T(8,128)} convert(%p.0)
}

%fused (p.1: bf16[8,16,16,64], p.2: f32[3,3,64,128]) -> f32[8,8,8,128] {
  %p.1 = bf16[8,16,16,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %x = f32[8,16,16,64]{3,2,1,0:T(8,128)} fusion(%p.1), kind=kLoop, calls=%inner
  %p.2 = f32[3,3,64,128]{3,2,1,0:T(8,128)} parameter(1)
  ROOT %y = f32[8,8,8,128]{3,2,1,0:T(8,128)S(1)} convolution(%x, %p.2), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, operand_precision={high,high}
}

%body (state: (s32[], bf16[8,16,16,64], f32[3,3,64,128])) -> (s32[], bf16[8,16,16,64], f32[3,3,64,128]) {
  %state = (s32[]{:T(128)}, bf16[8,16,16,64]{3,2,1,0:T(8,128)(2,1)}, /*index=2*/f32[3,3,64,128]{3,2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %a = bf16[8,16,16,64]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %w = f32[3,3,64,128]{3,2,1,0:T(8,128)} get-tuple-element(%state), index=2
  %conv = f32[8,8,8,128]{3,2,1,0:T(8,128)S(1)} fusion(%a, %w), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/turn/jvp(Net)/conv" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %next = (s32[]{:T(128)}, bf16[8,16,16,64]{3,2,1,0:T(8,128)(2,1)}, f32[3,3,64,128]{3,2,1,0:T(8,128)}) tuple(%i, %a, %w)
}

%condition (state.1: (s32[], bf16[8,16,16,64], f32[3,3,64,128])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  %state.1 = (s32[]{:T(128)}, bf16[8,16,16,64]{3,2,1,0}, f32[3,3,64,128]{3,2,1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

ENTRY %main (arg: (s32[], bf16[8,16,16,64], f32[3,3,64,128])) -> (s32[], bf16[8,16,16,64], f32[3,3,64,128]) {
  %arg = (s32[]{:T(128)}, bf16[8,16,16,64]{3,2,1,0:T(8,128)(2,1)}, f32[3,3,64,128]{3,2,1,0:T(8,128)}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, bf16[8,16,16,64]{3,2,1,0:T(8,128)(2,1)}, f32[3,3,64,128]{3,2,1,0:T(8,128)}) while(%arg), condition=%condition, body=%body
}
"""  # noqa: E501


def entry(*lines, header="num_partitions=8", computations=""):
    """Write a program of these lines, with two arguments."""
    lines = "\n".join(f"  {line}" for line in lines)
    return f"""HloModule jit_step, {header}

{computations}
ENTRY %main (a: f32[64,128], b: bf16[40,100]) -> f32[] {{
  %a = f32[64,128]{{1,0:T(8,128)}} parameter(0), metadata={{op_name="a"}}
  %b = bf16[40,100]{{1,0:T(8,128)(2,1)}} parameter(1), metadata={{op_name="b"}}
{lines}
}}
"""


def read(*lines, **options):
    return read_program(entry(*lines, **options), PASSES)


KNOWN = ', backend_config={"known_trip_count":{"n":"7"}}'


@pytest.mark.parametrize(("known", "times"), [("", 5), (KNOWN, 7)])
def test_ops_of_loops_count_every_time(known, times):
    text = LOOP.replace("body=%body", f"body=%body{known}")
    (op,) = read_program(text, PASSES).ops
    assert (op.times, op.cycles) == (times, times * 1000)
    assert op.kind == OpKind.CONVOLUTION
    assert op.op_name == "jit(step)/turn/jvp(Net)/conv"
    # Of 3 taps a row, the first output has 2 on the picture.
    taps = (8 * 3 - 1) ** 2
    assert op.flops == times * 2 * 8 * taps * 64 * 128
    assert op.pass_flops == 3 * op.flops
    # 64 channels are padded to 128, and the result is not in HBM.
    assert op.hbm_bytes == times * (8 * 16 * 16 * 128 * 2 + 3 * 3 * 64 * 128 * 4)


@pytest.mark.parametrize(
    ("type_", "size"),
    [
        ("f32[33,100]{1,0:T(8,128)}", 40 * 128 * 4),
        ("f32[33,100]{0,1:T(8,128)}", 128 * 104 * 4),
        ("bf16[2,33,100]{2,1,0:T(8,128)(2,1)}", 2 * 40 * 128 * 2),
        ("f32[100]{0:T(128)}", 128 * 4),
        ("f32[33,100]{1,0}", 33 * 100 * 4),
        ("pred[7]{0}", 7),
        ("s4[8]{0}", 4),
        ("f8e4m3fn[8]{0}", 8),
        ("f32[33,100]{1,0:T(8,128)S(1)}", 0),
        ("f32[33,100]{1,0:T(8,128)S(5)}", 40 * 128 * 4),
        ("(f32[8]{0}, (bf16[8]{0}, token[]))", 32 + 16),
    ],
)
def test_bytes_are_padded_and_in_hbm(type_, size):
    (op,) = read(f"ROOT %r = {type_} rng-bit-generator()").ops
    assert op.hbm_bytes == size and op.kind == OpKind.RANDOM


SLICED = """\
%nested (q: f32[64,128], j: s32[]) -> f32[128] {
  %q = f32[64,128]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %t = f32[1,128]{1,0} fusion(%q, %j), kind=kLoop, calls=%sliced
  ROOT %r.1 = f32[128]{0} negate(%t)
}

%sliced (p: f32[64,128], i: s32[]) -> f32[1,128] {
  %p = f32[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,128]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,128}
}

%updated (p.1: f32[64,128], u: f32[1,128], i.1: s32[]) -> f32[64,128] {
  %p.1 = f32[64,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  ROOT %d = f32[64,128]{1,0} dynamic-update-slice(%p.1, %u, %i.1, %i.1)
}
"""


def test_slices_move_only_their_own_bytes():
    program = read(
        "%i = s32[] constant(3)",
        "%row = f32[1,128]{1,0} fusion(%a, %i), kind=kLoop, calls=%sliced",
        "%all = f32[64,128]{1,0} fusion(%a, %row, %i), kind=kLoop, calls=%updated",
        "%deep = f32[128]{0} fusion(%a, %i), kind=kLoop, calls=%nested",
        "%direct = f32[2,128]{1,0} slice(%a), slice={[0:2], [0:128]}",
        "%start = ((f32[64,128]{1,0}), f32[8,128]{1,0:S(1)}, s32[]{:S(2)}) "
        "slice-start(%a), slice={[0:8], [0:128]}",
        "%done = f32[8,128]{1,0:S(1)} slice-done(%start)",
        computations=SLICED,
    )
    sizes = {op.name: op.hbm_bytes for op in program.ops}
    row = 128 * 4
    position = 4
    assert sizes["row"] == sizes["deep"] == sizes["all"] == 2 * row + position
    assert sizes["direct"] == 4 * row and sizes["start"] == 8 * row
    assert len(sizes) == 5
    kinds = {op.kind for op in program.ops if op.name != "deep"}
    assert kinds == {OpKind.PAD_SLICE}


def test_copies_to_the_chip_read_once_and_belong_to_what_they_move():
    program = read(
        '%y = f32[64,128]{1,0} negate(%a), metadata={op_name="jit(f)/Net/neg"}',
        "%c = (f32[64,128]{1,0:S(1)}, f32[64,128]{1,0}, u32[]{:S(2)}) copy-start(%y)",
        "%d = f32[64,128]{1,0:S(1)} copy-done(%c)",
        "ROOT %e = f32[64,128]{0,1} copy(%d)",
        "%f = f32[64,128]{0,1} copy(%a)",
    )
    negate, start, copy, other = program.ops
    assert start.hbm_bytes == copy.hbm_bytes == 64 * 128 * 4
    assert start.op_name == copy.op_name == negate.op_name == "jit(f)/Net/neg"
    assert other.op_name == ""
    assert (negate.kind, start.kind, copy.kind) == ("elementwise", "copy", "copy")


LABELS = "dim_labels=b01f_01io->b01f"
GROUPED = f"{LABELS}, feature_group_count=64"
X, HALF = "f32[8,16,16,64]{3,2,1,0}", "f32[8,8,8,64]{3,2,1,0}"


@pytest.mark.parametrize(
    ("x", "kernel", "y", "window", "labels", "kind", "taps"),
    [
        (X, "3,3,1,64", X, "size=3x3 pad=1_1x1_1", GROUPED, OpKind.DEPTHWISE, 46**2),
        (X, "4,4,1,64", HALF, "size=4x4 stride=2x2 pad=1_1x1_1", GROUPED,
         OpKind.FIR, 30**2),
        (HALF, "4,4,1,64", X, "size=4x4 pad=2_2x2_2 lhs_dilate=2x2", GROUPED,
         OpKind.FIR, 30**2),
        (X, "1,1,64,64", X, "size=1x1", LABELS, OpKind.MATRIX_PRODUCT, 64 * 16**2),
        (X, "3,3,64,64", X, "size=3x3 pad=1_1x1_1", LABELS,
         OpKind.CONVOLUTION, 64 * 46**2),
    ],
)  # fmt: skip
def test_convolutions(x, kernel, y, window, labels, kind, taps):
    (op,) = read(
        f"%x = {x} parameter(2)",
        f"%k = f32[{kernel}]{{3,2,1,0}} parameter(3)",
        f"ROOT %y = {y} convolution(%x, %k), window={{{window}}}, {labels}",
    ).ops
    assert op.flops == op.pass_flops == 2 * 8 * 64 * taps
    assert op.kind == kind


def test_the_gradient_of_a_depthwise_kernel():
    (op,) = read(
        "%x = bf16[1,34,256,128]{3,2,1,0} parameter(2)",
        "%y = bf16[1,32,256,128]{3,2,1,0} parameter(3)",
        "ROOT %k = f32[3,3,1,128]{3,2,1,0} convolution(%x, %y), "
        "window={size=32x256 pad=0_0x1_1}, dim_labels=f01b_i01o->01bf, "
        "batch_group_count=128",
    ).ops
    assert op.kind == OpKind.DEPTHWISE
    assert op.flops == 2 * 128 * (3 * 32) * (3 * 256 - 2)


@pytest.mark.parametrize(
    ("target", "operands", "result"),
    [
        ("Forward", "%x, %k", "f32[8,16,16,32]"),
        ("BackwardInput", "%y, %k", "f32[8,16,16,64]"),
        ("BackwardFilter", "%x, %y", "f32[32,3,3,64]"),
    ],
)
def test_convolutions_of_cudnn(target, operands, result):
    """All have the window of the convolution itself, and return their scratch, too."""
    (op,) = read(
        f"%x = {X} parameter(2)",
        "%y = f32[8,16,16,32]{3,2,1,0} parameter(3)",
        "%k = f32[32,3,3,64]{3,2,1,0} parameter(4)",
        f"%r = ({result}{{3,2,1,0}}, u8[999]{{0}}) custom-call({operands}), "
        "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, "
        f'custom_call_target="__cudnn$conv{target}"',
    ).ops
    assert op.flops == 2 * 8 * 46**2 * 64 * 32
    assert op.kind == OpKind.CONVOLUTION
    assert op.hbm_bytes == 4 * (8 * 16 * 16 * (64 + 32) + 32 * 9 * 64)


@pytest.mark.parametrize(
    ("line", "kind", "size", "group", "is_async"),
    [
        ("f32[64,128]{1,0} all-reduce(%a), replica_groups={{0,1,2,3},{4,5,6,7}}",
         "all-reduce", 32768, 4, False),
        ("f32[64,128]{1,0} all-reduce-start(%a), replica_groups=[4,2]<=[2,4]T(1,0)",
         "all-reduce", 32768, 2, True),
        ("f32[64,128]{1,0} all-reduce(%a), replica_groups={}",
         "all-reduce", 32768, 8, False),
        ("f32[64,128]{1,0} all-reduce(%a), "
         "replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=1] {'axis_1','axis_2'}",
         "all-reduce", 32768, 4, False),
        ("(f32[64,128]{1,0}, f32[128,128]{1,0}) all-gather-start(%a), "
         "replica_groups={{0,1}}, dimensions={0}", "all-gather", 65536, 2, True),
        ("f32[16,128]{1,0} reduce-scatter(%a), replica_groups=[2,4]<=[8]",
         "reduce-scatter", 32768, 4, False),
        ("(f32[64,128]{1,0}, f32[64,128]{1,0}, u32[]{:S(2)}) "
         "collective-permute-start(%a), source_target_pairs={{1,0},{2,1},{5,4},{6,5}}",
         "collective-permute", 32768, 3, True),
        ("f32[64,128]{1,0} collective-permute(%a), "
         "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}",
         "collective-permute", 32768, 4, False),
    ],
)  # fmt: skip
def test_collectives(line, kind, size, group, is_async):
    program = read(f'%r = {line}, metadata={{op_name="jit(f)/Net/x"}}')
    (one,) = program.collectives
    assert (one.kind, one.dtype, one.times, one.bytes) == (kind, "f32", 1, size)
    assert (one.group_size, one.is_async) == (group, is_async)
    assert one.op_name == "jit(f)/Net/x"
    assert program.ops[0].kind == OpKind.COLLECTIVE and not program.ops[0].cycles


def test_a_collective_in_a_chain_of_fusions_counts_once():
    """Each fusion computes a part of something else meanwhile, and contains it."""
    fusion = (
        "%{0} (p: f32[64,128]) -> f32[128,128] {{\n"
        "  %p = f32[64,128]{{1,0}} parameter(0)\n"
        "  ROOT %g = f32[128,128]{{1,0}} all-gather(%p), channel_id={1}, "
        "replica_groups={{{{0,1}}}}, dimensions={{0}}\n"
        "}}\n\n"
    )
    program = read(
        *(
            f"%r{i} = f32[128,128]{{1,0}} fusion(%a), kind=kCustom, calls=%{name}"
            for i, name in enumerate("xyz")
        ),
        computations="".join(
            fusion.format(name, channel)
            for name, channel in (("x", 7), ("y", 7), ("z", 8))
        ),
    )
    assert [one.bytes for one in program.collectives] == [65536, 65536]
    assert all(one.is_async for one in program.collectives)


def test_collectives_are_counted_by_dtype_and_in_asynchronous_computations():
    program = read(
        "%r = (f32[64,128]{1,0}, bf16[40,100]{1,0}) all-reduce(%a, %b), to_apply=%add",
        "%s = ((f32[64,128]{1,0}), f32[64,128]{1,0}, u32[]) async-start(%a), "
        "calls=%wrapped",
        "%u = f32[64,128]{1,0} async-done(%s), calls=%wrapped",
        computations="""\
%wrapped (p: f32[64,128]) -> f32[64,128] {
  %p = f32[64,128]{1,0} parameter(0)
  ROOT %x = f32[64,128]{1,0} all-to-all(%p), replica_groups=[2,4]<=[8]
}
""",
    )
    found = [(one.kind, one.dtype, one.bytes) for one in program.collectives]
    assert found == [
        ("all-reduce", "f32", 32768),
        ("all-reduce", "bf16", 8000),
        ("all-to-all", "f32", 32768),
    ]
    assert [one.is_async for one in program.collectives] == [False, False, True]


def test_products_of_a_compiled_program():
    """On a CPU, which has its own names for much, but one for products."""

    def step(x, w, v):
        with jax.named_scope("Net"):
            y = jnp.einsum("nd,de->ne", x, w, precision="highest")
        return jax.lax.cond(y.sum() > 0, lambda: y @ v, lambda: y @ (2 * v))

    x, w, v = np.ones((6, 32)), np.ones((32, 16)), np.ones((16, 8))
    arguments = [jnp.asarray(value, jnp.float32) for value in (x, w, v)]
    text = jax.jit(step).lower(*arguments).compile().as_text()
    products = [op for op in read_program(text, PASSES).ops if op.flops]
    assert {op.kind for op in products} == {OpKind.MATRIX_PRODUCT}
    # Both branches count.
    assert sorted(op.flops for op in products) == [1536, 1536, 6144]
    (first,) = (op for op in products if op.flops == 6144)
    assert first.pass_flops == 6 * 6144 and "Net" in first.op_name.split("/")
