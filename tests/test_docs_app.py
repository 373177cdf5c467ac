"""Run the code in docs/app.md, and compare its results with `Model.inpaint`."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from pictures import hole_in, picture
from PIL import Image
from variables import SLIM, saved_network
from verbs import run_here

import migan_jax
from migan_jax import export
from migan_jax.exporting import comparison
from migan_jax.models import migan

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

DOCUMENT = Path(__file__).parent.parent / "docs" / "app.md"
PHOTO, HOLE = picture(50, 70), hole_in((50, 70), (10, 20, 40, 50))

DRIVER = """
import { readFileSync, writeFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import { inpaint } from "./inpaint.mjs";

const session = await ort.InferenceSession.create(readFileSync("migan_pipeline.onnx"));
const [width, height] = [70, 50];
const bytes = (name) => ({ width, height, data: readFileSync(name) });
const filled = await inpaint(ort, session, bytes("photo.bin"), bytes("mask.bin"));
writeFileSync("result.bin", filled.data);
"""


def read_code(language):
    (block,) = re.findall(
        rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL
    )
    return block


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pipeline, and the expected result."""
    folder = tmp_path_factory.mktemp("app")
    network = migan.MIGANGenerator(16, **SLIM)
    checkpoint = saved_network(network, folder / "network")
    output = folder / "migan_pipeline.onnx"
    arguments = f"--checkpoint={checkpoint}", f"--output={output}", "--kind=pipeline"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "REPEATS", 1)
        patch.setattr(export, "NUM_CALIBRATION", 4)
        assert run_here(patch, export, *arguments) == 0
    model = migan_jax.load(checkpoint)
    return folder, model.inpaint(PHOTO, HOLE, crops="one")


def check_result(actual, expected):
    difference = np.abs(actual.astype(int) - expected)
    assert difference.max() <= 3 and np.mean(difference > 1) <= 1e-3
    assert (expected[HOLE] != PHOTO[HOLE]).any()


def test_python(folder, tmp_path, monkeypatch):
    files, expected = folder
    shutil.copy(files / "migan_pipeline.onnx", tmp_path)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save("photo.jpg", format="PNG")  # lossless
    Image.fromarray(HOLE).convert("L").save("mask.png")
    exec(compile(read_code("python"), "docs/app.md", "exec"), {})
    check_result(np.asarray(Image.open("result.png")), expected)


@pytest.mark.full
def test_javascript(folder, tmp_path):
    """Needs node and the npm registry."""
    if shutil.which("npm") is None:
        pytest.skip("node is not installed")
    files, expected = folder
    shutil.copy(files / "migan_pipeline.onnx", tmp_path)
    install = "npm", "install", "--no-audit", "--no-fund", "onnxruntime-web@^1.20"
    if subprocess.run(install, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("onnxruntime-web cannot be installed")
    (tmp_path / "inpaint.mjs").write_text(read_code("javascript"))
    (tmp_path / "driver.mjs").write_text(DRIVER)
    opaque = np.full((50, 70, 1), 255, np.uint8)
    painted = np.repeat(np.uint8(255) * HOLE[..., None], 3, axis=-1)
    for name, pixels in (("photo", PHOTO), ("mask", painted)):
        rgba = np.concatenate([pixels, opaque], axis=-1)
        (tmp_path / f"{name}.bin").write_bytes(rgba.tobytes())
    done = subprocess.run(
        ["node", "driver.mjs"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = np.frombuffer((tmp_path / "result.bin").read_bytes(), np.uint8)
    check_result(result.reshape(50, 70, 4)[..., :3], expected)
