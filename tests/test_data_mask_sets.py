"""Sets of masks: always the same ones, and known by a hash."""

import json

import numpy as np
import pytest
from PIL import Image

from migan_jax.data.mask_sets import MaskSet, write_mask_set
from migan_jax.errors import UserError

SETTINGS = {"kind": "free_form", "count": 6, "resolution": 64, "seed": 3}


@pytest.fixture
def folder(tmp_path):
    write_mask_set(tmp_path / "set", **SETTINGS)
    return tmp_path / "set"


def test_a_set_is_what_its_files_show(folder):
    masks = MaskSet(folder)
    assert len(masks) == 6 and masks.settings == SETTINGS
    for number in range(6):
        assert masks[number].shape == (64, 64) and masks[number].dtype == np.uint8
        with Image.open(folder / f"{number:06d}.png") as image:
            assert np.array_equal(np.asarray(image), masks[number] == 0)
    assert len({masks[number].tobytes() for number in range(6)}) == 6


def test_the_seed_decides_and_a_smaller_set_is_the_start(folder, tmp_path):
    def another(name, **changed):
        write_mask_set(tmp_path / name, **(SETTINGS | changed))
        return MaskSet(tmp_path / name)

    masks = MaskSet(folder)
    assert another("again").digest == masks.digest
    smaller = another("smaller", count=4)
    assert all(np.array_equal(smaller[n], masks[n]) for n in range(4))
    others = [
        another("seed", seed=4).digest,
        another("kind", kind="brush").digest,
        smaller.digest,
    ]
    assert len({masks.digest, *others}) == 4


def test_progress_is_told(tmp_path):
    counts = []
    write_mask_set(tmp_path / "set", **SETTINGS, advance=counts.append)
    assert counts == [1] * 6


def test_an_interrupted_set_is_not_there(tmp_path):
    def interrupt(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mask_set(tmp_path / "set", **SETTINGS, advance=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_that_was_changed_is_noticed(folder):
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(folder / "000002.png")
    masks = MaskSet(folder)
    assert masks[1].shape == (64, 64)
    with pytest.raises(UserError, match=r"000002.png is not the mask"):
        masks[2]
    (folder / "000003.png").unlink()
    with pytest.raises(UserError, match=r"000003.png cannot be read"):
        masks[3]


def test_a_description_that_was_changed_is_noticed(folder):
    path = folder / "masks.json"
    content = json.loads(path.read_text())
    for changed in {"sha256_of_each": content["sha256_of_each"][1:]}, {"count": 5}:
        path.write_text(json.dumps(content | changed))
        with pytest.raises(UserError, match="changed after it was written"):
            MaskSet(folder)
    path.write_text(json.dumps(content | {"resolution": 32}))
    with pytest.raises(UserError, match=r"000000.png is not the mask"):
        MaskSet(folder)[0]
    kinds = {"kind": 3}, {"seed": True}, {"count": -1}, {"sha256_of_each": [3]}
    damages = [json.dumps(content | changed) for changed in kinds]
    for damaged in (*damages, "{}", "[]", "x", "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(UserError, match="damaged or not ours: draw the set again"):
            MaskSet(folder)
    path.unlink()
    with pytest.raises(UserError, match="no set of masks"):
        MaskSet(folder)
