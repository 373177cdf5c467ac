"""What a graph computes on the way, over holes and elsewhere."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx


def values_inside(
    model: "onnx.ModelProto", names: Sequence[str], inputs: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Each input [1, 4, H, W], and these of its values, [C, h, w] each.

    A graph of a larger batch is given the same picture so many times.
    """
    import onnx
    import onnxruntime

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    kind = onnx.TensorProto.FLOAT
    shown.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, kind, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for x in inputs:
        values = session.run(names, feed_of(model, x))
        yield x, [value[0] for value in values]


def feed_of(model: "onnx.ModelProto", x: np.ndarray) -> dict[str, np.ndarray]:
    """What a graph takes in place of one picture, [1, 4, H, W]."""
    entry = model.graph.input[0]
    batch = entry.type.tensor_type.shape.dim[0].dim_value or 1  # 0 where any will do
    return {entry.name: np.repeat(x, batch, axis=0)}


def hole_of_level(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels of a level most of whose own part of the picture is hole: bool [h, w]."""
    hole = x[0, 0] < 0
    parts = hole.reshape(height, -1, width, hole.shape[1] // width)
    return parts.mean(axis=(1, 3)) > 0.5
