"""Exported files are measured like networks, and their polarity is the right one."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from migan_jax.errors import UserError  # noqa: E402
from migan_jax.metrics.onnx_fill import open_onnx  # noqa: E402


def saved(path, inputs, output, nodes, constants=()):
    """A graph of a few operators."""
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [onnx.helper.make_tensor_value_info(*entry) for entry in inputs],
        [onnx.helper.make_tensor_value_info(*output)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(model, path)
    return path


def network(path, batch):
    """Its picture is twice what it is shown."""
    nodes = [
        onnx.helper.make_node("Slice", ["x", "from", "to", "axis"], ["rgb"]),
        onnx.helper.make_node("Add", ["rgb", "rgb"], ["y"]),
    ]
    places = (("from", 1), ("to", 4), ("axis", 1))
    constants = [(name, np.array([value])) for name, value in places]
    kind = onnx.TensorProto.FLOAT
    shown, made = ("x", kind, [batch, 4, 8, 8]), ("y", kind, [batch, 3, 8, 8])
    return saved(path, [shown], made, nodes, constants)


def pipeline(path, node, constants=()):
    kind = onnx.TensorProto.UINT8
    shown = ("image", kind, ["N", 3, "H", "W"]), ("mask", kind, ["N", 1, "H", "W"])
    return saved(path, shown, ("result", kind, ["N", 3, "H", "W"]), [node], constants)


def identity_pipeline(path):
    return pipeline(path, onnx.helper.make_node("Identity", ["image"], ["result"]))


def unchanged(path, shape, kind=onnx.TensorProto.FLOAT):
    """What it is given comes out."""
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    return saved(path, [("x", kind, shape)], ("y", kind, shape), [node])


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
    assert (results[holes] == 128).all()  # it is shown zeros there


def test_a_pipeline_is_given_255_where_known(tmp_path):
    """This one returns the mask."""
    node = onnx.helper.make_node("Tile", ["mask", "times"], ["result"])
    path = pipeline(tmp_path / "x.onnx", node, [("times", np.array([1, 3, 1, 1]))])
    fill, size = open_onnx(path)
    assert size is None
    truths, holes = pair()
    results = fill(truths, holes)
    assert (results[holes] == 0).all() and (results[~holes] == 255).all()


def test_what_is_no_export(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="cannot be run by onnxruntime"):
        open_onnx(tmp_path / "x.onnx")
    with pytest.raises(UserError, match="There is no checkpoint"):
        open_onnx(tmp_path / "y.onnx")
    with pytest.raises(UserError, match="neither a network's"):
        open_onnx(unchanged(tmp_path / "three.onnx", [1, 3, 8, 8]))
    with pytest.raises(UserError, match="only squares"):
        open_onnx(unchanged(tmp_path / "wide.onnx", [1, 4, 8, 16]))


def test_what_fails_while_it_runs(tmp_path):
    shape = ["N", 4, 8, 8]
    fill, _ = open_onnx(unchanged(tmp_path / "four.onnx", shape))
    with pytest.raises(UserError, match=r"makes \(3, 4, 8, 8\)"):
        fill(*pair())
    half = onnx.TensorProto.FLOAT16
    fill, _ = open_onnx(unchanged(tmp_path / "half.onnx", shape, half))
    with pytest.raises(UserError, match="cannot be run on"):
        fill(*pair())
