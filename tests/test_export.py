"""The verb export: files, reports and errors."""

import hashlib
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx
import onnxruntime
from photo_folders import photo_folder
from pictures import hole_in, picture
from variables import CODES, SLIM, saved_network
from verbs import assert_error_line, run_here

import migan_jax
from migan_jax import export
from migan_jax.exporting import comparison
from migan_jax.exporting.comparison import (
    MaskedPhoto,
    format_report,
    measure_difference,
    parity_error,
    speed_note,
)
from migan_jax.metrics.onnx_fill import open_onnx
from migan_jax.models import comodgan, migan

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "network"
    return saved_network(migan.MIGANGenerator(16, **SLIM), folder)


def run(monkeypatch, checkpoint, output, *more, kind="network"):
    monkeypatch.setattr(comparison, "REPEATS", 1)
    monkeypatch.setattr(export, "NUM_CALIBRATION", 4)  # calibration is slow
    monkeypatch.setattr(export, "NUM_COMPARISON", 2)
    options = f"--checkpoint={checkpoint}", f"--output={output}", f"--kind={kind}"
    return run_here(monkeypatch, export, *options, *more)


def make_session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def read_metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_a_network(monkeypatch, checkpoint, tmp_path, capsys):
    path = tmp_path / "network.onnx"
    assert run(monkeypatch, checkpoint, path) == 0
    out = capsys.readouterr().out
    assert "Flax" in out and str(path) in out
    model = migan_jax.load(checkpoint)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 4)).astype(np.float32)
    (actual,) = make_session(path).run(None, {"input": np.moveaxis(x, -1, 1)})
    expected = np.asarray(model.forward(x))
    worst = np.abs(np.moveaxis(actual, 1, -1) - expected).max()
    assert worst <= 2e-4 * (expected.max() - expected.min())
    metadata = read_metadata(path)
    assert metadata["checkpoint_sha256"] == model.checkpoint.digest
    assert metadata["resolution"] == "16" and "mask" in metadata["tensors"]
    assert json.loads(metadata["config"])["channel_base"] == 128
    report = json.loads((tmp_path / "network.json").read_text())
    assert report["from_flax"]["largest"] <= 2e-4 * report["from_flax"]["range"]
    assert report["graphs"]["float32"]["bytes"] == path.stat().st_size
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report["metadata"] == metadata
    assert [entry.name for entry in tmp_path.iterdir() if "part" in entry.name] == []


def test_a_pipeline(monkeypatch, checkpoint, tmp_path):
    path = tmp_path / "pipeline.onnx"
    assert run(monkeypatch, checkpoint, path, kind="pipeline") == 0
    model, photo = migan_jax.load(checkpoint), picture(40, 50)
    hole = hole_in((40, 50), (10, 10, 30, 33))
    fill, size = open_onnx(path)
    assert size is None
    expected = model.inpaint(photo, hole, crops="one")
    difference = np.abs(fill(photo[None], hole[None])[0].astype(int) - expected)
    assert difference.max() <= 3 and np.mean(difference > 1) <= 1e-3
    assert (expected[hole] != photo[hole]).any()
    assert "255 known" in read_metadata(path)["tensors"]


@pytest.mark.parametrize(
    "precision, kind",
    [
        ("float16", "network"),
        ("int8", "pipeline"),
        pytest.param("float16", "pipeline", marks=pytest.mark.full),
        pytest.param("int8", "network", marks=pytest.mark.full),
    ],
)
def test_lower_precision(precision, kind, monkeypatch, checkpoint, tmp_path, capsys):
    """Inputs and outputs keep their types; random weights need --force."""
    photos = photo_folder(tmp_path / "photos")
    path = tmp_path / "small.onnx"
    more = f"--precision={precision}", f"--images={photos}", "--force"
    assert run(monkeypatch, checkpoint, path, *more, kind=kind) == 0
    assert " dB" in capsys.readouterr().out
    graph = onnx.load(path).graph
    kinds = {tensor.data_type for tensor in graph.initializer}
    inside = {"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}
    assert inside[precision] in kinds
    assert onnx.load(path).ir_version == 8  # onnxruntime 1.15 reads it
    assert [o.version for o in onnx.load(path).opset_import] == [18]
    # WebGPU in browsers rejects a float16 roi.
    constants = {tensor.name: tensor for tensor in graph.initializer}
    rois = [constants[n.input[1]] for n in graph.node if n.op_type == "Resize"]
    assert {(roi.data_type, *roi.dims) for roi in rois} == {(onnx.TensorProto.FLOAT, 0)}
    types = {x.type for x in make_session(path).get_inputs()}
    assert types == {"tensor(float)" if kind == "network" else "tensor(uint8)"}
    report = json.loads((tmp_path / "small.json").read_text())
    assert report["graphs"].keys() == {precision, "float32"}
    assert 15 < report["from_float32"]["psnr"] < 100
    assert report["remark"] == speed_note(report)


@pytest.mark.full
def test_int8_with_a_batch(monkeypatch, checkpoint, tmp_path):
    path = tmp_path / "two.onnx"
    more = "--precision=int8", "--batch=2", "--force"
    assert run(monkeypatch, checkpoint, path, *more) == 0
    x = np.zeros((2, 4, 16, 16), np.float32)
    assert make_session(path).run(None, {"input": x})[0].shape == (2, 3, 16, 16)
    assert "complaint" in json.loads((tmp_path / "two.json").read_text())


def test_any_size_and_batch_without_noise(monkeypatch, checkpoint, tmp_path):
    path = tmp_path / "any.onnx"
    more = "--resolution=any", "--batch=any", "--noise=dropped"
    assert run(monkeypatch, checkpoint, path, *more) == 0
    x = np.zeros((2, 4, 8, 24), np.float32)
    assert make_session(path).run(None, {"input": x})[0].shape == (2, 3, 8, 24)
    assert read_metadata(path)["noise"] == "dropped"


def test_exports_that_differ_too_much_are_not_written(
    monkeypatch, checkpoint, tmp_path
):
    monkeypatch.setattr(comparison, "NETWORK_TOLERANCE", 0.0)
    path = tmp_path / "network.onnx"
    message = run(monkeypatch, checkpoint, path, "--resolution=8x12")
    assert_error_line(message, "--force")
    assert list(tmp_path.iterdir()) == []


def make_result(kind, precision, **differences):
    same = {"largest": 0.0, "mean": 0.0, "range": 2.0, "stepped": 0.0, "psnr": 90.0}
    names = "from_flax", "from_float32", "float32_from_flax"
    all_of_them = dict.fromkeys(names, same | differences)
    return {"kind": kind, "precision": precision, **all_of_them}


def test_parity_errors():
    for kind, precision, differences in (
        ("network", "float32", {"largest": 5e-4}),
        ("network", "float32", {"largest": float("nan")}),
        ("pipeline", "float32", {"largest": 4.0}),
        ("pipeline", "float32", {"largest": 2.0, "stepped": 0.002}),
        ("network", "float16", {"psnr": 49.0}),
        ("network", "float16", {"psnr": float("nan")}),
        ("network", "int8", {"largest": 5e-4}),
        ("pipeline", "int8", {"psnr": 34.9}),
    ):
        assert parity_error(make_result(kind, precision)) is None
        assert parity_error(make_result(kind, precision, **differences)) is not None


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_the_report_notes_a_slower_precision(precision):
    def format_at(milliseconds):
        cost = {"bytes": 1000, "nodes": 9}
        times = {"float32": 10.0} | {precision: milliseconds}
        graphs = {name: cost | {"milliseconds": ms} for name, ms in times.items()}
        counts = {"pictures": 8, "threads": 2, "largest_activation": 3.0}
        result = make_result("network", precision) | counts | {"graphs": graphs}
        result |= {"activation_limit_kept": False, "remark": speed_note(result)}
        return format_report(result)

    assert "slower" not in format_at(9.9) and "slower" not in format_at(10.0)
    assert (f"{precision} is slower" in format_at(10.1)) == (precision != "float32")


def test_differences_are_over_all_pixels_and_psnr_over_holes():
    hole = hole_in((4, 4), (0, 0, 2, 4))
    expected = np.zeros((4, 4, 3))
    expected[3, 3, 0] = 10.0
    actual = expected + np.where(hole, 0.5, 2.0)[..., None]
    photo = MaskedPhoto(None, hole)
    found = measure_difference([actual], [expected], [photo], peak=50.0)
    assert found.largest == 2.0 and found.mean == 1.25 and found.stepped == 0.5
    assert found.range == 10.0
    assert found.psnr == pytest.approx(40.0)


def test_mistakes(monkeypatch, checkpoint, tmp_path):
    def run_refused(source=checkpoint, output="a.onnx", *more, **kind):
        message = run(monkeypatch, source, tmp_path / output, *more, **kind)
        assert_error_line(message)
        return message

    text = tmp_path / "README.md"
    text.write_text("not a network")
    assert str(text) in run_refused(text)
    assert "nothing.pt" in run_refused(tmp_path / "nothing.pt")
    assert ".onnx" in run_refused(output="a.pt")
    assert str(tmp_path / "nowhere") in run_refused(output="nowhere/a.onnx")
    assert "10x12" in run_refused(checkpoint, "a.onnx", "--resolution=10x12")
    more = "--batch=2"
    assert "--batch" in run_refused(checkpoint, "a.onnx", more, kind="pipeline")
    existing = tmp_path / "existing.onnx"
    existing.write_bytes(b"precious")
    assert str(existing) in run_refused(output="existing.onnx")
    assert existing.read_bytes() == b"precious"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in run_refused(checkpoint, "a.onnx", f"--images={empty}")
    one = photo_folder(tmp_path / "one", count=1)
    assert str(one) in run_refused(checkpoint, "a.onnx", f"--images={one}")
    teacher = comodgan.CoModGANGenerator(16, **SLIM, **CODES)
    path = saved_network(teacher, tmp_path / "teacher")
    assert "comodgan" in run_refused(path)


@pytest.mark.parametrize("wrong", ["--resolution=big", "--batch=0", "--precision=int4"])
def test_usage(wrong, monkeypatch, checkpoint, tmp_path, capsys):
    assert run(monkeypatch, checkpoint, tmp_path / "a.onnx", wrong) == 2
    assert wrong.partition("=")[0] in capsys.readouterr().err
