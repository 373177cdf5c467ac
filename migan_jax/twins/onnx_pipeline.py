"""The whole pipeline, photo and mask to filled photo, as one ONNX graph.

It computes `geometry/fill.py` with one crop around the whole hole. Cropping, mirrored
padding and resizing are matrix products. The graph computes the matrices from the
hole's bounding box, so every image of a batch has its own crop, without loops or
branches:

  network input = rows @ photo @ columns, with a triangle kernel in both
  completion    = rows @ network output @ columns, with a cubic kernel in both

Pixel positions are integers, so it is exact which pixels have zero weight.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from migan_jax.geometry.crops import BOX_DIVISOR, NETWORK_DIVISOR
from migan_jax.geometry.fill import DEFAULT_FEATHER, MAX_UNKNOWN_FRACTION, falloff
from migan_jax.twins.onnx_network import INPUT, OUTPUT

IMAGE, MASK, RESULT = "image", "mask", "result"
BYTE, FLOAT = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT


class Operators:
    """Builds nodes: `op.Max(a, b)` adds one and returns its output's name.

    Inputs are names or constants; integers become int64, others float32.
    """

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[Any, ...], onnx.TensorProto] = {}

    def __getattr__(self, kind: str) -> Any:
        def add(*inputs: Any, **attributes: Any) -> str:
            named = [x if isinstance(x, str) else self._constant(x) for x in inputs]
            result = f"{kind}_{len(self.nodes)}"
            node = helper.make_node(kind, named, [result], result, **attributes)
            self.nodes.append(node)
            return result

        return add

    def _constant(self, value: Any) -> str:
        array = np.asarray(value)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        key = array.dtype, array.shape, array.tobytes()
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.constants[key] = numpy_helper.from_array(array, name)
        return self.constants[key].name


class CropAxis(NamedTuple):
    """One axis of all crops; values are [batch, 1] except for the last two."""

    start: str  # of the hole's box
    stop: str
    first: str  # of the photo's pixels that the crop covers
    covered: str  # how many pixels it covers
    inner: str  # how many of the network's pixels they become
    offset: str  # of the first of these
    low: str  # start of the union of all crops, [1]
    high: str  # its end, [1]


def to_pipeline(network: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """Build a pipeline around a network for any number of squares of `size`.

    It maps uint8 image (N, 3, H, W) and mask (N, 1, H, W), 255 where known, to result.
    """
    op = Operators()
    hole = _find_hole(op)
    rows, columns = _plan_crops(op, hole, size)
    weight, unknown = _paste_weights(op, _slice(op, hole, rows, columns))
    known, masked = _make_network_input(op, rows, columns, unknown, size)
    before = len(op.nodes)
    completed = _complete(op, known, masked)
    _paste(op, completed, weight, rows, columns, size)
    nodes = [*op.nodes[:before], *network.graph.node, *op.nodes[before:]]

    def byte_tensor(name: str, channels: int) -> onnx.ValueInfoProto:
        shape = ["batch", channels, "height", "width"]
        return helper.make_tensor_value_info(name, BYTE, shape)

    graph = helper.make_graph(
        nodes,
        "inpainting",
        [byte_tensor(IMAGE, 3), byte_tensor(MASK, 1)],
        [byte_tensor(RESULT, 3)],
        [*network.graph.initializer, *op.constants.values()],
    )
    model = helper.make_model(
        graph, opset_imports=network.opset_import, ir_version=network.ir_version
    )
    onnx.checker.check_model(model)
    return model


def _find_hole(op: Operators) -> str:
    """Return 1 in the hole, [batch, 1, H, W]: the mask's low side."""
    levels = op.Cast(MASK, to=FLOAT)
    largest = op.ReduceMax(levels, [1, 2, 3])
    # An all-zero mask is all hole.
    low = op.Less(op.Mul(levels, 2.0), op.Max(largest, 1.0))
    return op.Cast(low, to=FLOAT)


def _plan_crops(op: Operators, hole: str, size: int) -> tuple[CropAxis, CropAxis]:
    """Compute `geometry.crops.crop_around` for every image's hole."""
    shape = op.Shape(IMAGE)
    boxes = []
    for axis, other in ((2, 3), (3, 2)):
        profile = op.ReduceMax(hole, [1, other], keepdims=0)
        start = op.ArgMax(profile, axis=1)
        stop = op.Add(op.ArgMax(profile, axis=1, select_last_index=1), 1)
        boxes.append((start, stop, op.Slice(shape, [axis], [axis + 1])))
    longer = op.Max(*(op.Sub(stop, start) for start, stop, _ in boxes))
    context = op.Max(op.Div(longer, BOX_DIVISOR), size // NETWORK_DIVISOR)
    lengths = [
        op.Sub(op.Min(op.Add(stop, context), length), op.Max(op.Sub(start, context), 0))
        for start, stop, length in boxes
    ]
    side = op.Max(size, *lengths)
    rows, columns = (_crop_axis(op, *box, side, size) for box in boxes)
    return rows, columns


def _crop_axis(
    op: Operators, start: str, stop: str, length: str, side: str, size: int
) -> CropAxis:
    """Compute `geometry.crops._crop_axis`, and the union over the batch."""
    covered = op.Min(side, length)
    middle = op.Div(op.Sub(op.Add(start, stop), side), 2)
    first = op.Min(op.Max(middle, 0), op.Sub(length, covered))
    twice = op.Add(op.Mul(covered, 2 * size), side)
    inner = op.Max(1, op.Div(twice, op.Mul(side, 2)))
    offset = op.Div(op.Sub(size, inner), 2)
    low = op.ReduceMin(first, [0, 1], keepdims=0)
    high = op.ReduceMax(op.Add(first, covered), [0, 1], keepdims=0)
    ends = (op.Reshape(end, [1]) for end in (low, high))
    return CropAxis(start, stop, first, covered, inner, offset, *ends)


def _slice(op: Operators, value: str, rows: CropAxis, columns: CropAxis) -> str:
    """Slice [batch, channels, H, W] to the union of all crops."""
    starts = op.Concat(rows.low, columns.low, axis=0)
    ends = op.Concat(rows.high, columns.high, axis=0)
    return op.Slice(value, starts, ends, [2, 3])


def _paste_weights(op: Operators, hole: str) -> tuple[str, str]:
    """Return the completion's paste weight, and 1 where the network sees nothing.

    The weight depends on the Euclidean distance to the hole. So it is a sum over
    dilations of the hole by discs, each weighted by the falloff to the next radius.
    """
    assert DEFAULT_FEATHER == 2, "the discs below have the radii 1, sqrt(2) and 2"

    def dilate(rows: int, columns: int) -> str:
        kernel = [2 * rows + 1, 2 * columns + 1]
        return op.MaxPool(
            hole, kernel_shape=kernel, pads=[rows, columns, rows, columns]
        )

    cross, square = op.Max(dilate(0, 1), dilate(1, 0)), dilate(1, 1)
    discs = [hole, cross, square, op.Max(square, dilate(0, 2), dilate(2, 0))]
    levels = [*falloff(DEFAULT_FEATHER)[[0, 1, 2, 4]], 0.0]
    terms = [
        op.Mul(disc, float(level - levels[n + 1]))
        for n, (disc, level) in enumerate(zip(discs, levels[:-1], strict=True))
    ]
    return op.Sum(*terms), discs[-1]


def _make_network_input(
    op: Operators, rows: CropAxis, columns: CropAxis, unknown: str, size: int
) -> tuple[str, str]:
    """Add the network's input; return its mask and its masked image."""
    # Concatenating fails unless the mask has the photo's size.
    both = _slice(op, op.Concat(IMAGE, MASK, axis=1), rows, columns)
    photo = op.Cast(op.Slice(both, [0], [3], [1]), to=FLOAT)
    photo = op.Concat(photo, unknown, axis=1)
    matrices = (_downsampling_matrix(op, axis, size) for axis in (rows, columns))
    resized = _resize(op, photo, *matrices)
    unknown_fraction = op.Slice(resized, [3], [4], [1])
    known = op.Cast(op.Less(unknown_fraction, MAX_UNKNOWN_FRACTION), to=FLOAT)
    colours = op.Sub(op.Div(op.Slice(resized, [0], [3], [1]), 127.5), 1.0)
    masked = op.Mul(colours, known)
    op.Concat(op.Sub(known, 0.5), masked, axis=1)
    op.nodes[-1].output[0] = INPUT
    return known, masked


def _resize(op: Operators, planes: str, rows: str, columns: str) -> str:
    """Compute rows @ planes @ columns for each image and channel."""
    rows, columns = (op.Unsqueeze(matrix, [1]) for matrix in (rows, columns))
    transposed = op.Transpose(columns, perm=[0, 1, 3, 2])
    return op.MatMul(op.MatMul(rows, planes), transposed)


def _downsampling_matrix(op: Operators, axis: CropAxis, size: int) -> str:
    """Return [batch, size, pixels]: antialiased triangle kernel, mirrored photo."""
    count = op.Range(0, size, 1)
    period = op.Mul(axis.inner, 2)
    phase = op.Mod(op.Sub(count, axis.offset), period)
    mirrored = op.Sub(op.Sub(period, 1), phase)
    target = op.Where(op.Less(phase, axis.inner), phase, mirrored)
    pixel = op.Sub(
        op.Range(_scalar(op, axis.low), _scalar(op, axis.high), 1), axis.first
    )
    distance = _centre_distances(op, target, axis.covered, pixel, axis.inner)
    reach = op.Unsqueeze(op.Mul(axis.covered, 2), [2])
    triangle = op.Relu(op.Cast(op.Sub(reach, distance), to=FLOAT))
    inside = op.And(op.Less(-1, pixel), op.Less(pixel, axis.covered))
    return _normalise(
        op, op.Mul(triangle, op.Unsqueeze(op.Cast(inside, to=FLOAT), [1]))
    )


def _upsampling_matrix(
    op: Operators, axis: CropAxis, low: str, high: str, size: int
) -> str:
    """Return [batch, pixels, size]: cubic kernel with a = -0.5, low to high."""
    pixel = op.Sub(op.Range(_scalar(op, low), _scalar(op, high), 1), axis.first)
    source = op.Sub(op.Range(0, size, 1), axis.offset)
    distance = _centre_distances(op, pixel, axis.inner, source, axis.covered)
    reach = op.Unsqueeze(op.Mul(axis.covered, 2), [2])
    t = op.Div(op.Cast(distance, to=FLOAT), op.Cast(reach, to=FLOAT))
    near = op.Add(op.Mul(op.Mul(op.Sub(op.Mul(t, 1.5), 2.5), t), t), 1.0)
    far = op.Mul(op.Sub(op.Mul(op.Sub(op.Mul(t, -0.5), -2.5), t), 4.0), t)
    far = op.Where(op.Less(t, 2.0), op.Add(far, 2.0), 0.0)
    cubic = op.Where(op.Less(t, 1.0), near, far)
    inside = op.And(op.Less(-1, source), op.Less(source, axis.inner))
    return _normalise(op, op.Mul(cubic, op.Unsqueeze(op.Cast(inside, to=FLOAT), [1])))


def _centre_distances(
    op: Operators, rows: str, row_scale: str, columns: str, column_scale: str
) -> str:
    """Return integer distances of scaled pixel centres, [batch, rows, columns]."""

    def centres(pixels: str, scale: str) -> str:
        return op.Mul(op.Add(op.Mul(pixels, 2), 1), scale)

    row, column = centres(rows, row_scale), centres(columns, column_scale)
    return op.Abs(op.Sub(op.Unsqueeze(column, [1]), op.Unsqueeze(row, [2])))


def _normalise(op: Operators, kernel: str) -> str:
    """Scale rows to sum 1; rows of pixels outside the crop stay zero."""
    total = op.ReduceSum(kernel, [2])
    is_zero = op.Equal(total, 0.0)
    return op.Div(kernel, op.Where(is_zero, 1.0, total))


def _scalar(op: Operators, value: str) -> str:
    return op.Squeeze(value, [0])


def _complete(op: Operators, known: str, masked: str) -> str:
    """Return the photo with the network's output where unknown, in grey levels."""
    output = op.Mul(op.Clip(OUTPUT, -1.0, 1.0), op.Sub(1.0, known))
    return op.Mul(op.Add(op.Add(masked, output), 1.0), 127.5)


def _paste(
    op: Operators,
    completed: str,
    weight: str,
    rows: CropAxis,
    columns: CropAxis,
    size: int,
) -> None:
    """Blend the completion over the photo's holes, and output the result."""
    spans, matrices = [], []
    for axis in (rows, columns):
        start = op.ReduceMin(axis.start, [0, 1], keepdims=0)
        stop = op.ReduceMax(axis.stop, [0, 1], keepdims=0)
        start = op.Reshape(op.Sub(start, DEFAULT_FEATHER), [1])
        stop = op.Reshape(op.Add(stop, DEFAULT_FEATHER), [1])
        span = op.Max(start, axis.low), op.Min(stop, axis.high)
        spans.append(span)
        matrices.append(_upsampling_matrix(op, axis, *span, size))
    levels = _resize(op, completed, *matrices)
    (top, bottom), (left, right) = spans
    starts, ends = op.Concat(top, left, axis=0), op.Concat(bottom, right, axis=0)
    before = op.Cast(op.Slice(IMAGE, starts, ends, [2, 3]), to=FLOAT)
    lows = op.Concat(rows.low, columns.low, axis=0)
    weight = op.Slice(weight, op.Sub(starts, lows), op.Sub(ends, lows), [2, 3])
    blended = op.Add(op.Mul(weight, op.Sub(levels, before)), before)
    inner = op.Cast(op.Add(op.Clip(blended, 0.0, 255.0), 0.5), to=BYTE)
    end = [np.iinfo(np.int64).max]
    strip = op.Slice(IMAGE, top, bottom, [2])
    sides = op.Slice(strip, [0], left, [3]), op.Slice(strip, right, end, [3])
    middle = op.Concat(sides[0], inner, sides[1], axis=3)
    above, below = op.Slice(IMAGE, [0], top, [2]), op.Slice(IMAGE, bottom, end, [2])
    op.Concat(above, middle, below, axis=2)
    op.nodes[-1].output[0] = RESULT
