"""Batches: order, random crops, unusable images, settings."""

import dataclasses
import json
import struct
import zlib

import numpy as np
import pytest
from photo_folders import mask_folder, photo_folder, save, small_loader
from pictures import picture
from PIL import Image

from migan_jax.config import base_config
from migan_jax.data.examples import CropSettings
from migan_jax.data.pipeline import Batches, Loader, make_loader, open_batches
from migan_jax.data.rejects import Rejects
from migan_jax.data.sources import FileSource
from migan_jax.data.splits import open_splits
from migan_jax.errors import UserError


def load(loader, steps, first_step=0, limit=0.5, report=None):
    rejects = Rejects(loader.source, limit, report)
    with Batches(loader, rejects, first_step=first_step) as batches:
        return [next(batches) for _ in range(steps)], rejects


def test_batch_is_uint8_and_known_is_1(photos, tmp_path):
    batches, _ = load(small_loader(photos), 1)
    (batch,) = batches
    assert set(batch) == {"image"}
    assert batch["image"].shape == (4, 16, 16, 3) and batch["image"].dtype == np.uint8
    masks = mask_folder(tmp_path / "masks", photos)
    (batch,), _ = load(small_loader(photos, masks=masks), 1)
    assert batch["mask"].shape == (4, 16, 16, 1) and batch["mask"].dtype == np.uint8
    assert set(np.unique(batch["mask"])) <= {0, 1}
    assert (
        (batch["mask"] == 0).any(axis=(1, 2, 3)).all()
    )  # each includes some of the hole


def test_epochs_are_permutations(photos):
    loader = small_loader(photos)
    orders = [
        [loader.record_at(12 * epoch + index) for index in range(12)]
        for epoch in range(5)
    ]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    other = small_loader(photos, seed=1)
    assert [other.record_at(index) for index in range(12)] != orders[0]


def test_batches_may_span_epochs(tmp_path):
    loader = small_loader(photo_folder(tmp_path / "photos", count=3))
    records = [loader.record_at(position) for position in range(12)]
    assert all(sorted(records[i : i + 3]) == [0, 1, 2] for i in range(0, 12, 3))
    batches, _ = load(loader, 3)
    assert len({batch["image"].tobytes() for batch in batches}) == 3


def test_crops_differ_between_epochs(photos):
    loader = small_loader(photos)
    crops = {loader.load(5, position).image.tobytes() for position in range(20)}
    assert len(crops) == 20


def test_one_image_is_enough(tmp_path):
    save(tmp_path, "one.png", picture(40, 40))
    batches, _ = load(small_loader(tmp_path), 2)
    assert batches[0]["image"].shape == (4, 16, 16, 3)


# Unusable images.


def add_bad_files(photos):
    """Write bad files of every kind; return a part of each one's reason."""
    rgb = picture(40, 40)
    save(photos, "tiny.png", rgb[:12])
    save(photos, "animated.gif", rgb, save_all=True, append_images=[
        Image.fromarray(255 - rgb)
    ])  # fmt: skip
    transparent = np.dstack([rgb, np.full((40, 40), 127, np.uint8)])
    save(photos, "transparent.png", transparent)
    Image.new("CMYK", (40, 40)).save(photos / "print.jpg")
    (photos / "text.jpg").write_text("no picture")
    (photos / "empty.png").write_bytes(b"")
    (photos / "cut.png").write_bytes((photos / "01.png").read_bytes()[:300])
    header = struct.pack(">4sIIBBBBB", b"IHDR", 65535, 65535, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    rest = (photos / "01.png").read_bytes()[33:]
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13)
    (photos / "huge.png").write_bytes(start + header + checksum + rest)
    return {
        "tiny.png": "40x12",
        "animated.gif": "2",
        "transparent.png": "transparent",
        "print.jpg": "CMYK",
        "text.jpg": "known",
        "empty.png": "empty",
        "cut.png": "damaged",
        "huge.png": "million",
    }


def test_unusable_images_are_replaced_and_reported(photos, tmp_path, caplog):
    expected = add_bad_files(photos)
    (photos / "notes.txt").write_text("x")
    loader, report = small_loader(photos), tmp_path / "rejected.json"
    batches, rejects = load(loader, 5, report=report)  # an epoch of twenty
    assert all(batch["image"].shape == (4, 16, 16, 3) for batch in batches)
    assert set(rejects.reasons) == set(expected)
    for name, part in expected.items():
        assert name in rejects.reasons[name] and part in rejects.reasons[name]
        assert "\n" not in rejects.reasons[name]
        assert rejects.reasons[name] in caplog.text
    content = json.loads(report.read_text())
    assert content["rejected"] == rejects.reasons and content["rejected_count"] == 8
    assert content["no_images"] == ["notes.txt"]
    assert content["source"] == dataclasses.asdict(loader.source.fingerprint)
    again = Rejects(loader.source, 0.5, report)
    assert again.reasons == rejects.reasons


def test_changed_source_starts_a_new_report(photos, tmp_path, caplog):
    (photos / "01.png").write_bytes(b"x")
    report = tmp_path / "rejected.json"
    load(small_loader(photos), 3, report=report)
    save(photos, "01.png", picture(40, 40))
    rejects = Rejects(FileSource(photos), 0.5, report)
    assert rejects.reasons == {}
    assert f"{photos} has changed" in caplog.text and str(report) in caplog.text
    report.write_text("[]")
    with pytest.raises(UserError, match=r"rejected\.json.*damaged"):
        Rejects(FileSource(photos), 0.5, report)


def test_too_many_bad_images_are_an_error(photos, tmp_path):
    add_bad_files(photos)
    report = tmp_path / "rejected.json"
    with pytest.raises(UserError) as caught:
        load(small_loader(photos), 5, limit=0.3, report=report)
    for part in ("7 of 20", str(photos), "30.0%", str(report)):
        assert part in str(caught.value)
    assert len(json.loads(report.read_text())["rejected"]) == 7


def test_only_unusable_images(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_text("x")
    report = tmp_path / "rejected.json"
    with pytest.raises(UserError, match="2 of 3"):
        load(small_loader(tmp_path), 1, report=report)
    assert json.loads(report.read_text())["rejected"]
    with pytest.raises(UserError, match="101 tries"):
        load(small_loader(tmp_path), 1, limit=1.0)


def test_limit_holds_when_run_again(photos, tmp_path):
    add_bad_files(photos)
    report = tmp_path / "rejected.json"
    for _ in range(3):
        with pytest.raises(UserError, match=r"20\.0%"):
            load(small_loader(photos), 5, limit=0.2, report=report)


def test_deleted_image_is_replaced(photos):
    loader = small_loader(photos)
    (photos / "01.png").unlink()
    _, rejects = load(loader, 3)
    assert set(rejects.reasons) == {"01.png"}
    assert "No such file" in rejects.reasons["01.png"]


def test_unusable_masks_are_reported(photos, tmp_path):
    masks = mask_folder(tmp_path / "masks", photos)
    save(masks, "01.bmp", np.full((5, 5), 255, np.uint8))
    save(masks, "02.bmp", np.zeros((42, 56), np.uint8))
    _, rejects = load(small_loader(photos, masks=masks), 3)
    assert "5x5" in rejects.reasons["01.png"]
    assert "no hole" in rejects.reasons["02.png"]


# From the configuration.


def test_loader_follows_the_configuration(photos, tmp_path):
    config = base_config()
    config.update({"resolution": 16, "batch_size": 4, "seed": 3})
    config.data.source = str(photos)
    config.data.masks = str(mask_folder(tmp_path / "masks", photos))
    config.data.mask_hole = "black"
    config.data.crop_scale = 0.5
    config.data.held_out = 0
    loader = make_loader(config, open_splits(config)[0], range(2, 4))
    source = FileSource(photos, tmp_path / "masks", "black")
    crop = CropSettings(16, "square", 0.5, smallest_side=8)
    expected = Loader(source, crop, seed=3, batch_size=4, rows=range(2, 4))
    for name, array in expected(0).items():
        assert np.array_equal(loader(0)[name], array)


def test_default_source_is_scenes():
    config = base_config()
    config.update({"resolution": 32, "batch_size": 2})
    source, _ = open_splits(config)
    with open_batches(config, source, first_step=3) as batches:
        batch = next(batches)
    assert batch["image"].shape == (2, 32, 32, 3) and batch["image"].std() > 10
    assert np.array_equal(batch["image"], make_loader(config, source)(3)["image"])


def test_max_rejected_fraction(photos, tmp_path):
    (photos / "01.png").write_bytes(b"x")
    config = base_config()
    config.update({"resolution": 16, "batch_size": 4})
    config.data.update(
        {"source": str(photos), "max_rejected_fraction": 0.01, "held_out": 0}
    )
    report = tmp_path / "rejected.json"
    with pytest.raises(UserError, match=r"1 of 12 .*1\.0%"):
        with open_batches(config, open_splits(config)[0], report=report) as batches:
            for _ in range(3):
                next(batches)
    config.data.max_rejected_fraction = 0.1
    with open_batches(config, open_splits(config)[0], report=report) as batches:
        assert [next(batches)["image"].shape[0] for _ in range(3)] == [4, 4, 4]
    assert set(batches.rejects.reasons) == {"01.png"}


def test_invalid_crops(photos):
    config = base_config()
    config.data.update({"source": str(photos), "crop": "oval"})
    with pytest.raises(UserError, match=r"data\.crop is 'oval'.*square, whole, native"):
        make_loader(config, open_splits(config)[0])
    config.data.update({"crop": "square", "crop_scale": 0.0})
    with pytest.raises(UserError, match=r"data\.crop_scale is 0"):
        make_loader(config, open_splits(config)[0])


@pytest.mark.parametrize(
    "name, value",
    [
        ("resolution", 0),
        ("batch_size", 0),
        ("seed", -1),
        ("data.workers", -1),
        ("data.smallest_side", 0),
        ("data.mask_kind", "nope"),
        ("data.draw_masks_on", "paper"),
        ("data.held_out", -1),
        ("data.max_rejected_fraction", -1.0),
        ("data.max_rejected_fraction", 5.0),
    ],
)
def test_invalid_settings(name, value):
    config = base_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=f"^{name} is "):
        open_splits(config)


def test_batches_may_be_closed_twice(photos):
    with Batches(
        small_loader(photos), Rejects(FileSource(photos), 0.5, None)
    ) as batches:
        next(batches)
        batches.close()
