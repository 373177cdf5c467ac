"""A photo and its mask in, the photo with its hole filled out, as one ONNX graph.

It computes what `geometry/filling.py` defines, for one crop around the whole hole. The
crop's place, its mirrored margins and resizing are products with matrices, which the
graph makes from the hole's bounding box, so that every picture of a batch has a crop of
its own, and there are neither loops nor branches:

  network's input = rows @ photo @ columns, with a triangle kernel in both
  completion      = rows @ network's output @ columns, with a cubic kernel in both

Positions in them are whole numbers, so that it is exact which pixels have no part in
which others.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from migan_jax.geometry.crops import CONTEXT_OF_BOX, CONTEXT_OF_NETWORK
from migan_jax.geometry.filling import DEFAULT_FEATHER, UNKNOWN_SHARE, falloff
from migan_jax.twins.onnx_network import INPUT, OUTPUT

IMAGE, MASK, RESULT = "image", "mask", "result"
BYTE, FLOAT = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT


class Operators:
    """Nodes of a graph, one for each call: `op.Max(a, b)` gives the name of a result.

    Inputs are names or constants; whole numbers are int64, others float32.
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


class Along(NamedTuple):
    """One axis of all crops; values are [batch, 1] but for the last two."""

    start: str  # of the hole's box
    stop: str
    first: str  # pixel of the photo that the crop has
    given: str  # how many it has
    inner: str  # how many pixels of the network's square they are
    offset: str  # of these
    low: str  # where all crops together begin, [1]
    high: str  # and end, [1]


def to_pipeline(network: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """Around a network for any number of squares of `size`.

    uint8 image (N, 3, H, W) and mask (N, 1, H, W), 255 where known -> uint8 result.
    """
    op = Operators()
    hole = _hole(op)
    rows, columns = _crops(op, hole, size)
    weight, unknown = _weights(op, _slice(op, hole, rows, columns))
    known, given = _network_input(op, rows, columns, unknown, size)
    before = len(op.nodes)
    completed = _completed(op, known, given)
    _paste(op, completed, weight, rows, columns, size)
    nodes = [*op.nodes[:before], *network.graph.node, *op.nodes[before:]]

    def bytes_of(name: str, channels: int) -> onnx.ValueInfoProto:
        shape = ["batch", channels, "height", "width"]
        return helper.make_tensor_value_info(name, BYTE, shape)

    graph = helper.make_graph(
        nodes,
        "inpainting",
        [bytes_of(IMAGE, 3), bytes_of(MASK, 1)],
        [bytes_of(RESULT, 3)],
        [*network.graph.initializer, *op.constants.values()],
    )
    model = helper.make_model(
        graph, opset_imports=network.opset_import, ir_version=network.ir_version
    )
    onnx.checker.check_model(model)
    return model


def _hole(op: Operators) -> str:
    """1 where the photo is to be made up, [batch, 1, H, W]: the mask's low side."""
    levels = op.Cast(MASK, to=FLOAT)
    largest = op.ReduceMax(levels, [1, 2, 3])
    # An all-zero mask is all low.
    low = op.Less(op.Mul(levels, 2.0), op.Max(largest, 1.0))
    return op.Cast(low, to=FLOAT)


def _crops(op: Operators, hole: str, size: int) -> tuple[Along, Along]:
    """`geometry.crops.crop_around`, of every picture's hole."""
    shape = op.Shape(IMAGE)
    boxes = []
    for axis, other in ((2, 3), (3, 2)):
        hit = op.ReduceMax(hole, [1, other], keepdims=0)
        start = op.ArgMax(hit, axis=1)
        stop = op.Add(op.ArgMax(hit, axis=1, select_last_index=1), 1)
        boxes.append((start, stop, op.Slice(shape, [axis], [axis + 1])))
    longer = op.Max(*(op.Sub(stop, start) for start, stop, _ in boxes))
    context = op.Max(op.Div(longer, CONTEXT_OF_BOX), size // CONTEXT_OF_NETWORK)
    reaches = [
        op.Sub(op.Min(op.Add(stop, context), length), op.Max(op.Sub(start, context), 0))
        for start, stop, length in boxes
    ]
    side = op.Max(size, *reaches)
    rows, columns = (_along(op, *box, side, size) for box in boxes)
    return rows, columns


def _along(
    op: Operators, start: str, stop: str, length: str, side: str, size: int
) -> Along:
    """`geometry.crops._along`, and what all pictures have in common."""
    given = op.Min(side, length)
    middle = op.Div(op.Sub(op.Add(start, stop), side), 2)
    first = op.Min(op.Max(middle, 0), op.Sub(length, given))
    twice = op.Add(op.Mul(given, 2 * size), side)
    inner = op.Max(1, op.Div(twice, op.Mul(side, 2)))
    offset = op.Div(op.Sub(size, inner), 2)
    low = op.ReduceMin(first, [0, 1], keepdims=0)
    high = op.ReduceMax(op.Add(first, given), [0, 1], keepdims=0)
    ends = (op.Reshape(end, [1]) for end in (low, high))
    return Along(start, stop, first, given, inner, offset, *ends)


def _slice(op: Operators, value: str, rows: Along, columns: Along) -> str:
    """What all crops together have of [batch, channels, H, W]."""
    starts = op.Concat(rows.low, columns.low, axis=0)
    ends = op.Concat(rows.high, columns.high, axis=0)
    return op.Slice(value, starts, ends, [2, 3])


def _weights(op: Operators, hole: str) -> tuple[str, str]:
    """What of the completion is pasted, and where nothing is known: 1 or 0.

    The weight depends on the Euclidean distance to the hole, so it is a sum over discs
    with which the hole is widened, each as much as the next larger one has less.
    """
    assert DEFAULT_FEATHER == 2, "these are the discs of radius 1, sqrt(2) and 2"

    def widened(rows: int, columns: int) -> str:
        kernel = [2 * rows + 1, 2 * columns + 1]
        return op.MaxPool(
            hole, kernel_shape=kernel, pads=[rows, columns, rows, columns]
        )

    cross, square = op.Max(widened(0, 1), widened(1, 0)), widened(1, 1)
    discs = [hole, cross, square, op.Max(square, widened(0, 2), widened(2, 0))]
    levels = [*falloff(DEFAULT_FEATHER)[[0, 1, 2, 4]], 0.0]
    parts = [
        op.Mul(disc, float(level - levels[n + 1]))
        for n, (disc, level) in enumerate(zip(discs, levels[:-1], strict=True))
    ]
    return op.Sum(*parts), discs[-1]


def _network_input(
    op: Operators, rows: Along, columns: Along, unknown: str, size: int
) -> tuple[str, str]:
    """Feeds the network; gives what it is told: where pixels are known, and them."""
    # Together with the mask, which fails unless it has the photo's size.
    both = _slice(op, op.Concat(IMAGE, MASK, axis=1), rows, columns)
    photo = op.Cast(op.Slice(both, [0], [3], [1]), to=FLOAT)
    photo = op.Concat(photo, unknown, axis=1)
    matrices = (_shrinking(op, along, size) for along in (rows, columns))
    shrunk = _resized(op, photo, *matrices)
    share = op.Slice(shrunk, [3], [4], [1])
    known = op.Cast(op.Less(share, UNKNOWN_SHARE), to=FLOAT)
    colours = op.Sub(op.Div(op.Slice(shrunk, [0], [3], [1]), 127.5), 1.0)
    given = op.Mul(colours, known)
    op.Concat(op.Sub(known, 0.5), given, axis=1)
    op.nodes[-1].output[0] = INPUT
    return known, given


def _resized(op: Operators, planes: str, rows: str, columns: str) -> str:
    """rows @ planes @ columns, of each picture and channel."""
    rows, columns = (op.Unsqueeze(matrix, [1]) for matrix in (rows, columns))
    turned = op.Transpose(columns, perm=[0, 1, 3, 2])
    return op.MatMul(op.MatMul(rows, planes), turned)


def _shrinking(op: Operators, along: Along, size: int) -> str:
    """[batch, size, pixels]: the antialiased triangle, with the photo mirrored."""
    count = op.Range(0, size, 1)
    twice = op.Mul(along.inner, 2)
    place = op.Mod(op.Sub(count, along.offset), twice)
    mirrored = op.Sub(op.Sub(twice, 1), place)
    target = op.Where(op.Less(place, along.inner), place, mirrored)
    pixel = op.Sub(
        op.Range(_scalar(op, along.low), _scalar(op, along.high), 1), along.first
    )
    apart = _apart(op, target, along.given, pixel, along.inner)
    reach = op.Unsqueeze(op.Mul(along.given, 2), [2])
    triangle = op.Relu(op.Cast(op.Sub(reach, apart), to=FLOAT))
    inside = op.And(op.Less(-1, pixel), op.Less(pixel, along.given))
    return _normalised(
        op, op.Mul(triangle, op.Unsqueeze(op.Cast(inside, to=FLOAT), [1]))
    )


def _growing(op: Operators, along: Along, low: str, high: str, size: int) -> str:
    """[batch, pixels, size]: the cubic kernel of a = -0.5, for pixels from low on."""
    pixel = op.Sub(op.Range(_scalar(op, low), _scalar(op, high), 1), along.first)
    source = op.Sub(op.Range(0, size, 1), along.offset)
    apart = _apart(op, pixel, along.inner, source, along.given)
    reach = op.Unsqueeze(op.Mul(along.given, 2), [2])
    t = op.Div(op.Cast(apart, to=FLOAT), op.Cast(reach, to=FLOAT))
    near = op.Add(op.Mul(op.Mul(op.Sub(op.Mul(t, 1.5), 2.5), t), t), 1.0)
    far = op.Mul(op.Sub(op.Mul(op.Sub(op.Mul(t, -0.5), -2.5), t), 4.0), t)
    far = op.Where(op.Less(t, 2.0), op.Add(far, 2.0), 0.0)
    cubic = op.Where(op.Less(t, 1.0), near, far)
    inside = op.And(op.Less(-1, source), op.Less(source, along.inner))
    return _normalised(op, op.Mul(cubic, op.Unsqueeze(op.Cast(inside, to=FLOAT), [1])))


def _apart(op: Operators, to: str, scale: str, of: str, other_scale: str) -> str:
    """How far the centres of pixels are apart, [batch, to, of], in whole numbers."""

    def centres(places: str, scale: str) -> str:
        return op.Mul(op.Add(op.Mul(places, 2), 1), scale)

    near, far = centres(to, scale), centres(of, other_scale)
    return op.Abs(op.Sub(op.Unsqueeze(far, [1]), op.Unsqueeze(near, [2])))


def _normalised(op: Operators, kernel: str) -> str:
    """Of sum 1; rows of pixels that a crop does not have stay empty."""
    total = op.ReduceSum(kernel, [2])
    nothing = op.Equal(total, 0.0)
    return op.Div(kernel, op.Where(nothing, 1.0, total))


def _scalar(op: Operators, value: str) -> str:
    return op.Squeeze(value, [0])


def _completed(op: Operators, known: str, given: str) -> str:
    """What the network made where nothing was known, in grey levels."""
    own = op.Mul(op.Clip(OUTPUT, -1.0, 1.0), op.Sub(1.0, known))
    return op.Mul(op.Add(op.Add(given, own), 1.0), 127.5)


def _paste(
    op: Operators,
    completed: str,
    weight: str,
    rows: Along,
    columns: Along,
    size: int,
) -> None:
    """The photo with the completion blended over its holes."""
    reaches, matrices = [], []
    for along in (rows, columns):
        start = op.ReduceMin(along.start, [0, 1], keepdims=0)
        stop = op.ReduceMax(along.stop, [0, 1], keepdims=0)
        start = op.Reshape(op.Sub(start, DEFAULT_FEATHER), [1])
        stop = op.Reshape(op.Add(stop, DEFAULT_FEATHER), [1])
        reach = op.Max(start, along.low), op.Min(stop, along.high)
        reaches.append(reach)
        matrices.append(_growing(op, along, *reach, size))
    levels = _resized(op, completed, *matrices)
    (top, bottom), (left, right) = reaches
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
