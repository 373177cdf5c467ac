"""The deployed network equals the inference form, with a simpler graph."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import jax
import onnx
import onnxruntime
import torch
from onnxruntime.tools.mobile_helpers import usability_checker
from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model
from variables import SLIM, random_variables, relative_l2

from migan_jax.exporting.graph import ExportOptions, build
from migan_jax.families import to_tensors
from migan_jax.models import migan
from migan_jax.twins.build import load_twin
from migan_jax.twins.deployed import LIMIT, Deployed
from migan_jax.twins.onnx_network import to_onnx
from migan_jax.weights.checkpoint import Checkpoint, to_form

pytestmark = pytest.mark.torch

# The only operators of a graph of a fixed size.
OPERATORS = {"Conv", "LeakyRelu", "Add", "Resize", "Clip"}


def make_checkpoint(resolution, **widths):
    """Return random weights in the inference form."""
    network = migan.MIGANGenerator(resolution, **widths)
    variables = random_variables(network)
    return to_form(
        Checkpoint(network, variables["params"], variables["stats"]), "fused"
    )


def make_twin(checkpoint):
    return load_twin(checkpoint.network, to_tensors(checkpoint))


def run_flax(checkpoint, x):
    return np.asarray(jax.jit(checkpoint.network.apply)(checkpoint.variables, x)[0])


def make_inputs(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal((*shape, 4), np.float32)


def channels_first(x):
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def run_torch(network, x):
    with torch.no_grad():
        return np.moveaxis(network(torch.from_numpy(channels_first(x))).numpy(), 1, -1)


def run_onnxruntime(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.moveaxis(session.run(None, {"input": channels_first(x)})[0], 1, -1)


@pytest.fixture(scope="module")
def narrow():
    return make_checkpoint(16, **SLIM)


@pytest.mark.parametrize(
    "size", [(16, 16), (32, 20), pytest.param((8, 24), marks=pytest.mark.full)]
)
def test_it_equals_flax(size, narrow):
    x, twin = make_inputs(2, *size), make_twin(narrow)
    expected = run_flax(narrow, x)
    for fixed in (size, None):
        for limited in (True, False):
            actual = run_torch(Deployed(twin, fixed, True, limited), x)
            assert relative_l2(actual, expected) < 1e-5
    without = run_torch(Deployed(twin, size, False, False), x)
    assert relative_l2(without, expected) > 1e-3


def test_dropped_noise_equals_zero_noise(narrow):
    x = make_inputs(1, 16, 16)
    actual = run_torch(Deployed(make_twin(narrow), (16, 16), False, False), x)
    nothing = jax.tree.map(np.zeros_like, narrow.stats)
    silent = Checkpoint(narrow.network, narrow.params, nothing)
    assert relative_l2(actual, run_flax(silent, x)) < 1e-5


def test_the_activation_limit(narrow):
    """Only inputs a thousand times too bright reach it."""
    twin, x = make_twin(narrow), make_inputs(1, 16, 16)
    limited, free = (Deployed(twin, None, True, limited) for limited in (True, False))
    assert limited.largest_activation(channels_first(x)) < LIMIT / 4
    assert limited.largest_activation(channels_first(1000 * x)) > LIMIT
    expected = run_flax(narrow, 1000 * x)
    assert relative_l2(run_torch(limited, 1000 * x), expected) < 1e-5
    assert relative_l2(run_torch(free, 1000 * x), expected) > 1e-2


def test_equalised_channels_give_the_same_output(narrow):
    """And have equal ranges, unless the factor was clamped."""
    network = Deployed(make_twin(narrow), (16, 16), True, False)
    xs = [channels_first(make_inputs(1, 16, 16, seed=seed)) for seed in range(3)]
    expected = [network(torch.from_numpy(x)).numpy() for x in xs]
    consumers = [consumers for _, consumers, _ in network._equalisation_sites()]
    before = network._magnitudes(consumers, xs)
    network.equalise(xs)
    for x, result in zip(xs, expected, strict=True):
        assert relative_l2(network(torch.from_numpy(x)).numpy(), result) < 1e-5
    after = network._magnitudes(consumers, xs)
    for new, old in zip(after, before, strict=True):
        assert new.max() == pytest.approx(float(old.max()), rel=1e-4)
        assert new.min() > 0.9 * new.max() or old.min() < 0.01 * old.max()


@pytest.fixture(scope="module")
def dynamic_model(narrow):
    return to_onnx(Deployed(make_twin(narrow), None, True, True), 16, None, None)


def test_a_graph_of_a_fixed_size_is_minimal(narrow):
    """No shape operators, and no zero-stuffing."""
    network = Deployed(make_twin(narrow), (16, 16), True, False)
    model = to_onnx(network, 16, (16, 16), 1)
    nodes = model.graph.node
    assert {node.op_type for node in nodes} == OPERATORS - {"Clip"}
    sizes = [entry.type.tensor_type.shape.dim for entry in model.graph.input]
    assert [d.dim_value for d in sizes[0]] == [1, 4, 16, 16]
    resized = [n for n in nodes if n.op_type == "Resize"]
    modes = [a.s for n in resized for a in n.attribute if a.name == "mode"]
    assert len(resized) == 4 and set(modes) == {b"nearest"}
    x = make_inputs(1, 16, 16)
    assert relative_l2(run_onnxruntime(model, x), run_flax(narrow, x)) < 1e-5
    external = [t.name for t in model.graph.initializer if t.external_data]
    assert not external  # one file


def check_mobile(model, folder):
    """Yield onnxruntime's mobile checks for NNAPI and both Core ML formats."""
    source, optimised = folder / "source.onnx", folder / "optimised.onnx"
    onnx.save(model, source)
    optimize_model(source, optimised)
    shaped = ModelProtoWithShapeInfo(optimised).model_with_shape_info
    yield usability_checker.check_nnapi_partitions(shaped, True)
    for kind in ("neuralnetwork", "mlprogram"):
        operators = f"coreml_supported_{kind}_ops.md"
        yield usability_checker.check_coreml_partitions(shaped, True, operators)


@pytest.mark.parametrize(
    "resolution, limited", [(64, True), pytest.param(256, True, marks=pytest.mark.full)]
)
def test_mobile_runtimes_take_a_graph_of_a_fixed_size_whole(
    resolution, limited, tmp_path
):
    size = resolution, resolution
    widths = {"channel_base": 2 * resolution, "channel_max": 8}
    twin = make_twin(make_checkpoint(resolution, **widths))
    model = to_onnx(Deployed(twin, size, True, limited), resolution, size, 1)
    for found in check_mobile(model, tmp_path):
        assert found.suitability() == usability_checker.PartitioningInfo.TryWithEP.YES
        assert found.num_partitions == 1
        assert found.num_supported_nodes == found.num_nodes
    # The empty roi that they require changes nothing.
    x = make_inputs(1, *size)
    expected = run_onnxruntime(model, x)
    for node in model.graph.node:
        if node.op_type == "Resize":
            node.input[1] = ""
    np.testing.assert_array_equal(run_onnxruntime(model, x), expected)


@pytest.mark.parametrize(
    "shape",
    [
        (3, 8, 24),
        (1, 4, 4),
        pytest.param((1, 16, 16), marks=pytest.mark.full),
        pytest.param((2, 32, 20), marks=pytest.mark.full),
    ],
)
def test_a_graph_of_any_size(shape, narrow, dynamic_model):
    entry = dynamic_model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in entry] == [
        "batch",
        4,
        "height",
        "width",
    ]
    x = make_inputs(*shape)
    assert relative_l2(run_onnxruntime(dynamic_model, x), run_flax(narrow, x)) < 1e-5


@pytest.mark.full
@pytest.mark.parametrize(
    "resolution, size", [(256, (256, 256)), (256, (384, 640)), (512, (512, 512))]
)
def test_full_width(resolution, size):
    """Random weights of this width reach the activation limit, so it is kept."""
    checkpoint, x = make_checkpoint(resolution), make_inputs(1, *size)
    exported = build(checkpoint, ExportOptions("network", size, 1), [x])
    expected = run_flax(checkpoint, x)
    worst = np.abs(run_onnxruntime(exported.model, x) - expected).max()
    assert worst <= 2e-4 * (expected.max() - expected.min())
    kinds = {node.op_type for node in exported.model.graph.node}
    assert ("Clip" in kinds) == (exported.largest_activation > LIMIT / 4)
