"""Quantisation of weights and activations to 8 bits, with bias correction.

Calibration: each activation's range minimises the mean squared error of rounding inside
it and clipping outside it (Banner et al., NeurIPS 2019, section 3, here by search); the
full range would spend most of the 256 steps on rare values. Clipping errors count more,
since they do not average out. Half of the sampled values are from holes, the only
part of a completion that is kept; the others are from anywhere, since holes are filled
from there. Before a leaky ReLU, errors below zero count as little as they do after it.

Bias correction: inside a hole the input is constant, so rounding errors are the same at
every pixel and do not average out. From the first convolution to the last, each bias is
set so that the mean over holes matches float32 (Nagel et al., ICCV 2019, section 4.2,
here over holes).
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from migan_jax.config import progress
from migan_jax.exporting.activations import (
    downsample_hole,
    iterate_activations,
    make_feed,
)

if TYPE_CHECKING:
    import onnx

INPUT_RANGE = -1.0, 1.0
SAMPLED_PIXELS = 256  # per image, and again as many in its hole
HISTOGRAM_BINS = 2048
RANGE_FRACTIONS = np.geomspace(0.02, 1, 80)  # candidates, of the full range
STEPS = 255
# Relative to rounding errors: clipping shifts all pixels of a bright area alike.
CLIPPING_WEIGHT = 4
# The operators of the network itself; graphs of any size also compute shapes.
LAYERS = {"Conv", "LeakyRelu", "Clip", "Add", "Mul", "Resize"}


def to_int8(
    network: "onnx.ModelProto", inputs: Sequence[np.ndarray]
) -> "onnx.ModelProto":
    """Quantise statically (QDQ), weights per channel.

    The RGB image that is passed from level to level stays in float32: that is cheap,
    and 256 steps at each level would be visible.

    Args:
      inputs: calibration inputs, [1, 4, H, W] each.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepare(network, Path(folder))
        quantised = _quantise(prepared, inputs, Path(folder))
    _correct_biases(prepared, quantised, inputs)
    return quantised


def _prepare(network: "onnx.ModelProto", folder: Path) -> "onnx.ModelProto":
    """Fold constants, and give every convolution a bias."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, prepared = folder / "source.onnx", folder / "prepared.onnx"
    onnx.save(network, source)
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
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


def _quantise(
    prepared: "onnx.ModelProto", inputs: Sequence[np.ndarray], folder: Path
) -> "onnx.ModelProto":
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            # One input suffices, since the ranges are overridden.
            self._feeds = iter([make_feed(prepared, inputs[0])])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    ranges = {prepared.graph.input[0].name: INPUT_RANGE}
    ranges |= calibrate_ranges(prepared, inputs)
    overrides = {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
        for name, (low, high) in ranges.items()
    }
    path, result = folder / "with_biases.onnx", folder / "int8.onnx"
    onnx.save(prepared, path)
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # hide its advice
    try:
        quantization.quantize_static(
            path,
            result,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=_rgb_nodes(prepared.graph),
            extra_options={"TensorQuantOverrides": overrides},
        )
    finally:
        logging.getLogger().setLevel(before)
    return onnx.load(result)


def _rgb_nodes(graph: "onnx.GraphProto") -> list[str]:
    """Return the names of all nodes from the convolutions to RGB to the output."""
    producers = {name: node for node in graph.node for name in node.output}
    names, pending = [], [graph.output[0].name]
    while pending:
        node = producers.get(pending.pop())
        if node is not None:
            names.append(node.name)
            if not any(name.startswith("to_rgb.") for name in node.input):
                pending += node.input
    return names


def calibrate_ranges(
    model: "onnx.ModelProto", inputs: Sequence[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """Return (low, high) for each activation that is not constant.

    Args:
      inputs: [1, 4, H, W] each.
    """
    slopes = _negative_slopes(model.graph)
    names = _activation_names(model.graph)
    rng = np.random.default_rng(0)
    samples: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for x, values in iterate_activations(model, names, inputs):
        for name, value in zip(names, values, strict=True):
            samples[name].append(_sample_pixels(value, x, rng))
    ranges = {}
    for name in names:
        values = np.concatenate(samples.pop(name))
        if values.min() < values.max():
            ranges[name] = search_range(values, slopes.get(name, 1.0))
    return ranges


def _activation_names(graph: "onnx.GraphProto") -> list[str]:
    """Return all values that layers compute from the input."""
    names = {graph.input[0].name: None}
    for node in graph.node:
        if node.op_type in LAYERS and any(name in names for name in node.input):
            names[node.output[0]] = None
    return list(names)[1:]


def _negative_slopes(graph: "onnx.GraphProto") -> dict[str, float]:
    """Return the leaky ReLU's slope of each value whose only consumer is one."""
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    return {
        name: nodes[0].attribute[0].f
        for name, nodes in consumers.items()
        if [node.op_type for node in nodes] == ["LeakyRelu"]
    }


def _sample_pixels(
    value: np.ndarray, x: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Sample pixels of [C, h, w], half of them from the hole if there is one."""
    channels, height, width = value.shape
    pixels = rng.integers(height * width, size=SAMPLED_PIXELS)
    hole = np.flatnonzero(downsample_hole(x, height, width))
    if len(hole):
        pixels = np.concatenate([pixels, rng.choice(hole, SAMPLED_PIXELS)])
    return value.reshape(channels, -1)[:, pixels].ravel()


def search_range(values: np.ndarray, slope: float = 1.0) -> tuple[float, float]:
    """Return the range around zero with the least rounding and clipping error.

    Args:
      slope: factor of errors below zero.
    """
    lowest, highest = min(values.min(), 0.0), max(values.max(), 0.0)
    counts, edges = np.histogram(values, HISTOGRAM_BINS, (lowest, highest))
    centres = (edges[:-1] + edges[1:]) / 2
    weights = counts * np.where(centres < 0, slope**2, 1.0)
    lows, highs = lowest * RANGE_FRACTIONS[:, None], highest * RANGE_FRACTIONS[:, None]
    below, above = np.maximum(lows - centres, 0), np.maximum(centres - highs, 0)
    clipping = (below**2 @ weights)[:, None] + above**2 @ weights
    inside = weights.sum() - ((below > 0) @ weights)[:, None] - (above > 0) @ weights
    rounding = inside * ((highs.T - lows) / STEPS) ** 2 / 12
    errors = CLIPPING_WEIGHT * clipping + rounding
    row, column = np.unravel_index(errors.argmin(), errors.shape)
    return float(lows[row, 0]), float(highs[column, 0])


def _correct_biases(
    prepared: "onnx.ModelProto",
    quantised: "onnx.ModelProto",
    inputs: Sequence[np.ndarray],
) -> None:
    """Correct the biases of the quantised graph in place."""
    from onnx import numpy_helper

    convolutions = _convolutions(prepared)
    outputs = [node.output[0] for node in convolutions]
    targets = dict(zip(outputs, _hole_means(prepared, outputs, inputs), strict=True))
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    producers = {name: node for node in quantised.graph.node for name in node.output}
    with progress(len(convolutions), "convolution") as advance:
        for output in outputs:
            (mean,) = _hole_means(_extract(quantised, output), [output], inputs)
            name, scale = producers[output].input[2], np.float32(1)
            if name in producers:  # a quantised bias: integers times a scale
                name, scale_name = producers[name].input[:2]
                scale = numpy_helper.to_array(constants[scale_name])
            bias = numpy_helper.to_array(constants[name])
            correction = (targets[output] - mean) / scale
            if bias.dtype.kind == "i":
                correction = np.rint(correction)
            corrected = (bias + correction).astype(bias.dtype)
            constants[name].CopyFrom(numpy_helper.from_array(corrected, name))
            advance(1)


def _extract(model: "onnx.ModelProto", output: str) -> "onnx.ModelProto":
    """Return the part of a graph that computes one value."""
    import onnx

    producers = {name: node for node in model.graph.node for name in node.output}
    needed, pending = set(), [output]
    while pending:
        node = producers.get(pending.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            pending += node.input
    part = onnx.ModelProto()
    part.CopyFrom(model)
    nodes = [node for node in model.graph.node if node.name in needed]
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in used]
    for field, kept in ((part.graph.node, nodes), (part.graph.initializer, constants)):
        del field[:]
        field.extend(kept)
    return part


def _hole_means(
    model: "onnx.ModelProto", names: Sequence[str], inputs: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return the mean of every channel of some values over the holes of all inputs."""
    sums: list[Any] = [0.0] * len(names)
    counts = [0] * len(names)
    for x, values in iterate_activations(model, names, inputs):
        for index, value in enumerate(values):
            hole = downsample_hole(x, *value.shape[1:])
            sums[index] = sums[index] + value[:, hole].sum(axis=1, dtype=np.float64)
            counts[index] += int(hole.sum())
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
