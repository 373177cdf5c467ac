"""Exported files are measured like networks, and their polarity is the right one."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from migan_jax.errors import UserError  # noqa: E402
from migan_jax.metrics.evaluator import NotFinite  # noqa: E402
from migan_jax.metrics.onnx_fill import files_of, open_onnx  # noqa: E402


def saved(path, inputs, output, nodes, constants=()):
    """A graph of a few operators; constants are arrays or tensors."""
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
    """Its picture is twice what it is shown, or made of that in another way."""
    nodes = [
        onnx.helper.make_node("Slice", ["x", "from", "to", "axis"], ["rgb"]),
        onnx.helper.make_node(operator, ["rgb", other], ["y"]),
    ]
    places = (("from", 1), ("to", 4), ("axis", 1))
    constants = [(name, np.array([value])) for name, value in places]
    constants += more
    kind = onnx.TensorProto.FLOAT
    shown, made = ("x", kind, [batch, 4, 8, 8]), ("y", kind, [batch, 3, 8, 8])
    return saved(path, [shown], made, nodes, constants)


def divided_by_itself(path):
    """NaN in holes."""
    return network(path, 1, "Div")


def with_weights_in(path, location, where="initializer"):
    """A network whose weights are in another file, or so it says."""
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


def pipeline(path, node, constants=(), made=onnx.TensorProto.UINT8):
    kind = onnx.TensorProto.UINT8
    shown = ("image", kind, ["N", 3, "H", "W"]), ("mask", kind, ["N", 1, "H", "W"])
    return saved(path, shown, ("result", made, ["N", 3, "H", "W"]), [node], constants)


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


@pytest.mark.parametrize("where", ["initializer", "node"])
def test_files_are_those_that_the_model_names(where, tmp_path):
    path = tmp_path / "x.onnx"
    content = with_weights_in(path, "sub/x.bin", where)
    with pytest.raises(UserError, match=r"weights in sub/x\.bin, .* keep the two"):
        files_of(path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.bin").write_bytes(content)
    (tmp_path / "x.onnx.d").mkdir()  # of something else, like these
    (tmp_path / "x.onnx.old").symlink_to("nowhere")
    (tmp_path / "x.onnx.txt").write_text("notes")
    assert files_of(path) == [path, tmp_path / "sub" / "x.bin"]
    open_onnx(path)


def test_files_outside_the_models_folder(tmp_path):
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "x.onnx"
    for location in ("../x.bin", str(tmp_path / "x.bin")):
        (tmp_path / "x.bin").write_bytes(with_weights_in(path, location))
        with pytest.raises(UserError, match="its folder has no such file"):
            files_of(path)
    path.write_bytes(b"no graph")
    with pytest.raises(UserError, match="damaged or no ONNX file"):
        files_of(path)


@pytest.mark.parametrize("shape", [[0, 4, 8, 8], ["N", 4, 0, 0]])
def test_what_takes_no_picture(shape, tmp_path):
    with pytest.raises(UserError, match=r"takes x \[.*\], which is no picture"):
        open_onnx(unchanged(tmp_path / "x.onnx", shape))


def test_pictures_of_another_kind(tmp_path):
    """Floats of a pipeline could be NaN; whole numbers of a network are not scaled."""
    real = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Cast", ["image"], ["result"], to=real)
    with pytest.raises(UserError, match=r"makes tensor\(float\) and not tensor\(uint8"):
        open_onnx(pipeline(tmp_path / "x.onnx", node, made=real))
    whole = unchanged(tmp_path / "y.onnx", [1, 4, 8, 8], onnx.TensorProto.INT32)
    with pytest.raises(UserError, match=r"makes tensor\(int32\) and not tensor\(float"):
        open_onnx(whole)
    model = onnx.load(whole)
    del model.graph.output[:]
    onnx.save(model, whole)
    with pytest.raises(UserError, match="makes nothing"):
        open_onnx(whole)


def test_nan_is_of_the_first_picture_that_has_it(tmp_path):
    fill, _ = open_onnx(divided_by_itself(tmp_path / "x.onnx"))
    truths, holes = pair()
    truths[0], holes[0] = 255, False  # so that nothing is divided by zero
    with pytest.raises(NotFinite) as caught:
        fill(truths, holes)
    assert caught.value.place == 1


def test_what_fails_while_it_runs(tmp_path):
    shape = ["N", 4, 8, 8]
    fill, _ = open_onnx(unchanged(tmp_path / "four.onnx", shape))
    with pytest.raises(UserError, match=r"makes \(3, 4, 8, 8\)"):
        fill(*pair())
    half = onnx.TensorProto.FLOAT16
    fill, _ = open_onnx(unchanged(tmp_path / "half.onnx", shape, half))
    with pytest.raises(UserError, match="cannot be run on"):
        fill(*pair())
