"""The verb evaluate: metrics of several checkpoints, reports, and errors."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from photo_folders import mask_folder
from PIL import Image
from safetensors.numpy import save_file
from test_data_sources import write_shards
from variables import SLIM, random_variables, saved_network
from verbs import run_here

from migan_jax import evaluate
from migan_jax.data.mask_sets import write_mask_set
from migan_jax.data.sources import FileSource
from migan_jax.families import save_checkpoint
from migan_jax.metrics import evaluator
from migan_jax.models import migan
from migan_jax.models.inception import Inception
from migan_jax.weights import feature_networks
from migan_jax.weights.checkpoint import Checkpoint
from migan_jax.weights.feature_networks import FILES


@pytest.fixture
def checkpoint(tmp_path):
    return saved_network(migan.MIGANGenerator(16, **SLIM), tmp_path / "network")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    """Hide feature networks that this machine may have."""
    monkeypatch.setattr(feature_networks.Path, "home", lambda: tmp_path / "home")
    monkeypatch.delenv(feature_networks.FOLDER_VARIABLE, raising=False)


def run(monkeypatch, tmp_path, checkpoint, photos, *more, output="out"):
    return run_here(
        monkeypatch,
        evaluate,
        f"--checkpoint={checkpoint}",
        f"--images={photos}",
        f"--output={tmp_path / output}",
        *more,
    )


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_a_report(monkeypatch, tmp_path, checkpoint, photos, capsys, caplog):
    other = saved_network(migan.MIGANGenerator(16, **SLIM), tmp_path / "other", seed=1)
    more = f"--checkpoint={other}", "--batch-size=3"
    assert run(monkeypatch, tmp_path, checkpoint, photos, *more) == 0
    out = capsys.readouterr().out
    assert "fid, kid, p_ids, u_ids: pt_inception-2015-12-05" in caplog.text
    result = result_of(tmp_path / "out")
    assert {str(checkpoint), str(other), "mean colour"} <= result["methods"].keys()
    for content in result["methods"].values():
        psnr = content["metrics"]["hole_psnr"]
        assert psnr["low"] < psnr["value"] < psnr["high"]
        assert sum(row["pictures"] for row in content["by_hole_ratio"]) == 12
    table = (tmp_path / "out" / "report.md").read_text()
    assert table in out and str(other) in table
    assert result["protocol"]["hash"][:12] in table
    page = (tmp_path / "out" / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")  # self-contained
    assert page.count("<img") > 12 and "Worst of" in page


def test_masks_default_to_those_of_the_run(
    monkeypatch, tmp_path, checkpoint, photos, caplog
):
    """Of the first checkpoint's run; the reports include the resolution."""
    settings = {"data.mask_kind": "thin_brush", "data.masks": None}
    (checkpoint / "config.json").write_text(json.dumps(settings))
    assert run(monkeypatch, tmp_path, checkpoint, photos, output="own") == 0
    assert "thin_brush" in caplog.text and str(checkpoint) in caplog.text
    result = result_of(tmp_path / "own")
    assert result["protocol"]["drawn_masks"] == {"kind": "thin_brush", "seed": 0}
    assert result["methods"][str(checkpoint)]["resolution"] == 16
    assert f"| {checkpoint}, 16 px |" in (tmp_path / "own" / "report.md").read_text()
    caplog.clear()
    source = FileSource(photos, mask_folder(tmp_path / "masks", photos))
    shards = write_shards(source, tmp_path / "shards")  # with their own masks
    assert run(monkeypatch, tmp_path, checkpoint, shards, output="shards") == 0
    assert result_of(tmp_path / "shards")["protocol"]["drawn_masks"] is None
    assert "thin_brush" not in caplog.text
    (checkpoint / "config.json").write_text(json.dumps(settings | {"data.masks": "m"}))
    assert run(monkeypatch, tmp_path, checkpoint, photos, output="others") == 0
    drawn = result_of(tmp_path / "others")["protocol"]["drawn_masks"]
    assert drawn == {"kind": "free_form", "seed": 0}
    assert "--masks" in caplog.text
    (checkpoint / "config.json").write_text(json.dumps({"data.mask_kind": "later"}))
    message = run(monkeypatch, tmp_path, checkpoint, photos, output="unknown")
    assert "later" in message and "--masks" in message


def test_a_set_of_unpaired_masks(monkeypatch, tmp_path, checkpoint, photos):
    """All checkpoints see the same ones; the reports have both sets of bins."""
    folder = tmp_path / "irregular"
    write_mask_set(folder, kind="irregular", count=40, resolution=64, seed=1)
    masks = f"--masks={folder}", "--mask-pairing=random"
    other = saved_network(migan.MIGANGenerator(16, **SLIM), tmp_path / "other", seed=1)
    results = []
    for path, output in ((checkpoint, "one"), (other, "two")):
        assert run(monkeypatch, tmp_path, path, photos, *masks, output=output) == 0
        results.append(result_of(tmp_path / output))
    protocol = results[0]["protocol"]
    assert protocol == results[1]["protocol"]
    assert protocol["drawn_masks"] == {"kind": "unpaired", "seed": 0}
    assert protocol["own_masks"] is None
    content = results[0]["methods"][str(checkpoint)]
    wide, narrow = content["by_hole_ratio"], content["by_hole_ratio_10_to_50"]
    assert sum(row["pictures"] for row in wide) == 12 and wide[-1]["to"] <= 0.6
    assert {row["from"] for row in narrow} <= {0.1, 0.2, 0.3, 0.4}
    assert all(round(row["to"] - row["from"], 3) == 0.1 for row in narrow)
    page = (tmp_path / "one" / "report.html").read_text()
    assert "steps of 20 %" in page and "steps of 10 %" in page


def test_random_masks_need_a_set(monkeypatch, tmp_path, checkpoint, photos, capsys):
    assert run(monkeypatch, tmp_path, checkpoint, photos, "--mask-pairing=random") == 2
    assert "--masks" in capsys.readouterr().err


def test_special_characters_in_names(monkeypatch, tmp_path, photos):
    """Formulas, tables, HTML and bytes that are not text."""
    folder = tmp_path / "a$_{b$|c (1)<i>"
    path = saved_network(migan.MIGANGenerator(16, **SLIM), folder)
    first = min(photos.iterdir())
    first.rename(photos / os.fsdecode(b"\xff.png"))
    assert run(monkeypatch, tmp_path, path, photos) == 0
    assert "<i>" not in (tmp_path / "out" / "report.html").read_text()
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in lines[:4]}) == 1


def test_a_repeated_command_is_reproducible_and_cached(
    monkeypatch, tmp_path, checkpoint, photos
):
    for output in ("one", "two"):
        assert run(monkeypatch, tmp_path, checkpoint, photos, output=output) == 0
    content = [(tmp_path / o / "result.json").read_bytes() for o in ("one", "two")]
    assert content[0] == content[1]
    # Nothing is evaluated again.
    monkeypatch.setattr(evaluator.FeatureNetworks, "compare", None)
    assert run(monkeypatch, tmp_path, checkpoint, photos, output="one") == 0
    assert (tmp_path / "one" / "result.json").read_bytes() == content[0]


@pytest.mark.full
def test_feature_networks_are_used(monkeypatch, tmp_path, checkpoint, photos):
    """With random weights; the published hash is patched to that of their file."""
    pytest.importorskip("sklearn")
    tensors, rng = {}, np.random.default_rng(0)
    params = feature_networks._abstract_params(Inception(), 299)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *layer, name = (key.key for key in path)
        prefix = ".".join(layer[:-1])
        if name == "kernel":
            height, width, cin, cout = leaf.shape
            kernel = rng.normal(0, (2 / (height * width * cin)) ** 0.5, leaf.shape)
            transposed = np.float32(kernel.transpose(3, 2, 0, 1))
            tensors[f"{prefix}.conv.weight"] = np.ascontiguousarray(transposed)
            for norm in ("weight", "bias", "running_mean", "running_var"):
                ones = norm in ("weight", "running_var")
                tensors[f"{prefix}.bn.{norm}"] = np.full(cout, ones, np.float32)
    folder = tmp_path / "home" / ".cache" / "migan_jax"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "any.safetensors")
    content = (folder / "any.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    file = FILES["inception"]._replace(size=len(content), sha256=digest)
    monkeypatch.setitem(FILES, "inception", file)
    assert run(monkeypatch, tmp_path, checkpoint, photos, "--samples=6") == 0
    result = result_of(tmp_path / "out")
    assert result["protocol"]["network_weights"] == {"inception": digest}
    metrics = result["methods"][str(checkpoint)]["metrics"]
    assert metrics["fid_6"]["value"] > 0
    assert 0 <= metrics["p_ids_6"]["value"] <= 1


def test_custom_masks_and_their_polarity(monkeypatch, tmp_path, checkpoint, photos):
    masks = mask_folder(tmp_path / "masks", photos)
    option = f"--masks={masks}"
    assert run(monkeypatch, tmp_path, checkpoint, photos, option) == 0
    inverted = option, "--mask-hole=black"
    assert run(monkeypatch, tmp_path, checkpoint, photos, *inverted, output="b") == 0
    one, other = (result_of(tmp_path / name) for name in ("out", "b"))
    assert one["protocol"]["own_masks"] == "white"
    assert one["protocol"]["holes"] != other["protocol"]["holes"]


def run_refused(monkeypatch, *arguments):
    message = run(monkeypatch, *arguments)
    assert isinstance(message, str) and message.startswith("error: ")
    assert "\n" not in message
    return message


def test_mistakes(monkeypatch, tmp_path, checkpoint, photos):
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = monkeypatch, tmp_path, checkpoint
    assert str(empty) in run_refused(*arguments, empty)
    assert "nowhere" in run_refused(*arguments, tmp_path / "nowhere")
    masks = mask_folder(tmp_path / "masks", photos)
    missing = min(masks.iterdir())
    missing.unlink()
    assert missing.stem in run_refused(*arguments, photos, f"--masks={masks}")
    (tmp_path / "file").write_text("")
    message = run_refused(*arguments, photos, f"--output={tmp_path / 'file'}")
    assert f"--output={tmp_path / 'file'} " in message
    assert "--samples" in run_refused(*arguments, "scenes")
    larger = saved_network(migan.MIGANGenerator(32, **SLIM), tmp_path / "larger")
    message = run_refused(*arguments, photos, f"--checkpoint={larger}")
    assert str(larger) in message and "16" in message and "32" in message
    assert "twice" in run_refused(*arguments, photos, f"--checkpoint={checkpoint}")
    monkeypatch.chdir(tmp_path)
    saved_network(migan.MIGANGenerator(16, **SLIM), Path("mean colour"))
    assert "mean colour" in run_refused(monkeypatch, tmp_path, "mean colour", photos)
    message = run_refused(monkeypatch, tmp_path, photos / "none.pt", photos)
    assert str(photos / "none.pt") in message
    unwritable = f"--output={tmp_path / 'file' / 'below'}"
    assert f"{unwritable} " in run_refused(*arguments, photos, unwritable)


def test_check_output_runs_in_parallel(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(evaluate.check_output, [tmp_path / "out"] * 200))
    assert list((tmp_path / "out" / "chunks").iterdir()) == []


def test_a_checkpoint_that_overflows(monkeypatch, tmp_path, photos):
    """Its weights are finite, but its outputs are not."""
    network = migan.MIGANGenerator(16, **SLIM)
    variables = random_variables(network)
    params = jax.tree.map(lambda leaf: np.copysign(3e38, leaf), variables["params"])
    path = tmp_path / "network"
    save_checkpoint(Checkpoint(network, params, variables["stats"]), path, "training")
    message = run_refused(monkeypatch, tmp_path, path, photos, "--batch-size=5")
    assert str(path) in message and "NaN" in message and "01.png" in message
    assert not any((tmp_path / "out" / "chunks").iterdir())


def test_a_single_image(monkeypatch, tmp_path, checkpoint):
    folder = tmp_path / "one"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    assert run(monkeypatch, tmp_path, checkpoint, folder) == 0
    metrics = result_of(tmp_path / "out")["methods"]["mean colour"]["metrics"]
    assert metrics["l1"]["value"] > 0


def test_an_exported_pipeline(monkeypatch, tmp_path, photos):
    """It takes any size, so --resolution is required."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from test_metrics_onnx_fill import identity_pipeline

    path = identity_pipeline(tmp_path / "pipeline.onnx")
    assert "--resolution" in run_refused(monkeypatch, tmp_path, path, photos)
    assert run(monkeypatch, tmp_path, path, photos, "--resolution=24") == 0
    result = result_of(tmp_path / "out")
    assert result["protocol"]["resolution"] == 24
    assert result["methods"][str(path)]["metrics"]["l1"]["value"] == 0
    # Files with similar names are ignored.
    (tmp_path / "pipeline.onnx.d").mkdir()
    (tmp_path / "pipeline.onnx.old").symlink_to("nowhere")
    assert run(monkeypatch, tmp_path, path, photos, "--resolution=24") == 0


def test_an_exported_network_with_nan(monkeypatch, tmp_path, photos):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from test_metrics_onnx_fill import divided_by_itself

    path = divided_by_itself(tmp_path / "network.onnx")
    message = run_refused(monkeypatch, tmp_path, path, photos)
    assert str(path) in message and "NaN" in message and "01.png" in message
    assert not any((tmp_path / "out" / "chunks").iterdir())
