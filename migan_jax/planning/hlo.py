"""Reading optimised HLO: the cost of every op that a compiled program executes.

Optimised HLO is what a compiler of XLA will run, op by op and already fused, on one of
the devices. Ops are counted with the trip counts of the loops around them. All branches
of a conditional count, as it is not known which one is taken.

Bytes are those of arrays in HBM, padded to the tiles of their layout; the TPU compiler
keeps others in on-chip memory. FLOPs are those of convolutions and matrix products,
without taps that fall on padding or between the elements of a dilated input.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np


class OpKind(StrEnum):
    """Kinds of operations, by what an op or a fusion computes."""

    DEPTHWISE = "depthwise"
    FIR = "FIR filter"
    CONVOLUTION = "convolution"
    MATRIX_PRODUCT = "matrix product"
    REDUCTION = "reduction"
    ELEMENTWISE = "elementwise"
    COPY = "copy"
    PAD_SLICE = "pad, slice"
    GATHER = "gather, scatter"
    RANDOM = "random numbers"
    COLLECTIVE = "collective"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Op:
    """An op of the program with the cost of all its executions.

    Attributes:
      op_name: scopes and primitive that it came from, joined with slashes.
      cycles: the compiler's estimate; 0 if it gives none, as for GPUs.
      pass_flops: FLOPs times the passes that a float32 product takes.
    """

    name: str
    opcode: str
    kind: OpKind
    op_name: str
    times: int
    cycles: int
    hbm_bytes: float
    flops: float
    pass_flops: float


@dataclass(frozen=True, slots=True)
class Collective:
    """The arrays of one dtype in a collective, with all its executions.

    Attributes:
      kind: HLO's opcode, such as "all-reduce".
      times: number of executions.
      bytes: of whole arrays: what is reduced, permuted or scattered, or is gathered.
      group_size: devices that exchange data; of a permutation, those in a chain.
      is_async: whether ops may run at the same time.
    """

    kind: str
    dtype: str
    op_name: str
    times: int
    bytes: float
    group_size: int
    is_async: bool


@dataclass(frozen=True)
class Program:
    """What a compiled program executes on each device."""

    ops: tuple[Op, ...]
    collectives: tuple[Collective, ...]


def read_program(text: str, float32_passes: Mapping[str, float]) -> Program:
    """Read a compiled program (`compiled.as_text()`).

    Args:
      float32_passes: passes of a float32 product, by precision (`Chip.float32_passes`).
    """
    module = _parse(text)
    ops: list[Op] = []
    collectives: list[Collective] = []
    channels: set[str] = set()
    for instruction, computation, times, loop in _executed(module, module.entry, 1):
        op_name = _origin(module, instruction, computation) or loop
        parts = [(instruction, computation), *_inside(module, instruction)]
        products = [product for part in parts if (product := _product(*part))]
        ops.append(
            Op(
                name=instruction.name,
                opcode=instruction.opcode,
                kind=_kind([one for one, _ in parts], products),
                op_name=op_name,
                times=times,
                cycles=instruction.estimated_cycles * times,
                hbm_bytes=_hbm_bytes(module, instruction, computation) * times,
                flops=sum(product.flops for product in products) * times,
                pass_flops=sum(
                    product.flops * product.passes(float32_passes)
                    for product in products
                )
                * times,
            )
        )
        for one, around in parts:
            if _base(one.opcode) in COLLECTIVES:
                is_fused = one is not instruction
                if is_fused:
                    # A chain of fusions overlaps with one collective; all contain it.
                    channel = _between(one.attributes, "channel_id=", ",")
                    if channel in channels:
                        continue
                    channels.add(channel)
                is_async = is_fused or "-start" in one.opcode
                collectives += [
                    Collective(
                        kind=_base(one.opcode),
                        dtype=dtype,
                        op_name=one.op_name or op_name,
                        times=times,
                        bytes=size * times,
                        group_size=_group_size(one.attributes, module.devices),
                        is_async=is_async,
                    )
                    for dtype, size in _exchanged_bytes(one, around).items()
                ]
    return Program(tuple(ops), tuple(collectives))


# Arrays, instructions and computations.


@dataclass(frozen=True, slots=True)
class Array:
    """An array of HLO, such as bf16[8,64,128]{2,1,0:T(8,128)(2,1)S(1)}."""

    dtype: str
    shape: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]
    on_chip: bool

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        """Return the bytes without padding."""
        return self.size * _item_bytes(self.dtype)

    @property
    def padded_bytes(self) -> float:
        """Return the bytes with padding to whole tiles."""
        shape = list(self.shape)
        for axis, side in zip(self.minor_to_major, reversed(self.tile), strict=False):
            shape[axis] = -(-shape[axis] // side) * side
        return math.prod(shape) * _item_bytes(self.dtype)


def _item_bytes(dtype: str) -> float:
    if dtype == "pred":
        return 1
    bits = re.search(r"\d+", dtype)  # tokens have none
    return int(bits[0]) / 8 if bits else 0


_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
HOST = "5"  # the memory space of the host; others but HBM, which is 0, are on the chip


@functools.cache
def _arrays(text: str) -> tuple[Array, ...]:
    """Return the arrays of a type, which may be a tuple."""
    found = []
    for dtype, shape, order, properties in _ARRAY.findall(text):
        tile = re.match(r"T\(([\d,]+)\)", properties)
        space = re.search(r"S\((\d+)\)", properties)
        found.append(
            Array(
                dtype=dtype,
                shape=_integers(shape),
                minor_to_major=_integers(order),
                tile=_integers(tile[1]) if tile else (),
                on_chip=space is not None and space[1] != HOST,
            )
        )
    return tuple(found)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


@dataclass(frozen=True, slots=True)
class Instruction:
    """A line of HLO: %name = type opcode(%operands), attributes."""

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def results(self) -> tuple[Array, ...]:
        """Return the arrays that it computes."""
        return _arrays(self.type)

    @property
    def op_name(self) -> str:
        """Return the scopes and the primitive that it came from."""
        return _between(self.attributes, 'op_name="', '"')

    @property
    def estimated_cycles(self) -> int:
        """Return the TPU compiler's estimate; 0 without one."""
        return int(_between(self.attributes, '"estimated_cycles":"', '"') or 0)

    @property
    def target(self) -> str:
        """Return the name of a custom call's function."""
        return _between(self.attributes, 'custom_call_target="', '"')

    def called(self, *keys: str) -> list[str]:
        """Return the computations that attributes name."""
        return [
            name
            for key in keys
            for names in re.findall(
                rf"{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes
            )
            for name in re.findall(r"[\w.\-]+", names)
        ]


def _between(text: str, start: str, end: str) -> str:
    """Return what is between two texts; empty if the first does not occur."""
    return text.partition(start)[2].partition(end)[0]


@dataclass
class Computation:
    """A function of HLO: its instructions in order, by name."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    parameters: dict[int, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)
    root: str = ""

    def arrays_of(self, names: Iterable[str]) -> list[Array]:
        """Return the arrays that instructions compute."""
        return [array for name in names for array in self.instructions[name].results]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that use each one's result."""
        users = collections.defaultdict(list)
        for instruction in self.instructions.values():
            for name in instruction.operands:
                users[name].append(instruction)
        return users

    @property
    def outputs(self) -> list[Instruction]:
        """Return the instructions whose results it returns."""
        root = self.instructions[self.root]
        names = root.operands if root.opcode == "tuple" else (self.root,)
        return [self.instructions[name] for name in names]


@dataclass
class Module:
    """All computations by name."""

    computations: dict[str, Computation]
    entry: str
    devices: int


_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)(.*)"
)


def _parse(text: str) -> Module:
    header, _, body = text.partition("\n")
    devices = [
        int(_between(header, f"{key}=", ",") or 1)
        for key in ("replica_count", "num_partitions")
    ]
    module = Module({}, "", math.prod(devices))
    current = Computation()
    for line in body.splitlines():
        if not line.startswith(" "):
            if found := _COMPUTATION.match(line):
                is_entry, name = found.groups()
                current = module.computations[name] = Computation()
                if is_entry:
                    module.entry = name
        elif found := _INSTRUCTION.match(line):
            is_root, name, type_, opcode, operands, attributes = found.groups()
            if opcode == "parameter":
                current.parameters[int(operands)] = name
            if opcode == "constant":
                current.constants[name] = operands
            if is_root:
                current.root = name
            names = tuple(re.findall(r"%([\w.\-]+)", operands))
            current.instructions[name] = Instruction(
                name, opcode, type_, names, attributes
            )
    return module


# Instructions that are executed.

# They cost nothing: they name, group or reinterpret what others compute.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
}
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast"}


def _executed(
    module: Module, name: str, times: int, loop: str = ""
) -> Iterator[tuple[Instruction, Computation, int, str]]:
    """Yield what is executed: instruction, computation, times, and the loop's name."""
    computation = module.computations[name]
    for one in computation.instructions.values():
        if one.opcode == "while":
            trips = times * _trip_count(module, one)
            for body in one.called("body"):
                yield from _executed(module, body, trips, one.op_name or loop)
        elif one.opcode in ("call", "conditional"):
            branches = ("branch_computations", "true_computation", "false_computation")
            for callee in one.called("to_apply", *branches):
                yield from _executed(module, callee, times, loop)
        elif not (
            one.opcode in _FREE
            or one.opcode.endswith(("-done", "-update"))  # the start has the cost
            or one.target in _FREE_CALLS
        ):
            yield one, computation, times, loop


def _trip_count(module: Module, loop: Instruction) -> int:
    """Return how many times a loop runs; 1 if that depends on data."""
    if known := _between(loop.attributes, '"known_trip_count":{"n":"', '"'):
        return int(known)
    # The TPU compiler does not say. Loops of JAX count from 0 to a constant.
    (name,) = loop.called("condition")
    condition = module.computations[name]
    root = condition.instructions[condition.root]
    if root.opcode == "compare" and "direction=LT" in root.attributes:
        return int(condition.constants.get(root.operands[1], 1))
    return 1


def _inside(
    module: Module, instruction: Instruction
) -> Iterator[tuple[Instruction, Computation]]:
    """Yield the instructions in a fusion or an asynchronous op, at any depth."""
    for name in instruction.called("calls"):
        computation = module.computations[name]
        for inner in computation.instructions.values():
            yield inner, computation
            yield from _inside(module, inner)


def _origin(module: Module, instruction: Instruction, computation: Computation) -> str:
    """Return where an op came from: its scopes, or those of what it moves.

    The compiler's own copies and slices lack scopes; they belong to what they move.
    Empty if that is an argument.
    """
    while True:
        inner = (one.op_name for one, _ in _inside(module, instruction))
        for op_name in (instruction.op_name, *inner):
            if "/" in op_name:
                return op_name
        if not instruction.operands:
            return ""
        instruction = computation.instructions[instruction.operands[0]]


# Bytes.

_SLICES = {"slice", "dynamic-slice", "gather"}


def _hbm_bytes(
    module: Module, instruction: Instruction, computation: Computation
) -> float:
    return sum(
        array.padded_bytes
        for array in _traffic(module, instruction, computation)
        if not array.on_chip
    )


def _traffic(
    module: Module, instruction: Instruction, computation: Computation
) -> Iterator[Array]:
    """Yield the arrays that an op reads and writes; of slices, only these."""
    opcode = instruction.opcode
    operands = computation.arrays_of(instruction.operands)
    results = list(instruction.results)
    if opcode == "fusion":
        yield from _fusion_traffic(module, instruction, computation)
        return
    if opcode == "copy-start":  # returns its operand, too
        results = results[:1]
    elif _starts_with_operands(opcode):
        results = results[len(operands) :]
    elif instruction.target.startswith("__cu"):  # cuDNN's and cuBLAS's have scratch
        results = results[:1]
    if opcode.removesuffix("-start") in _SLICES:
        results = results[:1]
        operands = [_placed(results[0], like=operands[0])]
    elif opcode == "dynamic-update-slice":  # in place
        operands = operands[1:2]
        results = [_placed(operands[0], like=results[0])]
    yield from operands
    yield from results


def _fusion_traffic(
    module: Module, fusion: Instruction, computation: Computation
) -> Iterator[Array]:
    (name,) = fusion.called("calls")
    body = module.computations[name]
    for index, operand in enumerate(fusion.operands):
        (array,) = computation.instructions[operand].results
        yield from _read(module, body, body.parameters[index], array)
    for output, result in zip(body.outputs, fusion.results, strict=False):
        yield _written(module, body, output, result)


def _read(module: Module, body: Computation, name: str, array: Array) -> list[Array]:
    """Return what a fusion reads of an array, which it calls `name`."""
    found = []
    for user in body.users[name]:
        if user.opcode in _SLICES and user.operands[0] == name:
            found.append(_placed(user.results[0], like=array))
        elif user.opcode == "bitcast":
            found += _read(module, body, user.name, array)
        elif user.opcode == "fusion":
            (callee,) = user.called("calls")
            inner = module.computations[callee]
            parameter = inner.parameters[user.operands.index(name)]
            found += _read(module, inner, parameter, array)
        elif not _updates(user, name):
            return [array]
    is_whole = sum(part.padded_bytes for part in found) > array.padded_bytes
    return [array] if is_whole else found


def _written(
    module: Module, body: Computation, output: Instruction, array: Array
) -> Array:
    """Return what a fusion writes of an array: all, or what it updates in place."""
    while output.opcode == "bitcast":
        output = body.instructions[output.operands[0]]
    if output.opcode == "dynamic-update-slice":
        (update,) = body.arrays_of(output.operands[1:2])
        return _placed(update, like=array)
    if output.opcode == "fusion":
        (callee,) = output.called("calls")
        inner = module.computations[callee]
        return _written(module, inner, inner.instructions[inner.root], array)
    return array


def _updates(user: Instruction, name: str) -> bool:
    """Return whether an instruction overwrites a part of an array in place."""
    return user.opcode == "dynamic-update-slice" and user.operands[0] == name


def _placed(array: Array, like: Array) -> Array:
    return dataclasses.replace(array, on_chip=like.on_chip)


def _starts_with_operands(opcode: str) -> bool:
    """Return whether an op's results start with its operands, unchanged."""
    return opcode.endswith("-start") and opcode != "all-reduce-start"


# Convolutions and matrix products.


@dataclass(frozen=True, slots=True)
class Product:
    """A convolution or a matrix product."""

    kind: OpKind
    flops: float
    is_float32: bool
    precision: str

    def passes(self, float32_passes: Mapping[str, float]) -> float:
        """Return its time relative to a bfloat16 product."""
        return float32_passes[self.precision] if self.is_float32 else 1.0


def _product(instruction: Instruction, computation: Computation) -> Product | None:
    opcode, target = instruction.opcode, instruction.target
    is_convolution = opcode == "convolution" or target.startswith("__cudnn$conv")
    if not (is_convolution or opcode == "dot" or target.startswith("__cublas")):
        return None
    left, right = computation.arrays_of(instruction.operands[:2])
    result = instruction.results[0]
    kind = OpKind.MATRIX_PRODUCT
    if is_convolution:
        kind, flops = _convolution(instruction, left, right, result)
    else:
        flops = 2 * result.size * _contracted_size(instruction, left)
    precision = re.search(
        r'operand_precision(?:=\{|":\[")(\w+)', instruction.attributes
    )
    return Product(
        kind=kind,
        flops=flops,
        is_float32=left.dtype == right.dtype == "f32",
        precision=precision[1].lower() if precision else "default",
    )


def _contracted_size(instruction: Instruction, left: Array) -> int:
    axes = re.search(
        r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', instruction.attributes
    )
    return math.prod(left.shape[axis] for axis in _integers(axes[1]))


def _convolution(
    instruction: Instruction, left: Array, right: Array, result: Array
) -> tuple[OpKind, float]:
    """Return the kind and the FLOPs of a convolution."""
    attributes, target = instruction.attributes, instruction.target
    x, kernel, y = left, right, result
    # cuDNN's gradients have the window and the labels of the convolution itself.
    if target.endswith("BackwardFilter"):
        x, kernel, y = left, result, right
    elif target.endswith("BackwardInput"):
        x, kernel, y = result, right, left
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    of_x, of_kernel, of_y = labels.groups()
    features = y.shape[of_y.index("f")]
    window = dict(
        item.split("=") for item in _between(attributes, "window={", "}").split()
    )
    taps, is_product, sides = 1, True, []
    for axis in range(sum(label.isdigit() for label in of_x)):
        inputs = x.shape[of_x.index(str(axis))]
        outputs = y.shape[of_y.index(str(axis))]
        side, stride, dilation, input_dilation = (
            int(window[key].split("x")[axis]) if key in window else 1
            for key in ("size", "stride", "rhs_dilate", "lhs_dilate")
        )
        before = (
            int(window["pad"].split("x")[axis].split("_")[0]) if "pad" in window else 0
        )
        valid = _valid_taps(
            inputs, outputs, side, stride, dilation, input_dilation, before
        )
        taps *= valid
        # Each output has one tap, or one output has all of them.
        is_product &= outputs in (1, valid)
        sides.append(side)
    flops = 2.0 * taps * y.shape[of_y.index("b")] * features
    flops *= kernel.shape[of_kernel.index("i")]
    groups = _number(attributes, "feature_group_count")
    batch_groups = _number(attributes, "batch_group_count")
    if max(groups, batch_groups) == features > 1:
        if batch_groups > 1:  # the gradient of a kernel, which is the output
            sides = [y.shape[of_y.index(str(axis))] for axis in range(len(sides))]
        # Layers have 3x3 kernels, FIR filters 4x4.
        is_fir = all(side % 2 == 0 for side in sides)
        return OpKind.FIR if is_fir else OpKind.DEPTHWISE, flops
    return OpKind.MATRIX_PRODUCT if is_product else OpKind.CONVOLUTION, flops


def _number(attributes: str, key: str) -> int:
    found = re.search(rf"{key}=(\d+)", attributes)
    return int(found[1]) if found else 1


@functools.cache
def _valid_taps(
    inputs: int,
    outputs: int,
    side: int,
    stride: int,
    dilation: int,
    input_dilation: int,
    before: int,
) -> int:
    """Count the taps of all outputs along an axis that fall on an input."""
    starts = np.arange(outputs)[:, None] * stride - before
    positions = starts + np.arange(side)[None] * dilation
    inside = (positions >= 0) & (positions <= (inputs - 1) * input_dilation)
    return int((inside & (positions % input_dilation == 0)).sum())


# Kinds.

_MOVES = {
    *("copy", "copy-start", "transpose", "reshape", "bitcast", "convert", "reverse"),
    *("bitcast-convert", "parameter", "constant", "tuple", "get-tuple-element"),
    *("fusion", "call"),  # what they contain is listed, too
}
# Selecting and clamping make the padding of an array, or what a slice lacks.
_PADS = {
    *("pad", "concatenate", "dynamic-update-slice", "slice", "dynamic-slice"),
    *("slice-start", "dynamic-slice-start", "async-start", "broadcast", "select"),
    *("iota",),
}
_REDUCTIONS = {"reduce", "reduce-window", "select-and-scatter", "sort"}


def _kind(instructions: list[Instruction], products: list[Product]) -> OpKind:
    """Return the kind of an op, which comes with what is inside it."""
    if products:
        return max(products, key=lambda product: product.flops).kind
    opcodes = {one.opcode for one in instructions if one.target not in _FREE_CALLS}
    if any(_base(opcode) in COLLECTIVES for opcode in opcodes):
        return OpKind.COLLECTIVE
    if opcodes & {"rng-bit-generator", "xor"}:  # JAX's Threefry mixes by xor
        return OpKind.RANDOM
    if opcodes & {"gather", "scatter"}:
        return OpKind.GATHER
    if opcodes & _REDUCTIONS:
        return OpKind.REDUCTION
    if opcodes <= _MOVES:
        return OpKind.COPY
    if "custom-call" in opcodes:
        return OpKind.OTHER
    # Arithmetic on integers and booleans computes positions.
    arithmetic = {
        one.opcode
        for one in instructions
        if one.opcode not in _MOVES | _PADS and "f" in one.type.partition("[")[0]
    }
    return OpKind.ELEMENTWISE if arithmetic else OpKind.PAD_SLICE


# Collectives.

COLLECTIVES = {
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast"),
}


def _base(opcode: str) -> str:
    return opcode.removesuffix("-start")


def _exchanged_bytes(
    instruction: Instruction, computation: Computation
) -> dict[str, float]:
    """Return the bytes of the whole arrays of a collective, by dtype."""
    arrays = computation.arrays_of(instruction.operands)
    if _base(instruction.opcode) == "all-gather":
        results = instruction.results
        is_start = _starts_with_operands(instruction.opcode)
        arrays = list(results[len(arrays) if is_start else 0 :])
    sizes: dict[str, float] = collections.defaultdict(float)
    for array in arrays:
        sizes[array.dtype] += array.bytes
    return sizes


def _group_size(attributes: str, devices: int) -> int:
    """Return the number of devices that exchange data with each other."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        numbers = _integers(pairs[1])
        return _chain_length(dict(zip(numbers[::2], numbers[1::2], strict=True)))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"\w+", mesh[2]))
    first = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    return len(_integers(first[1])) if first else devices


def _chain_length(targets: dict[int, int]) -> int:
    """Return the number of devices of a chain or ring; all are as long."""
    start = min(targets.keys() - set(targets.values()), default=min(targets))
    length, device = 1, targets[start]
    while device != start:
        length += 1
        if device not in targets:
            break
        device = targets[device]
    return length
