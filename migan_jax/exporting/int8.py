"""Weights and activations in 8 bits, with biases that make up for rounding.

Inside a hole the network is shown the same everywhere, so that rounding is wrong in the
same way at every pixel, and does not average out as it does elsewhere. So, from the
first convolution to the last, each gets the bias with which its mean over holes is that
of float32 (bias correction: Nagel et al., ICCV 2019, section 4.2, here over holes).
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from migan_jax.config import progress
from migan_jax.exporting.activations import feed_of, hole_of_level, values_inside
from migan_jax.exporting.ranges import ranges_of

if TYPE_CHECKING:
    import onnx

PICTURES_REACH = -1.0, 1.0


def to_int8(
    network: "onnx.ModelProto", inputs: Sequence[np.ndarray]
) -> "onnx.ModelProto":
    """Static QDQ, weights by channel.

    The picture itself, of three channels, stays in float32 from level to level: it
    costs next to nothing there, and 256 steps on each level are visible.

    Args:
      inputs: typical ones, [1, 4, H, W], from which the ranges are.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(network, Path(folder))
        quantised = _quantised(prepared, inputs, Path(folder))
    _correct_biases(prepared, quantised, inputs)
    return quantised


def _prepared(network: "onnx.ModelProto", folder: Path) -> "onnx.ModelProto":
    """Constants computed, and a bias for every convolution."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given, prepared = folder / "given.onnx", folder / "prepared.onnx"
    onnx.save(network, given)
    quant_pre_process(given, prepared, skip_symbolic_shape=True)
    model = onnx.load(prepared)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in _convolutions(model):
        if len(node.input) == 2:
            node.input.append(f"{node.name}_bias")
            bias = np.zeros(weights[node.input[1]].dims[0], np.float32)
            tensor = onnx.numpy_helper.from_array(bias, node.input[2])
            model.graph.initializer.append(tensor)
    return model


def _convolutions(model: "onnx.ModelProto") -> list["onnx.NodeProto"]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def _quantised(
    prepared: "onnx.ModelProto", inputs: Sequence[np.ndarray], folder: Path
) -> "onnx.ModelProto":
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._feeds = iter([feed_of(prepared, inputs[0])])  # ranges are given

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    found = {prepared.graph.input[0].name: PICTURES_REACH}
    found |= ranges_of(prepared, inputs)
    ranges = {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
        for name, (low, high) in found.items()
    }
    path, result = folder / "with_biases.onnx", folder / "int8.onnx"
    onnx.save(prepared, path)
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises
    try:
        quantization.quantize_static(
            path,
            result,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=_picture_nodes(prepared.graph),
            extra_options={"TensorQuantOverrides": ranges},
        )
    finally:
        logging.getLogger().setLevel(before)
    return onnx.load(result)


def _picture_nodes(graph: "onnx.GraphProto") -> list[str]:
    """Names of all between the convolutions to RGB and the output, these included."""
    producers = {name: node for node in graph.node for name in node.output}
    names, open_values = [], [graph.output[0].name]
    while open_values:
        node = producers.get(open_values.pop())
        if node is not None:
            names.append(node.name)
            if not any(name.startswith("to_rgb.") for name in node.input):
                open_values += node.input
    return names


def _correct_biases(
    prepared: "onnx.ModelProto",
    quantised: "onnx.ModelProto",
    inputs: Sequence[np.ndarray],
) -> None:
    """Of the second graph, in place."""
    from onnx import numpy_helper

    convolutions = _convolutions(prepared)
    outputs = [node.output[0] for node in convolutions]
    wanted = dict(zip(outputs, _means(prepared, outputs, inputs), strict=True))
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    producers = {name: node for node in quantised.graph.node for name in node.output}
    with progress(len(convolutions), "convolution") as advance:
        for output in outputs:
            (mean,) = _means(_up_to(quantised, output), [output], inputs)
            name, scale = producers[output].input[2], np.float32(1)
            if name in producers:  # it is whole numbers times a scale
                name, scale_name = producers[name].input[:2]
                scale = numpy_helper.to_array(constants[scale_name])
            bias = numpy_helper.to_array(constants[name])
            missing = (wanted[output] - mean) / scale
            if bias.dtype.kind == "i":
                missing = np.rint(missing)
            corrected = (bias + missing).astype(bias.dtype)
            constants[name].CopyFrom(numpy_helper.from_array(corrected, name))
            advance(1)


def _up_to(model: "onnx.ModelProto", output: str) -> "onnx.ModelProto":
    """What one value needs."""
    import onnx

    producers = {name: node for node in model.graph.node for name in node.output}
    needed, open_values = set(), [output]
    while open_values:
        node = producers.get(open_values.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            open_values += node.input
    part = onnx.ModelProto()
    part.CopyFrom(model)
    nodes = [node for node in model.graph.node if node.name in needed]
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    for field, kept in ((part.graph.node, nodes), (part.graph.initializer, constants)):
        del field[:]
        field.extend(kept)
    return part


def _means(
    model: "onnx.ModelProto", outputs: Sequence[str], inputs: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Of every channel of some values, over the holes of all inputs."""
    sums: list[Any] = [0.0] * len(outputs)
    counts = [0] * len(outputs)
    for x, values in values_inside(model, outputs, inputs):
        for index, value in enumerate(values):
            hole = hole_of_level(x, *value.shape[1:])
            sums[index] = sums[index] + value[:, hole].sum(axis=1, dtype=np.float64)
            counts[index] += int(hole.sum())
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
