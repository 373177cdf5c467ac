"""Sets of masks: reproducible, identified by a hash, and checked."""

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


def test_set_has_the_masks_of_its_files(folder):
    masks = MaskSet(folder)
    assert len(masks) == 6 and masks.settings == SETTINGS
    for index in range(6):
        assert masks[index].shape == (64, 64) and masks[index].dtype == np.uint8
        with Image.open(folder / f"{index:06d}.png") as image:
            assert np.array_equal(np.asarray(image), masks[index] == 0)
    assert len({masks[index].tobytes() for index in range(6)}) == 6


def test_set_depends_on_the_seed_and_smaller_set_is_its_start(folder, tmp_path):
    def write_other(name, **changed):
        write_mask_set(tmp_path / name, **(SETTINGS | changed))
        return MaskSet(tmp_path / name)

    masks = MaskSet(folder)
    assert write_other("again").digest == masks.digest
    smaller = write_other("smaller", count=4)
    assert all(np.array_equal(smaller[i], masks[i]) for i in range(4))
    others = [
        write_other("seed", seed=4).digest,
        write_other("kind", kind="brush").digest,
        smaller.digest,
    ]
    assert len({masks.digest, *others}) == 4


def test_progress_is_reported(tmp_path):
    counts = []
    write_mask_set(tmp_path / "set", **SETTINGS, advance=counts.append)
    assert counts == [1] * 6


def test_interruption_leaves_no_files(tmp_path):
    def interrupt(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mask_set(tmp_path / "set", **SETTINGS, advance=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_changed_mask_is_an_error(folder):
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(folder / "000002.png")
    masks = MaskSet(folder)
    assert masks[1].shape == (64, 64)
    with pytest.raises(UserError, match=r"000002\.png"):
        masks[2]
    (folder / "000003.png").unlink()
    with pytest.raises(UserError, match=r"000003\.png"):
        masks[3]


def test_changed_description_is_an_error(folder):
    path = folder / "masks.json"
    content = json.loads(path.read_text())
    for changed in {"sha256_of_each": content["sha256_of_each"][1:]}, {"count": 5}:
        path.write_text(json.dumps(content | changed))
        with pytest.raises(UserError, match=r"masks\.json was changed"):
            MaskSet(folder)
    path.write_text(json.dumps(content | {"resolution": 32}))
    with pytest.raises(UserError, match=r"000000\.png"):
        MaskSet(folder)[0]
    kinds = {"kind": 3}, {"seed": True}, {"count": -1}, {"sha256_of_each": [3]}
    damages = [json.dumps(content | changed) for changed in kinds]
    for damaged in (*damages, "{}", "[]", "x", "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"masks\.json.*damaged"):
            MaskSet(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"no masks\.json"):
        MaskSet(folder)
