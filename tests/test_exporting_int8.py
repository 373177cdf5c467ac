"""Calibration of activation ranges, and bias correction."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from variables import SLIM, random_variables

from migan_jax.exporting import int8
from migan_jax.exporting.activations import downsample_hole, iterate_activations
from migan_jax.exporting.int8 import (
    CLIPPING_WEIGHT,
    STEPS,
    calibrate_ranges,
    search_range,
    to_int8,
)
from migan_jax.families import to_tensors
from migan_jax.models import migan
from migan_jax.twins.build import load_twin
from migan_jax.twins.deployed import Deployed
from migan_jax.twins.onnx_network import to_onnx
from migan_jax.weights.checkpoint import Checkpoint, to_form

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SIDE = 16


@pytest.fixture(scope="module")
def network():
    """Return a float32 graph with random weights."""
    generator = migan.MIGANGenerator(SIDE, **SLIM)
    variables = random_variables(generator)
    trained = Checkpoint(generator, variables["params"], variables["stats"])
    fused = to_form(trained, "fused")
    twin = load_twin(fused.network, to_tensors(fused))
    return to_onnx(Deployed(twin, (SIDE, SIDE), True, False), SIDE, (SIDE, SIDE), 1)


@pytest.fixture(scope="module")
def inputs():
    """Return network inputs whose left half is hole."""
    rng = np.random.default_rng(0)
    known = np.broadcast_to(np.arange(SIDE) >= SIDE // 2, (1, 1, SIDE, SIDE))
    images = [rng.uniform(-1, 1, (1, 3, SIDE, SIDE)) * known for _ in range(6)]
    return [np.concatenate([known - 0.5, x], 1).astype(np.float32) for x in images]


def quantisation_error(values, low, high, slope=1.0):
    """Return the weighted error by actually rounding and clipping."""
    step, inside = (high - low) / STEPS, np.clip(values, low, high)
    error = low + np.rint((inside - low) / step) * step - values
    squares = (error * np.where(values < 0, slope, 1.0)) ** 2
    return np.mean(squares * np.where(inside != values, CLIPPING_WEIGHT, 1))


def test_a_range_excludes_rare_values():
    values = np.random.default_rng(0).standard_normal(1_000_000)
    values[0] = 12
    low, high = search_range(values)
    assert -6 < low < -4 and 4 < high < 9
    full = quantisation_error(values, values.min(), values.max())
    assert quantisation_error(values, low, high) < 0.9 * full


@pytest.mark.parametrize("slope", [1.0, 0.2])
def test_no_other_range_is_better(slope):
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.laplace(size=5000), rng.normal(2, 1, 5000)])
    found = quantisation_error(values, *search_range(values, slope), slope)
    for low in np.linspace(0.2, 1, 9) * values.min():
        for high in np.linspace(0.2, 1, 9) * values.max():
            assert found <= 1.05 * quantisation_error(values, low, high, slope)


def test_errors_below_zero_count_less_before_a_leaky_relu():
    values = np.random.default_rng(2).laplace(size=20_000)
    (low, high), (lower, _) = search_range(values, 0.2), search_range(values)
    assert lower < low < 0 < high


def test_every_range_includes_zero():
    low, high = search_range(np.linspace(2, 5, 100))
    assert low == 0 and 4.5 < high <= 5


def test_all_activations_have_ranges(network, inputs):
    ranges = calibrate_ranges(network, inputs)
    names = [name for node in network.graph.node for name in node.output]
    assert list(ranges) == names
    clipped = {name: [] for name in names}
    for _, values in iterate_activations(network, names, inputs):
        for name, value in zip(names, values, strict=True):
            low, high = ranges[name]
            clipped[name].append((value < low) | (value > high))
    assert max(np.mean(parts) for parts in clipped.values()) < 0.05
    assert calibrate_ranges(network, inputs) == ranges


def test_the_hole_at_every_level(inputs):
    for side in (16, 8, 4):
        expected = np.broadcast_to(np.arange(side) < side // 2, (side, side))
        assert (downsample_hole(inputs[0], side, side) == expected).all()


def test_bias_correction_restores_the_mean_of_holes(network, inputs, monkeypatch):
    names = [node.output[0] for node in network.graph.node if node.op_type == "Conv"]

    def max_shift(quantised):
        """Return the largest shift of a channel's mean, relative to the activation."""
        sums = dict.fromkeys(names, 0.0)
        both = (
            iterate_activations(model, names, inputs) for model in (network, quantised)
        )
        for (x, expected), (_, actual) in zip(*both, strict=True):
            for name, e, a in zip(names, expected, actual, strict=True):
                hole = downsample_hole(x, *e.shape[1:])
                sums[name] += (a - e)[:, hole].mean(axis=1) / np.abs(e).max()
        return max(np.abs(total).max() for total in sums.values()) / len(inputs)

    corrected = max_shift(to_int8(network, inputs))
    monkeypatch.setattr(int8, "_correct_biases", lambda *graphs: None)
    assert corrected < 1e-3 < max_shift(to_int8(network, inputs))
