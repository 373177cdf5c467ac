"""The verb `prepare`: outputs, files and errors."""

import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from photo_folders import mask_folder, save
from pictures import picture
from PIL import Image
from verbs import assert_error_line, run_here

from migan_jax import prepare
from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.data.mask_sets import MaskSet
from migan_jax.data.sources import ArrayRecordSource


def test_folder_with_a_bad_file(photos, tmp_path, monkeypatch, capsys):
    (photos / "bad.jpg").write_text("x")
    (photos / "notes.txt").write_text("x")
    output = tmp_path / "out"
    options = photos, output, "--smallest-side=16"
    assert run_here(monkeypatch, prepare, *options) == 0
    printed = capsys.readouterr().out
    assert "13 images: " in printed and "10 of 13 images" in printed
    assert "12 images" in printed and "left out: 1 images" in printed
    assert ArrayRecordSource(output).fingerprint.digest in printed
    assert len(ArrayRecordSource(output)) == 12
    with Image.open(output / "sheet.png") as sheet:
        assert np.asarray(sheet).std() > 20
    assert run_here(monkeypatch, prepare, *options) == 0
    assert "already complete" in capsys.readouterr().out


def test_zip_with_masks_is_shrunk(photos, tmp_path, monkeypatch):
    masks = mask_folder(tmp_path / "masks", photos)
    shutil.make_archive(tmp_path / "photos", "zip", photos)
    options = "--size=20", f"--own-masks={masks}", "--smallest-side=1"
    source = tmp_path / "photos.zip"
    assert run_here(monkeypatch, prepare, source, tmp_path / "out", *options) == 0
    image, hole, _ = ArrayRecordSource(tmp_path / "out")[1]
    assert min(image.shape[:2]) == 20 and hole.shape == image.shape[:2]
    assert 0.2 < hole.mean() < 0.35


def test_masks_with_and_without_images(photos, tmp_path, monkeypatch, capsys):
    options = "--masks=3", "--resolution=32", "--kind=box", "--seed=7"
    assert run_here(monkeypatch, prepare, tmp_path / "set", *options) == 0
    masks = MaskSet(tmp_path / "set")
    assert masks.digest in capsys.readouterr().out and len(masks) == 3
    assert run_here(monkeypatch, prepare, tmp_path / "set", *options) == 0
    assert "already complete" in capsys.readouterr().out
    options += ("--smallest-side=1",)
    assert run_here(monkeypatch, prepare, photos, tmp_path / "out", *options) == 0
    assert MaskSet(tmp_path / "out" / "masks").digest == masks.digest
    assert len(ArrayRecordSource(tmp_path / "out")) == 12
    message = run_here(monkeypatch, prepare, tmp_path / "set", "--masks=4")
    assert_error_line(message, tmp_path / "set")
    message = run_here(monkeypatch, prepare, photos, "--masks=4")
    assert_error_line(message, photos, "masks.json")


def test_mistakes_are_one_line(photos, tmp_path, monkeypatch):
    def message(*arguments):
        return run_here(monkeypatch, prepare, *arguments)

    empty = tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../x.png", b"x")
    bad = tmp_path / "bad"
    save(bad, "a.png", picture(80, 80))
    (bad / "b.png").write_text("x")
    output = tmp_path / "out"
    assert_error_line(message(tmp_path / "nowhere", output), "nowhere")
    assert_error_line(message(empty, output), empty)
    assert_error_line(message(tmp_path / "evil.zip", output), "../x.png")
    assert_error_line(message(photos, output, f"--own-masks={empty}"), empty)
    assert not output.exists()
    assert_error_line(message(bad, output), "1 of 2", "10.0%", "b.png")
    assert_error_line(message(photos, photos / "sub"), photos / "sub")
    assert not list(photos.glob("*.json"))


def test_outputs_that_cannot_be_written(photos, tmp_path, monkeypatch):
    def message(*arguments):
        return run_here(monkeypatch, prepare, *arguments)

    (tmp_path / "file").write_text("x")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for output in ("file", "file/sub", "gone", "a" * 300):
        assert_error_line(
            message(photos, tmp_path / output, "--smallest-side=1"), output
        )
        assert_error_line(message(tmp_path / output, "--masks=1"), output)
    assert (tmp_path / "file").read_text() == "x"
    assert_error_line(message(tmp_path / "m", "--masks=1", "--resolution=4"), "16,384")


def test_shards_are_already_prepared(photos, tmp_path, monkeypatch):
    options = ("--smallest-side=1",)
    assert run_here(monkeypatch, prepare, photos, tmp_path / "out", *options) == 0
    message = run_here(monkeypatch, prepare, tmp_path / "out", tmp_path / "again")
    assert_error_line(message, tmp_path / "out", "shards")


def test_missing_mask_is_an_error(tmp_path, monkeypatch):
    options = tmp_path / "set", "--masks=2", "--resolution=32"
    assert run_here(monkeypatch, prepare, *options) == 0
    (tmp_path / "set" / "000001.png").unlink()
    assert_error_line(run_here(monkeypatch, prepare, *options), "000001.png")


def test_disk_that_is_too_small(photos, tmp_path, monkeypatch):
    space = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: space)
    message = run_here(monkeypatch, prepare, photos, tmp_path / "out")
    assert_error_line(message, "1 kB", "--size")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["out"],
        ["a", "b", "--size=0"],
        ["a", "b", "--max-rejected=nan"],
        ["a", "--masks=x"],
        ["a", "--masks=2", "--seed=-1"],
        ["a", "--masks=2", "--own-masks=b"],
        ["a", "b", f"--size={10**12}"],
        ["a", "b", f"--smallest-side={10**12}"],
        ["a", "b", f"--workers={10**6}"],
        ["a", f"--masks={10**20}"],
        ["a", f"--masks={'9' * 5000}"],
        ["a", "--masks=2", f"--seed={2**63}"],
        ["a", "--masks=2", f"--resolution={10**12}"],
    ],
)
def test_invalid_arguments(arguments, monkeypatch, capsys):
    assert run_here(monkeypatch, prepare, *arguments) == 2
    assert "usage:" in capsys.readouterr().err


def test_largest_numbers(photos, tmp_path, monkeypatch):
    options = f"--size={10**9}", "--smallest-side=1", "--workers=1024"
    assert run_here(monkeypatch, prepare, photos, tmp_path / "out", *options) == 0
    assert len(ArrayRecordSource(tmp_path / "out")) == 12
    options = "--masks=1", "--resolution=16", f"--seed={2**63 - 1}"
    for _ in range(2):  # drawn, then found complete
        assert run_here(monkeypatch, prepare, tmp_path / "set", *options) == 0
    options = f"--smallest-side={10**9}", "--max-rejected=1"
    message = run_here(monkeypatch, prepare, photos, tmp_path / "none", *options)
    assert_error_line(message, "rejected.json")
    message = run_here(
        monkeypatch, prepare, tmp_path / "m", f"--resolution={10**9}", "--masks=1"
    )
    assert_error_line(message, "16,384", "1,000,000,000")


def test_dataset_of_one_image(tmp_path, monkeypatch):
    save(tmp_path / "in", "one.png", picture(80, 80))
    assert run_here(monkeypatch, prepare, tmp_path / "in", tmp_path / "out") == 0
    assert len(ArrayRecordSource(tmp_path / "out")) == 1
    assert json.loads((tmp_path / "out" / "index.json").read_text())["names"]


def test_mask_kinds_are_the_samplers():
    assert prepare.MASK_KINDS == tuple(SAMPLERS)


def test_help_is_fast():
    """It does not import JAX or grain, which take a second or more."""
    code = "import sys, migan_jax.prepare as p; sys.argv = ['prepare', '--help']\n"
    code += "try: p.main()\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'jax', 'grain'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--own-masks" in done.stdout
