"""Exported files as fills, with the right mask polarity."""

import re

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from migan_jax.errors import UserError  # noqa: E402
from migan_jax.metrics.evaluator import NonFiniteError  # noqa: E402
from migan_jax.metrics.onnx_fill import list_files, open_onnx  # noqa: E402


def save_graph(path, inputs, output, nodes, constants=()):
    """Save a graph of a few operators; constants are arrays or tensors."""
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [onnx.helper.make_tensor_value_info(*entry) for entry in inputs],
        [onnx.helper.make_tensor_value_info(*output)],
        [
            onnx.numpy_helper.from_array(value, name)
            if isinstance(value, np.ndarray)
            else value
            for name, value in constants
        ],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(model, path)
    return path


def network(path, batch, operator="Add", other="rgb", more=()):
    """Save a network that applies an operator to RGB; by default doubles it."""
    nodes = [
        onnx.helper.make_node("Slice", ["x", "from", "to", "axis"], ["rgb"]),
        onnx.helper.make_node(operator, ["rgb", other], ["y"]),
    ]
    bounds = (("from", 1), ("to", 4), ("axis", 1))
    constants = [(name, np.array([value])) for name, value in bounds]
    constants += more
    kind = onnx.TensorProto.FLOAT
    x, y = ("x", kind, [batch, 4, 8, 8]), ("y", kind, [batch, 3, 8, 8])
    return save_graph(path, [x], y, nodes, constants)


def divided_by_itself(path):
    """Save a network with NaN in holes."""
    return network(path, 1, "Div")


def network_with_external_weights(path, location, where="initializer"):
    """Save a network that names another file for its weights; return their bytes."""
    tensor = onnx.numpy_helper.from_array(np.zeros((1, 3, 8, 8), np.float32), "w")
    content = tensor.raw_data
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    network(path, 1, other="w", more=[("w", tensor)])
    if where == "node":
        model = onnx.load(path, load_external_data=False)
        kept = [t for t in model.graph.initializer if t.name != "w"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        model.graph.node.insert(
            0, onnx.helper.make_node("Constant", [], ["w"], value=tensor)
        )
        path.write_bytes(model.SerializeToString())
    return content


def pipeline(path, node, constants=(), output=onnx.TensorProto.UINT8):
    kind = onnx.TensorProto.UINT8
    inputs = ("image", kind, ["N", 3, "H", "W"]), ("mask", kind, ["N", 1, "H", "W"])
    result = "result", output, ["N", 3, "H", "W"]
    return save_graph(path, inputs, result, [node], constants)


def identity_pipeline(path):
    return pipeline(path, onnx.helper.make_node("Identity", ["image"], ["result"]))


def identity_network(path, shape, kind=onnx.TensorProto.FLOAT):
    """Save a network that returns its input."""
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    return save_graph(path, [("x", kind, shape)], ("y", kind, shape), [node])


def pair():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 8, 8, 3), np.uint8), rng.random((3, 8, 8)) < 0.4


@pytest.mark.parametrize("batch", [1, 2, 5, "N"])
def test_a_network(batch, tmp_path):
    fill, size = open_onnx(network(tmp_path / "x.onnx", batch))
    assert size == 8
    truths, holes = pair()
    results = fill(truths, holes)
    np.testing.assert_array_equal(results[~holes], truths[~holes])
    assert (results[holes] == 128).all()  # its input is zero there


def test_a_pipelines_mask_is_255_where_known(tmp_path):
    """The pipeline returns the mask."""
    node = onnx.helper.make_node("Tile", ["mask", "times"], ["result"])
    path = pipeline(tmp_path / "x.onnx", node, [("times", np.array([1, 3, 1, 1]))])
    fill, size = open_onnx(path)
    assert size is None
    truths, holes = pair()
    results = fill(truths, holes)
    assert (results[holes] == 0).all() and (results[~holes] == 255).all()


def test_files_that_are_not_exports(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"x\.onnx.*onnxruntime"):
        open_onnx(tmp_path / "x.onnx")
    with pytest.raises(UserError, match=r"y\.onnx"):
        open_onnx(tmp_path / "y.onnx")
    with pytest.raises(UserError, match=r"three\.onnx.*\[1, 3, 8, 8\]"):
        open_onnx(identity_network(tmp_path / "three.onnx", [1, 3, 8, 8]))
    with pytest.raises(UserError, match=r"\[1, 4, 8, 16\]"):
        open_onnx(identity_network(tmp_path / "wide.onnx", [1, 4, 8, 16]))


@pytest.mark.parametrize("where", ["initializer", "node"])
def test_external_weights_are_listed(where, tmp_path):
    path = tmp_path / "x.onnx"
    content = network_with_external_weights(path, "sub/x.bin", where)
    with pytest.raises(UserError, match=r"sub/x\.bin"):
        list_files(path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.bin").write_bytes(content)
    (tmp_path / "x.onnx.d").mkdir()  # unrelated, like the two below
    (tmp_path / "x.onnx.old").symlink_to("nowhere")
    (tmp_path / "x.onnx.txt").write_text("notes")
    assert list_files(path) == [path, tmp_path / "sub" / "x.bin"]
    open_onnx(path)


def test_weights_outside_the_models_folder(tmp_path):
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "x.onnx"
    for location in ("../x.bin", str(tmp_path / "x.bin")):
        (tmp_path / "x.bin").write_bytes(network_with_external_weights(path, location))
        with pytest.raises(UserError, match=re.escape(location)):
            list_files(path)
    path.write_bytes(b"not a graph")
    with pytest.raises(UserError, match="damaged"):
        list_files(path)


@pytest.mark.parametrize("shape", [[0, 4, 8, 8], ["N", 4, 0, 0]])
def test_empty_inputs(shape, tmp_path):
    with pytest.raises(UserError, match=re.escape(str(shape))):
        open_onnx(identity_network(tmp_path / "x.onnx", shape))


def test_wrong_output_types(tmp_path):
    """Float pipelines could output NaN; an integer network's output has no scale."""
    real = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Cast", ["image"], ["result"], to=real)
    with pytest.raises(UserError, match=r"tensor\(float\), not tensor\(uint8"):
        open_onnx(pipeline(tmp_path / "x.onnx", node, output=real))
    whole = identity_network(tmp_path / "y.onnx", [1, 4, 8, 8], onnx.TensorProto.INT32)
    with pytest.raises(UserError, match=r"tensor\(int32\), not tensor\(float"):
        open_onnx(whole)
    model = onnx.load(whole)
    del model.graph.output[:]
    onnx.save(model, whole)
    with pytest.raises(UserError, match="nothing, not"):
        open_onnx(whole)


def test_the_first_image_with_nan_is_reported(tmp_path):
    fill, _ = open_onnx(divided_by_itself(tmp_path / "x.onnx"))
    truths, holes = pair()
    truths[0], holes[0] = 255, False  # so nothing is divided by zero
    with pytest.raises(NonFiniteError) as caught:
        fill(truths, holes)
    assert caught.value.index == 1


def test_run_time_errors(tmp_path):
    shape = ["N", 4, 8, 8]
    fill, _ = open_onnx(identity_network(tmp_path / "four.onnx", shape))
    with pytest.raises(UserError, match=r"\(3, 4, 8, 8\)"):
        fill(*pair())
    half = onnx.TensorProto.FLOAT16
    fill, _ = open_onnx(identity_network(tmp_path / "half.onnx", shape, half))
    with pytest.raises(UserError, match=r"half\.onnx"):
        fill(*pair())
