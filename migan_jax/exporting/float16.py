"""Weights and activations of 16 bits; input and output stay float32."""

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def to_float16(network: "onnx.ModelProto") -> "onnx.ModelProto":
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    from migan_jax.twins.onnx_network import NO_ROI

    # Repeating pixels is exact in any numbers.
    network = _with_scales_of_their_own(network)
    blocked = [kind for kind in float16.DEFAULT_OP_BLOCK_LIST if kind != "Resize"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that become zero
        converted = float16.convert_float_to_float16(
            network, keep_io_types=True, op_block_list=blocked
        )
    for tensor in converted.graph.initializer:
        if tensor.name == NO_ROI.name:
            tensor.CopyFrom(NO_ROI)  # browsers' WebGPU takes none of 16 bits
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
