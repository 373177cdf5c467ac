"""The documents' pictures can be made again."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parent.parent / "docs" / "pictures.py"


@pytest.mark.slow
def test_pictures(tmp_path, monkeypatch):
    """With two steps of learning: what comes out is not good, but where it belongs."""
    spec = importlib.util.spec_from_file_location("pictures_of_docs", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, value in {"STEPS": 2, "SCENES": 3, "DOCS": tmp_path}.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(sys, "argv", ["pictures.py"])
    script.main()
    with Image.open(tmp_path / "inpaint.jpg") as picture:
        photo, mask, result = np.array_split(np.asarray(picture, int), 3, axis=1)
    known = mask.max(axis=-1) < 16
    width = min(photo.shape[1], result.shape[1])
    difference = np.abs(photo[:, :width] - result[:, -width:]).max(axis=-1)
    assert (
        difference[~known[:, :width]].mean() > 5 * difference[known[:, :width]].mean()
    )
