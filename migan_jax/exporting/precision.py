"""Smaller numbers inside a graph, whose inputs and outputs stay as they are."""

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import onnx

Precision = Literal["float32", "float16", "int8"]


def in_precision(
    network: "onnx.ModelProto", precision: Precision, inputs: Sequence[np.ndarray]
) -> "onnx.ModelProto":
    """The same network with other numbers.

    Args:
      inputs: typical ones, [1, 4, H, W], from which int8 gets the ranges.
    """
    if precision == "float16":
        return _float16(network)
    if precision == "int8":
        return _int8(network, inputs)
    return network


def _float16(network: "onnx.ModelProto") -> "onnx.ModelProto":
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    # Repeating pixels is exact in any numbers.
    network = _with_scales_of_their_own(network)
    blocked = [kind for kind in float16.DEFAULT_OP_BLOCK_LIST if kind != "Resize"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that become zero
        converted = float16.convert_float_to_float16(
            network, keep_io_types=True, op_block_list=blocked
        )
    sorted_again = OnnxModel(converted)
    sorted_again.topological_sort()
    return sorted_again.model


def _with_scales_of_their_own(network: "onnx.ModelProto") -> "onnx.ModelProto":
    """Each Resize: the converter names a cast after what it casts, twice if shared."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(network)
    constants = {tensor.name: tensor for tensor in network.graph.initializer}
    for node in result.graph.node:
        if node.op_type == "Resize":
            copy = result.graph.initializer.add()
            copy.CopyFrom(constants[node.input[2]])
            copy.name = node.input[2] = f"{node.name}_scales"
    used = {name for node in result.graph.node for name in node.input}
    kept = [tensor for tensor in result.graph.initializer if tensor.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result


def _int8(
    network: "onnx.ModelProto", inputs: Sequence[np.ndarray]
) -> "onnx.ModelProto":
    """Weights and activations in 8 bits, weights by channel (static QDQ).

    The picture itself, of three channels, stays in float32 from level to level: it
    costs next to nothing there, and 256 steps on each level are visible.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._inputs = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(self._inputs, None)
            return None if x is None else {network.graph.input[0].name: x}

    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises
    try:
        with tempfile.TemporaryDirectory() as folder:
            given, prepared, result = (
                Path(folder, f"{name}.onnx") for name in ("given", "prepared", "int8")
            )
            onnx.save(network, given)
            quant_pre_process(given, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                result,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=_picture_nodes(onnx.load(prepared).graph),
            )
            return onnx.load(result)
    finally:
        logging.getLogger().setLevel(before)


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
