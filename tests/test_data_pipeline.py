"""Batches: every picture once an epoch, random crops, and what cannot be used."""

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
from migan_jax.data.examples import Crop
from migan_jax.data.opening import open_parts
from migan_jax.data.pipeline import (
    Batches,
    Loader,
    batches_of,
    loader_of,
)
from migan_jax.data.rejects import Rejects
from migan_jax.data.sources import FileSource
from migan_jax.errors import UserError


def take(loader, steps, first_step=0, limit=0.5, report=None):
    rejects = Rejects(loader.source, limit, report)
    with Batches(loader, rejects, first_step=first_step) as batches:
        return [next(batches) for _ in range(steps)], rejects


def test_a_batch_is_uint8_and_known_is_1(photos, tmp_path):
    batches, _ = take(small_loader(photos), 1)
    (batch,) = batches
    assert set(batch) == {"image"}
    assert batch["image"].shape == (4, 16, 16, 3) and batch["image"].dtype == np.uint8
    masks = mask_folder(tmp_path / "masks", photos)
    (batch,), _ = take(small_loader(photos, masks=masks), 1)
    assert batch["mask"].shape == (4, 16, 16, 1) and batch["mask"].dtype == np.uint8
    assert set(np.unique(batch["mask"])) <= {0, 1}
    assert (batch["mask"] == 0).any(axis=(1, 2, 3)).all()  # each sees some of the hole


def test_every_picture_comes_once_an_epoch_in_another_order(photos):
    loader = small_loader(photos)
    orders = [
        [loader.record_at(12 * epoch + index) for index in range(12)]
        for epoch in range(5)
    ]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    other = small_loader(photos, seed=1)
    assert [other.record_at(index) for index in range(12)] != orders[0]


def test_an_epoch_need_not_be_whole_batches(tmp_path):
    loader = small_loader(photo_folder(tmp_path / "photos", count=3))
    records = [loader.record_at(place) for place in range(12)]
    assert all(sorted(records[i : i + 3]) == [0, 1, 2] for i in range(0, 12, 3))
    batches, _ = take(loader, 3)
    assert len({batch["image"].tobytes() for batch in batches}) == 3


def test_a_picture_is_cropped_otherwise_in_every_epoch(photos):
    loader = small_loader(photos)
    crops = {loader.load(5, place).image.tobytes() for place in range(20)}
    assert len(crops) == 20


def test_one_picture_is_enough(tmp_path):
    save(tmp_path, "one.png", picture(40, 40))
    batches, _ = take(small_loader(tmp_path), 2)
    assert batches[0]["image"].shape == (4, 16, 16, 3)


# What cannot be used.


def spoil(photos):
    """Bad files of every kind; returns what their sentences say."""
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
        "tiny.png": "40x12 pixels",
        "animated.gif": "2 pictures",
        "transparent.png": "transparent in parts",
        "print.jpg": "CMYK",
        "text.jpg": "not an image",
        "empty.png": "is empty",
        "cut.png": "damaged or incomplete",
        "huge.png": "million pixels",
    }


def test_what_cannot_be_used_is_replaced_and_named(photos, tmp_path, caplog):
    expected = spoil(photos)
    (photos / "notes.txt").write_text("x")
    loader, report = small_loader(photos), tmp_path / "rejected.json"
    batches, rejects = take(loader, 5, report=report)  # an epoch of twenty
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


def test_a_changed_folder_is_noticed_and_its_report_begun_anew(
    photos, tmp_path, caplog
):
    (photos / "01.png").write_bytes(b"x")
    report = tmp_path / "rejected.json"
    take(small_loader(photos), 3, report=report)
    save(photos, "01.png", picture(40, 40))
    rejects = Rejects(FileSource(photos), 0.5, report)
    assert rejects.reasons == {}
    assert f"{photos} has changed: it had 12 pictures of" in caplog.text
    report.write_text("[]")
    with pytest.raises(UserError, match="damaged or not ours: remove it"):
        Rejects(FileSource(photos), 0.5, report)


def test_too_many_of_them_end_the_run(photos, tmp_path):
    spoil(photos)
    report = tmp_path / "rejected.json"
    with pytest.raises(UserError) as caught:
        take(small_loader(photos), 5, limit=0.3, report=report)
    assert f"Of 20 pictures of {photos}, 7 cannot" in str(caught.value)
    assert "more than the 30.0% that may be" in str(caught.value)
    assert str(report) in str(caught.value)
    assert len(json.loads(report.read_text())["rejected"]) == 7


def test_nothing_that_can_be_used(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_text("x")
    report = tmp_path / "rejected.json"
    with pytest.raises(UserError, match=r"Of 3 pictures .* cannot be used"):
        take(small_loader(tmp_path), 1, report=report)
    assert json.loads(report.read_text())["rejected"]
    with pytest.raises(UserError, match=r"No picture of .* was found .* 101 tries"):
        take(small_loader(tmp_path), 1, limit=1.0)


def test_running_again_does_not_pass_the_limit(photos, tmp_path):
    spoil(photos)
    report = tmp_path / "rejected.json"
    for _ in range(3):
        with pytest.raises(UserError, match="cannot be used"):
            take(small_loader(photos), 5, limit=0.2, report=report)


def test_a_picture_that_vanishes_is_replaced(photos):
    loader = small_loader(photos)
    (photos / "01.png").unlink()
    _, rejects = take(loader, 3)
    assert set(rejects.reasons) == {"01.png"}
    assert "No such file" in rejects.reasons["01.png"]


def test_masks_that_do_not_fit_are_named(photos, tmp_path):
    masks = mask_folder(tmp_path / "masks", photos)
    save(masks, "01.bmp", np.full((5, 5), 255, np.uint8))
    save(masks, "02.bmp", np.zeros((42, 56), np.uint8))
    _, rejects = take(small_loader(photos, masks=masks), 3)
    assert "its mask 5x5" in rejects.reasons["01.png"]
    assert "the mask of 02.png marks no hole" in rejects.reasons["02.png"]


# From the configuration.


def test_the_configuration_is_what_is_loaded(photos, tmp_path):
    config = base_config()
    config.update({"resolution": 16, "batch_size": 4, "seed": 3})
    config.data.source = str(photos)
    config.data.masks = str(mask_folder(tmp_path / "masks", photos))
    config.data.mask_hole = "black"
    config.data.crop_scale = 0.5
    config.data.held_out = 0
    loader = loader_of(config, open_parts(config)[0], range(2, 4))
    source = FileSource(photos, tmp_path / "masks", "black")
    crop = Crop(16, "square", 0.5, smallest_side=8)
    expected = Loader(source, crop, seed=3, batch_size=4, rows=range(2, 4))
    for name, array in expected(0).items():
        assert np.array_equal(loader(0)[name], array)


def test_without_anything_there_are_scenes():
    config = base_config()
    config.update({"resolution": 32, "batch_size": 2})
    source, _ = open_parts(config)
    with batches_of(config, source, first_step=3) as batches:
        batch = next(batches)
    assert batch["image"].shape == (2, 32, 32, 3) and batch["image"].std() > 10
    assert np.array_equal(batch["image"], loader_of(config, source)(3)["image"])


def test_the_share_of_bad_pictures_is_configured(photos, tmp_path):
    (photos / "01.png").write_bytes(b"x")
    config = base_config()
    config.update({"resolution": 16, "batch_size": 4})
    config.data.update({"source": str(photos), "bad_share": 0.01, "held_out": 0})
    report = tmp_path / "rejected.json"
    with pytest.raises(UserError, match=r"Of 12 .* more than the 1.0% that may"):
        with batches_of(config, open_parts(config)[0], report=report) as batches:
            for _ in range(3):
                next(batches)
    config.data.bad_share = 0.1
    with batches_of(config, open_parts(config)[0], report=report) as batches:
        assert [next(batches)["image"].shape[0] for _ in range(3)] == [4, 4, 4]
    assert set(batches.rejects.reasons) == {"01.png"}


def test_a_crop_that_does_not_exist(photos):
    config = base_config()
    config.data.update({"source": str(photos), "crop": "oval"})
    with pytest.raises(UserError, match="crop is one of square, whole, native"):
        loader_of(config, open_parts(config)[0])
    config.data.update({"crop": "square", "crop_scale": 0.0})
    with pytest.raises(UserError, match="crop_scale is 0"):
        loader_of(config, open_parts(config)[0])


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
        ("data.bad_share", -1.0),
        ("data.bad_share", 5.0),
    ],
)
def test_settings_that_make_no_sense(name, value):
    config = base_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=f"^{name} is "):
        open_parts(config)


def test_batches_may_be_closed_twice(photos):
    with Batches(
        small_loader(photos), Rejects(FileSource(photos), 0.5, None)
    ) as batches:
        next(batches)
        batches.close()
