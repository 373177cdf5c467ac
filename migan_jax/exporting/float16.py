"""Conversion to 16-bit weights and activations; input and output stay float32."""

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def to_float16(network: "onnx.ModelProto") -> "onnx.ModelProto":
    """Return a float16 copy of the network."""
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    from migan_jax.twins.onnx_network import NO_ROI

    network = _unshare_scales(network)
    # Resize may run in float16: repeating pixels is exact in any precision.
    blocked = [kind for kind in float16.DEFAULT_OP_BLOCK_LIST if kind != "Resize"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that underflow to zero
        converted = float16.convert_float_to_float16(
            network, keep_io_types=True, op_block_list=blocked
        )
    for tensor in converted.graph.initializer:
        if tensor.name == NO_ROI.name:
            tensor.CopyFrom(NO_ROI)  # WebGPU in browsers rejects a float16 one
    model = OnnxModel(converted)
    model.topological_sort()
    return model.model


def _unshare_scales(network: "onnx.ModelProto") -> "onnx.ModelProto":
    """Give each Resize its own scales.

    The converter names a cast after its input, so a shared input gives two casts of one
    name.
    """
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
