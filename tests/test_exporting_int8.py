"""Ranges of activations, and biases that make up for rounding."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from variables import SLIM, random_variables

from migan_jax.exporting import int8
from migan_jax.exporting.activations import hole_of_level, values_inside
from migan_jax.exporting.int8 import to_int8
from migan_jax.exporting.ranges import CUT_OFF_COUNTS, STEPS, best_range, ranges_of
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
    """Random weights, in float32."""
    generator = migan.Generator(SIDE, **SLIM)
    variables = random_variables(generator)
    trained = Checkpoint(generator, variables["params"], variables["stats"])
    fused = to_form(trained, "fused")
    twin = load_twin(fused.network, to_tensors(fused))
    return to_onnx(Deployed(twin, (SIDE, SIDE), True, False), SIDE, (SIDE, SIDE), 1)


@pytest.fixture(scope="module")
def inputs():
    """Pictures whose left half is hole, as networks see them."""
    rng = np.random.default_rng(0)
    known = np.broadcast_to(np.arange(SIDE) >= SIDE // 2, (1, 1, SIDE, SIDE))
    pictures = [rng.uniform(-1, 1, (1, 3, SIDE, SIDE)) * known for _ in range(6)]
    return [np.concatenate([known - 0.5, p], 1).astype(np.float32) for p in pictures]


def error_of(values, low, high, slope=1.0):
    """Of rounding to STEPS steps and cutting off, as ranges count it, by doing it."""
    step, inside = (high - low) / STEPS, np.clip(values, low, high)
    apart = low + np.rint((inside - low) / step) * step - values
    squares = (apart * np.where(values < 0, slope, 1.0)) ** 2
    return np.mean(squares * np.where(inside != values, CUT_OFF_COUNTS, 1))


def test_a_range_leaves_out_what_hardly_ever_comes():
    values = np.random.default_rng(0).standard_normal(1_000_000)
    values[0] = 12
    low, high = best_range(values)
    assert -6 < low < -4 and 4 < high < 9
    full = error_of(values, values.min(), values.max())
    assert error_of(values, low, high) < 0.9 * full


@pytest.mark.parametrize("slope", [1.0, 0.2])
def test_no_other_range_is_better(slope):
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.laplace(size=5000), rng.normal(2, 1, 5000)])
    found = error_of(values, *best_range(values, slope), slope)
    for low in np.linspace(0.2, 1, 9) * values.min():
        for high in np.linspace(0.2, 1, 9) * values.max():
            assert found <= 1.05 * error_of(values, low, high, slope)


def test_errors_below_zero_count_less_before_a_leaky_relu():
    values = np.random.default_rng(2).laplace(size=20_000)
    (low, high), (lower, _) = best_range(values, 0.2), best_range(values)
    assert lower < low < 0 < high


def test_zero_is_in_every_range():
    low, high = best_range(np.linspace(2, 5, 100))
    assert low == 0 and 4.5 < high <= 5


def test_ranges_are_of_all_that_is_computed(network, inputs):
    ranges = ranges_of(network, inputs)
    names = [name for node in network.graph.node for name in node.output]
    assert list(ranges) == names
    cut_off = {name: [] for name in names}
    for _, values in values_inside(network, names, inputs):
        for name, value in zip(names, values, strict=True):
            low, high = ranges[name]
            cut_off[name].append((value < low) | (value > high))
    assert max(np.mean(cut) for cut in cut_off.values()) < 0.05
    assert ranges_of(network, inputs) == ranges


def test_the_hole_at_every_level(inputs):
    for side in (16, 8, 4):
        expected = np.broadcast_to(np.arange(side) < side // 2, (side, side))
        assert (hole_of_level(inputs[0], side, side) == expected).all()


def test_holes_have_the_mean_that_they_have_in_float32(network, inputs, monkeypatch):
    """Which rounding alone moves."""
    names = [node.output[0] for node in network.graph.node if node.op_type == "Conv"]

    def moved(quantised):
        """Of all convolutions' channels the most, as a share of their reach."""
        sums = dict.fromkeys(names, 0.0)
        both = (values_inside(model, names, inputs) for model in (network, quantised))
        for (x, expected), (_, actual) in zip(*both, strict=True):
            for name, e, a in zip(names, expected, actual, strict=True):
                hole = hole_of_level(x, *e.shape[1:])
                sums[name] += (a - e)[:, hole].mean(axis=1) / np.abs(e).max()
        return max(np.abs(total).max() for total in sums.values()) / len(inputs)

    corrected = moved(to_int8(network, inputs))
    monkeypatch.setattr(int8, "_correct_biases", lambda *graphs: None)
    assert corrected < 1e-3 < moved(to_int8(network, inputs))
