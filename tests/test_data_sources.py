"""Sources: the same images from folders, zips and shards; invalid sources."""

import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
from photo_folders import SETTINGS, make_zip, mask_folder, open_error, open_small, save
from pictures import picture
from PIL import Image

from migan_jax.data.rejects import Rejects
from migan_jax.data.shards import ShardOptions, ShardWriter
from migan_jax.data.sources import FileSource, open_source
from migan_jax.errors import UserError


def write_shards(source, output, **options):
    ShardWriter(source, output, ShardOptions(None, 1, **options)).run(
        Rejects(source, 0.5, output / "rejected.json"), 2, lambda count: None
    )
    return output


def assert_same_images(one, other):
    assert len(one) == len(other) > 1
    for index in range(len(one)):
        assert np.array_equal(one[index].image, other[index].image)
        assert np.array_equal(one[index].hole, other[index].hole)


def test_folder_is_sorted_by_name(photos):
    source = open_small(photos)
    names = [source.name(index) for index in range(len(source))]
    assert names == sorted(names) and len(names) == 12 and "sub/00.png" in names
    for index, name in enumerate(names):
        with Image.open(photos / name) as image:
            assert np.array_equal(source[index].image, np.asarray(image))
    assert source[0].image.dtype == np.uint8 and source[0].hole is None
    with pytest.raises(IndexError):
        source[12]


def test_folder_zip_and_array_record_are_equal(photos, masks, tmp_path):
    folder = open_small(photos, masks=str(masks))
    archive = make_zip(photos, tmp_path / "photos.zip")
    archived_masks = make_zip(masks, tmp_path / "masks.zip")
    from_zip = open_small(archive, masks=str(archived_masks))
    assert_same_images(folder, from_zip)
    shards = write_shards(folder, tmp_path / "prepared", shard_bytes=20_000)
    assert len(list(shards.glob("images-*"))) > 2
    from_shards = open_small(shards)
    assert_same_images(folder, from_shards)
    for source in (folder, from_zip, from_shards):
        copy = pickle.loads(pickle.dumps(source))
        assert all(copy.name(i) == folder.name(i) for i in range(12))
        assert_same_images(folder, copy)


def test_masks_of_either_polarity(photos, masks):
    white = FileSource(photos, masks, "white")[3]
    black = FileSource(photos, masks, "black")[3]
    height, width = white.image.shape[:2]
    expected = np.zeros((height, width), bool)
    expected[height // 4 : 3 * height // 4, : width // 2] = True
    assert np.array_equal(white.hole, expected)
    assert np.array_equal(black.hole, ~expected)


def test_warning_of_inverted_masks(photos, masks, caplog):
    FileSource(photos, masks, "white")
    assert not caplog.text
    FileSource(photos, masks, "black")
    assert "mask_hole=white" in caplog.text


def test_masks_inside_the_images_folder_are_not_images(photos):
    masks = mask_folder(photos / "masks", photos)
    assert len(FileSource(photos, masks)) == 12


def test_all_formats_and_modes_become_rgb(tmp_path):
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
    exif[0x0112] = 6  # to rotate by 90 degrees
    Image.fromarray(np.rot90(rgb)).save(tmp_path / "i.png", exif=exif)
    source = open_small(tmp_path)
    assert len(source) == 9
    for index, expected in enumerate([rgb] * 4 + [grey] * 2 + [rgb, grey, rgb]):
        image = source[index].image
        assert image.shape == (24, 36, 3)
        if source.name(index) == "a.jpg":
            assert np.abs(image.astype(int) - expected).max() < 8
        else:
            assert np.array_equal(image, expected), source.name(index)


def test_heic(tmp_path, monkeypatch):
    """HEIC files work in folders and shards, if the extra is installed."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    (tmp_path / "in").mkdir()
    for seed in range(2):
        image = Image.fromarray(picture(40, 56, seed=seed))
        image.save(tmp_path / "in" / f"{seed}.HEIC", format="HEIF", quality=-1)
    source = FileSource(tmp_path / "in")
    assert_same_images(source, open_small(write_shards(source, tmp_path / "out")))
    difference = np.abs(source[1].image.astype(int) - picture(40, 56, seed=1))
    assert difference.mean() < 3
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match=r"0\.HEIC.*pillow-heif"):
        source[0]


def test_non_images_are_listed_and_hidden_files_skipped(photos):
    (photos / "notes.txt").write_text("x")
    (photos / ".hidden.png").write_text("x")
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.png").write_text("x")
    (photos / "gone.png").symlink_to(photos / "nowhere")
    source = open_small(photos)
    assert len(source) == 12
    assert source.non_images == ("gone.png/", "notes.txt")


def test_loop_of_links(photos):
    (photos / "sub" / "loop").symlink_to(photos)
    assert len(open_small(photos)) == 12


# Invalid sources.


def test_paths_without_images(tmp_path):
    open_error(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "jpg" in open_error(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("x")
    assert "zip" in open_error(tmp_path / "notes.txt")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    assert "jpg" in open_error(tmp_path / "empty.zip")


@pytest.mark.parametrize(
    "name", ["../x.png", "/etc/x.png", "a/../../x.png", "..\\x.png"]
)
def test_zip_with_a_path_outside_itself(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    assert f"({name})" in open_error(tmp_path / "a.zip")


def test_unsupported_or_damaged_entries_of_zips(photos, tmp_path):
    """Only these images are rejected."""
    path = tmp_path / "a.zip"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.write(photos / "01.png", "01.png")
        with pytest.raises(UserError, match=r"01\.png .*deflated"):
            open_small(path)[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(photos / "01.png", "01.png")
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"01\.png .*unpacked"):
        open_small(path)[0]


def test_odd_files_in_a_folder(photos):
    """A loop of links, a name with a line break, an empty file, a deep folder."""
    (photos / "loop.png").symlink_to(photos / "loop.png")
    (photos / "two\nlines.png").write_bytes(b"")
    deep = photos
    for _ in range(300):
        deep = deep / "a"
    deep.mkdir(parents=True)
    source = open_small(photos)
    assert len(source) == 13 and source.non_images == ("loop.png/",)
    with pytest.raises(UserError, match=r"^two\\nlines\.png .*empty"):
        source[[source.name(i) for i in range(13)].index("two\nlines.png")]


def test_images_and_masks_need_separate_folders(photos):
    assert "masks" in open_error(photos, masks=str(photos))
    with pytest.raises(UserError, match="mask_hole is 'red'"):
        FileSource(photos, mask_hole="red")


def test_folder_with_an_unrelated_index(photos):
    (photos / "index.json").write_text("{}")
    save(photos, "my.array_record.png", picture(20, 20))
    assert len(open_small(photos)) == 13


@pytest.mark.parametrize("source", ["", "a" * 300, "nope.array_record"])
def test_invalid_names(source):
    with pytest.raises(UserError):
        open_small(source)


def test_images_without_masks_and_masks_without_images(photos, masks):
    for path in ("01.bmp", "sub/03.bmp"):
        (masks / path).rename(masks / f"{path}.jpg")  # whose name is now 01.bmp
    message = open_error(photos, masks=str(masks))
    assert f"2 images in {photos}" in message and "01.png" in message
    for path in ("01.bmp", "sub/03.bmp"):
        (masks / f"{path}.jpg").rename(masks / path)
    (photos / "02.png").unlink()
    message = open_error(photos, masks=str(masks))
    assert f"1 masks in {masks}" in message and "02.bmp" in message
    save(masks, "01.jpg", picture(8, 8))
    with pytest.raises(UserError, match=r"01\.bmp and 01\.jpg"):
        FileSource(photos, masks)


def test_masks_need_files(masks):
    with pytest.raises(UserError, match=r"data\.masks"):
        open_source("scenes", **(SETTINGS | {"masks": str(masks)}))


def test_folders_without_permission(photos, monkeypatch):
    """Subfolders are listed as non-images. (Simulated, since root may read all.)"""
    scandir, closed = os.scandir, [str(photos / "sub")]

    def forbid(path):
        if str(path) in closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbid)
    source = open_small(photos)
    assert len(source) == 8 and source.non_images == ("sub/",)
    closed.append(str(photos))
    assert "Permission denied" in open_error(photos)


def test_damaged_shards(photos, tmp_path):
    shards = write_shards(FileSource(photos), tmp_path / "prepared")
    path = next(shards.glob("images-*"))
    path.write_bytes(path.read_bytes()[:1000])
    assert "ArrayRecord" in open_error(shards)
    path.unlink()
    assert "ArrayRecord" in open_error(shards)
    (shards / "index.json").write_text("{}")
    assert "index.json" in open_error(shards)


def test_records_without_an_index(photos, tmp_path):
    shards = write_shards(FileSource(photos), tmp_path / "prepared")
    path = next(shards.glob("images-*")).rename(tmp_path / "mine.array_record")
    source = open_small(path)
    assert np.array_equal(source[2].image, FileSource(photos)[2].image)
    assert source.name(2) == f"{path}[2]"


def test_scenes():
    source = open_source("scenes:leaves", **SETTINGS)
    assert source[5].image.shape == (16, 16, 3) and len(source) == 1_000_000
    assert np.array_equal(source[5].image, source[5].image)
    other = open_source("scenes:leaves", **(SETTINGS | {"seed": 1}))
    assert not np.array_equal(source[5].image, other[5].image)
    assert source.fingerprint.digest != other.fingerprint.digest
    with pytest.raises(UserError, match=r"scenes:moon.*scenes:leaves"):
        open_source("scenes:moon", **SETTINGS)
