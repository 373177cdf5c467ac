"""Intermediate activations of an ONNX graph, over holes and elsewhere."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx


def iterate_activations(
    model: "onnx.ModelProto", names: Sequence[str], inputs: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yield each input [1, 4, H, W] with its named activations, [C, h, w] each.

    A graph with a fixed larger batch gets the same image repeated.
    """
    import onnx
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    kind = onnx.TensorProto.FLOAT
    exposed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, kind, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for x in inputs:
        values = session.run(names, make_feed(model, x))
        yield x, [value[0] for value in values]


def make_feed(model: "onnx.ModelProto", x: np.ndarray) -> dict[str, np.ndarray]:
    """Return the graph's inputs for one image, [1, 4, H, W]."""
    entry = model.graph.input[0]
    batch = entry.type.tensor_type.shape.dim[0].dim_value or 1  # 0: any
    return {entry.name: np.repeat(x, batch, axis=0)}


def downsample_hole(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return an input's hole at a level: bool [h, w], True where most is hole."""
    hole = x[0, 0] < 0
    cells = hole.reshape(height, -1, width, hole.shape[1] // width)
    return cells.mean(axis=(1, 3)) > 0.5
