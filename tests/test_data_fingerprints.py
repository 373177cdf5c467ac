"""Fingerprints: what a source holds, whatever it is called and wherever it lies."""

import dataclasses
import json

import numpy as np
from photo_folders import opened, save, zipped

from migan_jax.data.sources import FileSource, Fingerprint


def test_a_changed_folder_has_another_fingerprint(photos):
    before = opened(photos).fingerprint
    assert opened(photos).fingerprint == before
    content = bytearray((photos / "01.png").read_bytes())
    content[100] ^= 1
    (photos / "01.png").write_bytes(content)  # no other size
    changed = opened(photos).fingerprint
    sentence = changed.change_since(before)
    assert str(photos) in sentence and "12 pictures have other contents" in sentence
    (photos / "01.png").unlink()
    fewer = opened(photos).fingerprint
    assert "had 12 pictures" in fewer.change_since(before)
    assert "has 11" in fewer.change_since(before)


def test_a_renamed_or_copied_picture_is_a_change_and_a_moved_folder_is_not(photos):
    before = opened(photos).fingerprint
    moved = photos.rename(photos.with_name("elsewhere"))
    assert opened(moved).fingerprint.change_since(before) is None
    (moved / "01.png").rename(moved / "99.png")
    assert opened(moved).fingerprint.change_since(before) is not None


def test_a_large_folder_is_known_by_names_and_sizes(photos, monkeypatch):
    monkeypatch.setattr("migan_jax.data.containers.HASHED_BYTES", 1)
    before = opened(photos).fingerprint
    (photos / "01.png").write_bytes((photos / "01.png").read_bytes() + b"more")
    assert opened(photos).fingerprint.change_since(before) is not None


def test_masks_and_their_polarity_are_in_the_fingerprint(photos, masks, tmp_path):
    digests = [
        FileSource(photos).fingerprint.digest,
        FileSource(photos, masks).fingerprint.digest,
        FileSource(photos, masks, "black").fingerprint.digest,
    ]
    save(masks, "01.bmp", np.eye(41, 56, dtype=np.uint8))
    digests.append(FileSource(photos, masks).fingerprint.digest)
    assert len(set(digests)) == 4


def test_a_zip_that_was_changed_has_another_fingerprint(photos, tmp_path):
    before = opened(zipped(photos, tmp_path / "a.zip")).fingerprint
    assert opened(zipped(photos, tmp_path / "b.zip")).fingerprint.digest == (
        before.digest
    )
    content = bytearray((photos / "01.png").read_bytes())
    content[100] ^= 1
    (photos / "01.png").write_bytes(content)
    assert opened(zipped(photos, tmp_path / "b.zip")).fingerprint.digest != (
        before.digest
    )


def test_fingerprints_survive_json():
    fingerprint = Fingerprint("photos", 3, 400, "abc")
    text = json.dumps(dataclasses.asdict(fingerprint))
    assert Fingerprint(**json.loads(text)) == fingerprint
