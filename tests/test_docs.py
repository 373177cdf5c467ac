"""The scripts that draw the documents' figures."""

import sys

import numpy as np
import pytest
from docs_scripts import docs_script
from PIL import Image

pytestmark = pytest.mark.full


def test_pictures(tmp_path, monkeypatch):
    """After two training steps results are bad, but in the right places."""
    script = docs_script("pictures")
    for name, value in {"STEPS": 2, "SCENES": 3, "DOCS": tmp_path}.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(sys, "argv", ["pictures.py"])
    script.main()
    with Image.open(tmp_path / "inpaint.jpg") as picture:
        photo, mask, result = np.array_split(np.asarray(picture, int), 3, axis=1)
    with Image.open(tmp_path / "rim.jpg") as picture:
        _, rim, fixed = np.array_split(np.asarray(picture, int), 3, axis=1)
    width = min(rim.shape[1], fixed.shape[1])
    assert np.abs(rim[:, :width] - fixed[:, :width]).mean() > 1
    known = mask.max(axis=-1) < 16
    width = min(photo.shape[1], result.shape[1])
    difference = np.abs(photo[:, :width] - result[:, -width:]).max(axis=-1)
    assert (
        difference[~known[:, :width]].mean() > 5 * difference[known[:, :width]].mean()
    )


def test_healthy(tmp_path, monkeypatch):
    """A run of two steps has curves and, beside them, a grid."""
    script = docs_script("healthy")
    tiny = "resolution=8 batch_size=8 total_kimg=0.016 networks.channel_base=128 "
    tiny += "networks.channel_max=8 data.held_out=8 log_every_steps=1"
    monkeypatch.setattr(script, "RUNS", {"tiny": ("scenes64", *tiny.split())})
    monkeypatch.setattr(script, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["healthy.py", f"--folder={tmp_path / 'runs'}"])
    script.main()
    with Image.open(tmp_path / "tiny.jpg") as picture:
        pixels = np.asarray(picture.convert("L"), np.float32)
    for half in np.array_split(pixels, 2, axis=1):
        assert half.shape[0] == script.HEIGHT and half.std() > 20


def test_contact_sheets(tmp_path, monkeypatch):
    """Rows are sources, scene families or kinds of masks; none is empty."""
    pytest.importorskip("tensorflow_datasets")
    script = docs_script("contact_sheets")
    monkeypatch.setattr(script, "DOCS", tmp_path)
    script.main()
    for name, rows in {"sources": 6, "scenes": 6, "masks": 15}.items():
        with Image.open(tmp_path / f"{name}.jpg") as sheet:
            pixels = np.asarray(sheet.convert("L"), np.float32)
        for row in np.array_split(pixels, rows):
            assert row.std() > 20
