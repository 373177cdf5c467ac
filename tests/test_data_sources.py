"""Sources: the same pictures from folder, zip, shards and TFDS; what is refused."""

import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
from photo_folders import (
    SETTINGS,
    mask_folder,
    opened,
    refused,
    save,
    zipped,
)
from pictures import picture
from PIL import Image

from migan_jax.data.preparing import Options, Preparation
from migan_jax.data.rejects import Rejects
from migan_jax.data.sources import FileSource, open_source
from migan_jax.errors import UserError


def prepared(source, output, **options):
    Preparation(source, output, Options(None, 1, **options)).run(
        Rejects(source, 0.5, output / "rejected.json"), 2, lambda count: None
    )
    return output


def same_pictures(one, other):
    assert len(one) == len(other) > 1
    for index in range(len(one)):
        assert np.array_equal(one[index].image, other[index].image)
        assert np.array_equal(one[index].hole, other[index].hole)


def test_a_folder_is_read_in_the_order_of_its_names(photos):
    source = opened(photos)
    names = [source.name(index) for index in range(len(source))]
    assert names == sorted(names) and len(names) == 12 and "sub/00.png" in names
    for index, name in enumerate(names):
        with Image.open(photos / name) as image:
            assert np.array_equal(source[index].image, np.asarray(image))
    assert source[0].image.dtype == np.uint8 and source[0].hole is None
    with pytest.raises(IndexError):
        source[12]


def test_folder_zip_and_array_record_hold_the_same(photos, masks, tmp_path):
    folder = opened(photos, masks=str(masks))
    archive, archived_masks = (
        zipped(photos, tmp_path / "photos.zip"),
        zipped(masks, tmp_path / "masks.zip"),
    )
    from_zip = opened(archive, masks=str(archived_masks))
    same_pictures(folder, from_zip)
    shards = prepared(folder, tmp_path / "prepared", shard_bytes=20_000)
    assert len(list(shards.glob("images-*"))) > 2
    from_shards = opened(shards)
    same_pictures(folder, from_shards)
    for source in (folder, from_zip, from_shards):
        travelled = pickle.loads(pickle.dumps(source))
        assert [travelled.name(i) for i in range(12)] == [
            folder.name(i) for i in range(12)
        ]
        same_pictures(folder, travelled)


def test_masks_are_holes_in_either_colour(photos, masks):
    white = FileSource(photos, masks, "white")[3]
    black = FileSource(photos, masks, "black")[3]
    height, width = white.image.shape[:2]
    expected = np.zeros((height, width), bool)
    expected[height // 4 : 3 * height // 4, : width // 2] = True
    assert np.array_equal(white.hole, expected)
    assert np.array_equal(black.hole, ~expected)


def test_inverted_masks_are_doubted(photos, masks, caplog):
    FileSource(photos, masks, "white")
    assert not caplog.text
    FileSource(photos, masks, "black")
    assert "wrong way round, then mask_hole is white" in caplog.text


def test_masks_inside_the_folder_of_pictures_are_no_pictures(photos):
    masks = mask_folder(photos / "masks", photos)
    assert len(FileSource(photos, masks)) == 12


def test_any_format_and_kind_of_pixel_becomes_rgb(tmp_path):
    rgb = picture(24, 36)
    grey = np.repeat(rgb[..., :1], 3, axis=-1)
    save(tmp_path, "a.jpg", rgb, quality=100, subsampling=0)
    save(tmp_path, "b.webp", rgb, lossless=True)
    save(tmp_path, "c.tif", rgb)
    save(tmp_path, "d.BMP", rgb)
    save(tmp_path, "e.png", rgb[..., 0])
    save(tmp_path, "f.png", rgb[..., 0].astype(np.uint16) * 257)
    opaque = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    save(tmp_path, "g.png", opaque)
    save(tmp_path, "h.gif", rgb[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it right
    Image.fromarray(np.rot90(rgb)).save(tmp_path / "i.png", exif=exif)
    source = opened(tmp_path)
    assert len(source) == 9
    for index, expected in enumerate([rgb] * 4 + [grey] * 2 + [rgb, grey, rgb]):
        image = source[index].image
        assert image.shape == (24, 36, 3)
        if source.name(index) == "a.jpg":
            assert np.abs(image.astype(int) - expected).max() < 8
        else:
            assert np.array_equal(image, expected), source.name(index)


def test_heic_is_a_picture_like_any_other(tmp_path, monkeypatch):
    """In a folder, and in shards made of it; with the extra, or else refused."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    (tmp_path / "in").mkdir()
    for seed in range(2):
        image = Image.fromarray(picture(40, 56, seed=seed))
        image.save(tmp_path / "in" / f"{seed}.HEIC", format="HEIF", quality=-1)
    source = FileSource(tmp_path / "in")
    same_pictures(source, opened(prepared(source, tmp_path / "out")))
    apart = np.abs(source[1].image.astype(int) - picture(40, 56, seed=1))
    assert apart.mean() < 3
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match=r"0\.HEIC needs pillow-heif"):
        source[0]


def test_files_that_are_no_images_are_named_and_hidden_ones_are_not(photos):
    (photos / "notes.txt").write_text("x")
    (photos / ".hidden.png").write_text("x")
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.png").write_text("x")
    (photos / "gone.png").symlink_to(photos / "nowhere")
    source = opened(photos)
    assert len(source) == 12
    assert source.others == ("gone.png/", "notes.txt")


def test_a_loop_of_links_ends(photos):
    (photos / "sub" / "loop").symlink_to(photos)
    assert len(opened(photos)) == 12


# What is refused.


def test_places_without_pictures(tmp_path):
    assert "no folder or zip" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("x")
    assert "cannot be read as a zip" in refused(tmp_path / "notes.txt")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    assert "holds no images" in refused(tmp_path / "empty.zip")


@pytest.mark.parametrize(
    "name", ["../x.png", "/etc/x.png", "a/../../x.png", "..\\x.png"]
)
def test_a_zip_with_a_path_outside_itself(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    assert f"an entry outside itself ({name})" in refused(tmp_path / "a.zip")


def test_zips_that_unpack_without_bound_or_are_damaged(photos, tmp_path):
    """Their pictures are rejected; the zip is not."""
    path = tmp_path / "a.zip"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.write(photos / "01.png", "01.png")
        with pytest.raises(UserError, match="neither stored nor deflated"):
            opened(path)[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(photos / "01.png", "01.png")
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"01.png cannot be unpacked"):
        opened(path)[0]


def test_odd_things_in_a_folder(photos):
    """A loop of links, a name that breaks lines, an empty file, a deep folder."""
    (photos / "loop.png").symlink_to(photos / "loop.png")
    (photos / "two\nlines.png").write_bytes(b"")
    deep = photos
    for _ in range(300):
        deep = deep / "a"
    deep.mkdir(parents=True)
    source = opened(photos)
    assert len(source) == 13 and source.others == ("loop.png/",)
    with pytest.raises(UserError, match=r"^two\\nlines.png is empty.$"):
        source[[source.name(i) for i in range(13)].index("two\nlines.png")]


def test_one_folder_for_pictures_and_masks(photos):
    assert "folder of their own" in refused(photos, masks=str(photos))
    with pytest.raises(UserError, match="mask_hole is 'white' or 'black', not 'red'"):
        FileSource(photos, mask_hole="red")


def test_a_folder_with_an_index_of_its_own_is_a_folder(photos):
    (photos / "index.json").write_text("{}")
    save(photos, "my.array_record.png", picture(20, 20))
    assert len(opened(photos)) == 13


@pytest.mark.parametrize("source", ["", "a" * 300, "nope.array_record"])
def test_names_that_are_none(source):
    with pytest.raises(UserError):
        opened(source)


def test_pictures_without_masks_and_masks_without_pictures(photos, masks):
    for path in ("01.bmp", "sub/03.bmp"):
        (masks / path).rename(masks / f"{path}.jpg")  # another name, as 01.bmp
    sentence = refused(photos, masks=str(masks))
    assert "pictures without a mask" in sentence and "(2, such as 01.png)" in sentence
    for path in ("01.bmp", "sub/03.bmp"):
        (masks / f"{path}.jpg").rename(masks / path)
    (photos / "02.png").unlink()
    sentence = refused(photos, masks=str(masks))
    assert "masks without a picture" in sentence and "(1, such as 02.bmp)" in sentence
    assert str(masks) in sentence
    save(masks, "01.jpg", picture(8, 8))
    with pytest.raises(UserError, match=r"01.bmp and 01.jpg: which"):
        FileSource(photos, masks)


def test_masks_belong_to_files_only(masks):
    with pytest.raises(UserError, match="Own masks go with a folder or zip"):
        open_source("scenes", **(SETTINGS | {"masks": str(masks)}))


def test_folders_that_may_not_be_read(photos, monkeypatch):
    """One inside is named among what is no image. (Played: root may read all.)"""
    scandir, closed = os.scandir, [str(photos / "sub")]

    def forbid(path):
        if str(path) in closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbid)
    source = opened(photos)
    assert len(source) == 8 and source.others == ("sub/",)
    closed.append(str(photos))
    assert "Permission denied" in refused(photos)


def test_damaged_shards(photos, tmp_path):
    shards = prepared(FileSource(photos), tmp_path / "prepared")
    path = next(shards.glob("images-*"))
    path.write_bytes(path.read_bytes()[:1000])
    assert "cannot be read as ArrayRecord" in refused(shards)
    path.unlink()
    assert "cannot be read as ArrayRecord" in refused(shards)
    (shards / "index.json").write_text("{}")
    assert "prepare" in refused(shards)


def test_records_without_an_index(photos, tmp_path):
    shards = prepared(FileSource(photos), tmp_path / "prepared")
    path = next(shards.glob("images-*")).rename(tmp_path / "mine.array_record")
    source = opened(path)
    assert np.array_equal(source[2].image, FileSource(photos)[2].image)
    assert source.name(2) == f"{path}[2]"


def test_scenes():
    source = open_source("scenes:leaves", **SETTINGS)
    assert source[5].image.shape == (16, 16, 3) and len(source) == 1_000_000
    assert np.array_equal(source[5].image, source[5].image)
    other = open_source("scenes:leaves", **(SETTINGS | {"seed": 1}))
    assert not np.array_equal(source[5].image, other[5].image)
    assert source.fingerprint.digest != other.fingerprint.digest
    with pytest.raises(UserError, match="There is no scenes:moon, but scenes, "):
        open_source("scenes:moon", **SETTINGS)
