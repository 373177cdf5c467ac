"""The range of each activation that 256 steps are spread over.

From the smallest value that was seen to the largest, most steps would be for what
hardly ever comes. So a range is the one with the least mean squared error, of what is
rounded inside it and what is cut off outside (Banner et al., NeurIPS 2019, section 3,
here by trying); what is cut off counts more, since it does not average out. Half of the
values are from holes, which is all that is used of a completion; the others from
anywhere, since that is what holes are filled from. Where a leaky ReLU follows, errors
below zero count as little as they do after it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from migan_jax.exporting.activations import hole_of_level, values_inside

if TYPE_CHECKING:
    import onnx

PIXELS = 256  # of a picture that are looked at, and again as many in its hole
BINS = 2048
SHARES = np.geomspace(0.02, 1, 80)  # of how far values go
STEPS = 255
# For one of rounding: what is cut off is so at all of a bright place alike.
CUT_OFF_COUNTS = 4
# What networks consist of; graphs of any size also compute sizes.
LAYERS = {"Conv", "LeakyRelu", "Clip", "Add", "Mul", "Resize"}


def ranges_of(
    model: "onnx.ModelProto", inputs: Sequence[np.ndarray]
) -> dict[str, tuple[float, float]]:
    """From and to, for each value that is not the same everywhere.

    Args:
      inputs: [1, 4, H, W] each.
    """
    slopes = _slopes_below_zero(model.graph)
    names = _activations(model.graph)
    rng = np.random.default_rng(0)
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for x, values in values_inside(model, names, inputs):
        for name, value in zip(names, values, strict=True):
            seen[name].append(_some(value, x, rng))
    found = {}
    for name in names:
        values = np.concatenate(seen.pop(name))
        if values.min() < values.max():
            found[name] = best_range(values, slopes.get(name, 1.0))
    return found


def _activations(graph: "onnx.GraphProto") -> list[str]:
    """All that is made of the input by layers."""
    found = {graph.input[0].name: None}
    for node in graph.node:
        if node.op_type in LAYERS and any(name in found for name in node.input):
            found[node.output[0]] = None
    return list(found)[1:]


def _slopes_below_zero(graph: "onnx.GraphProto") -> dict[str, float]:
    """Of what nothing but a leaky ReLU takes."""
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            takers.setdefault(name, []).append(node)
    return {
        name: nodes[0].attribute[0].f
        for name, nodes in takers.items()
        if [node.op_type for node in nodes] == ["LeakyRelu"]
    }


def _some(value: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values [C, h, w] of random pixels, half of them in the hole if there is one."""
    channels, height, width = value.shape
    places = rng.integers(height * width, size=PIXELS)
    hole = np.flatnonzero(hole_of_level(x, height, width))
    if len(hole):
        places = np.concatenate([places, rng.choice(hole, PIXELS)])
    return value.reshape(channels, -1)[:, places].ravel()


def best_range(values: np.ndarray, slope: float = 1.0) -> tuple[float, float]:
    """That with the least error, weighted, of rounding and cutting off; zero is in it.

    Args:
      slope: by which errors below zero are multiplied.
    """
    lowest, highest = min(values.min(), 0.0), max(values.max(), 0.0)
    counts, edges = np.histogram(values, BINS, (lowest, highest))
    middles = (edges[:-1] + edges[1:]) / 2
    weights = counts * np.where(middles < 0, slope**2, 1.0)
    lows, highs = lowest * SHARES[:, None], highest * SHARES[:, None]
    below, above = np.maximum(lows - middles, 0), np.maximum(middles - highs, 0)
    cut_off = (below**2 @ weights)[:, None] + above**2 @ weights
    inside = weights.sum() - ((below > 0) @ weights)[:, None] - (above > 0) @ weights
    rounded = inside * ((highs.T - lows) / STEPS) ** 2 / 12
    errors = CUT_OFF_COUNTS * cut_off + rounded
    row, column = np.unravel_index(errors.argmin(), errors.shape)
    return float(lowest * SHARES[row]), float(highest * SHARES[column])
