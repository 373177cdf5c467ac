"""Fingerprints of sources: content changes them, a new location does not."""

import dataclasses
import json

import numpy as np
from photo_folders import make_zip, open_small, save

from migan_jax.data.sources import FileSource, Fingerprint


def test_changed_folder_has_another_fingerprint(photos):
    before = open_small(photos).fingerprint
    assert open_small(photos).fingerprint == before
    content = bytearray((photos / "01.png").read_bytes())
    content[100] ^= 1
    (photos / "01.png").write_bytes(content)  # of the same size
    changed = open_small(photos).fingerprint
    change = changed.change_since(before)
    assert str(photos) in change and "12" in change
    (photos / "01.png").unlink()
    fewer = open_small(photos).fingerprint
    assert "12" in fewer.change_since(before) and "11" in fewer.change_since(before)


def test_renamed_image_is_a_change_and_moved_folder_is_not(photos):
    before = open_small(photos).fingerprint
    moved = photos.rename(photos.with_name("elsewhere"))
    assert open_small(moved).fingerprint.change_since(before) is None
    (moved / "01.png").rename(moved / "99.png")
    assert open_small(moved).fingerprint.change_since(before) is not None


def test_large_folder_is_fingerprinted_by_names_and_sizes(photos, monkeypatch):
    monkeypatch.setattr("migan_jax.data.containers.MAX_HASHED_BYTES", 1)
    before = open_small(photos).fingerprint
    (photos / "01.png").write_bytes((photos / "01.png").read_bytes() + b"more")
    assert open_small(photos).fingerprint.change_since(before) is not None


def test_fingerprint_includes_masks_and_their_polarity(photos, masks, tmp_path):
    digests = [
        FileSource(photos).fingerprint.digest,
        FileSource(photos, masks).fingerprint.digest,
        FileSource(photos, masks, "black").fingerprint.digest,
    ]
    save(masks, "01.bmp", np.eye(41, 56, dtype=np.uint8))
    digests.append(FileSource(photos, masks).fingerprint.digest)
    assert len(set(digests)) == 4


def test_changed_zip_has_another_fingerprint(photos, tmp_path):
    before = open_small(make_zip(photos, tmp_path / "a.zip")).fingerprint
    assert open_small(make_zip(photos, tmp_path / "b.zip")).fingerprint.digest == (
        before.digest
    )
    content = bytearray((photos / "01.png").read_bytes())
    content[100] ^= 1
    (photos / "01.png").write_bytes(content)
    assert open_small(make_zip(photos, tmp_path / "b.zip")).fingerprint.digest != (
        before.digest
    )


def test_fingerprints_survive_json():
    fingerprint = Fingerprint("photos", 3, 400, "abc")
    text = json.dumps(dataclasses.asdict(fingerprint))
    assert Fingerprint(**json.loads(text)) == fingerprint
