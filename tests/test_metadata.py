"""Metadata are kept, except for orientation and previews."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from test_photos import HEIGHT, RGB, WIDTH, change_square, tiff

from migan_jax.photos import read_mask, read_photo, write_photo

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION, MAKE = 0x0112, 0x010F


def full_exif(orientation):
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "A maker"
    details = exif.get_ifd(0x8769)
    details[0x9003], details[0x927C] = "2020:01:01 00:00:00", b"note" * 9
    details[0xA002], details[0xA003] = WIDTH, HEIGHT
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2] = "N", (10.0, 20.0, 30.0)
    return exif.tobytes()


PREVIEW = b"what was removed"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" '
    b'dc:rights="mine"><xmp:Thumbnails>' + PREVIEW + b"</xmp:Thumbnails>"
    b"</rdf:Description></x:xmpmeta>"
)
# From the upright image to how each orientation is stored.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize("extension", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_applied_and_reset(orientation, extension, tmp_path):
    source, target = tmp_path / f"a.{extension}", tmp_path / f"b.{extension}"
    lossless = {"lossless": True} if extension == "webp" else {}
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](RGB)))
    stored.save(source, exif=full_exif(orientation), **lossless)
    photo = read_photo(source)
    assert np.array_equal(photo.rgb, RGB)
    changed, rgb = change_square(photo)
    write_photo(changed, target)
    with Image.open(target) as image:
        assert image.getexif().get(ORIENTATION, 1) == 1
        assert np.array_equal(np.asarray(image.convert("RGB")), rgb)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_metadata_are_kept(orientation, extension, tmp_path):
    source, target = tmp_path / f"a.{extension}", tmp_path / f"b.{extension}"
    options = {"exif": full_exif(orientation), "icc_profile": PROFILE}
    if extension == "png":
        options["pnginfo"] = text = PngImagePlugin.PngInfo()
        text.add_text("Title", "a photo")
        text.add_itxt("Author", "Zoë", "en", "")
        text.add_itxt("XML:com.adobe.xmp", XMP.decode())
        text.add_text("Raw profile type exif", "old, with a preview")
    elif extension == "tif":
        exif = Image.Exif()
        exif.load(options["exif"])
        exif[700], exif[34377] = XMP, PREVIEW
        options["exif"] = exif
    else:
        options["xmp"] = XMP
    if extension == "jpg":
        options |= {"comment": b"a comment", "extra": iptc_segment()}
    if extension in ("jpg", "png", "tif"):
        options["dpi"] = (300, 300)
    Image.fromarray(RGB).save(source, **options)
    write_photo(change_square(read_photo(source))[0], target)
    with Image.open(target) as image:
        exif, info = image.getexif(), image.info
        assert exif[MAKE] == "A maker" and exif.get(ORIENTATION, 1) == 1
        details = exif.get_ifd(0x8769)
        assert details[0x9003] == "2020:01:01 00:00:00"
        assert details[0x927C] == b"note" * 9
        assert (details[0xA002], details[0xA003]) == image.size
        gps = exif.get_ifd(0x8825)
        assert gps[1] == "N" and [float(v) for v in gps[2]] == [10, 20, 30]
        assert info["icc_profile"] == PROFILE
        if extension != "webp":
            assert np.allclose(info["dpi"], 300, atol=0.1)
        if extension == "png":
            assert image.text["Title"] == "a photo" and image.text["Author"] == "Zoë"
            assert "Raw profile type exif" not in image.text
        xmp = info.get("xmp") or info["XML:com.adobe.xmp"].encode()
        assert b'dc:rights="mine"' in xmp and b'Orientation="6"' not in xmp
        if extension == "jpg":
            assert info["comment"] == b"a comment"
            assert info["photoshop"] == {0x0404: IPTC}
        assert PREVIEW not in target.read_bytes()


IPTC = b"\x1c\x02\x05\0\3abc"


def iptc_segment():
    """A Photoshop segment with IPTC and a preview (0x040C)."""
    content = b"Photoshop 3.0\0"
    for tag, resource in ((0x0404, IPTC), (0x040C, PREVIEW)):
        content += b"8BIM" + struct.pack(">HHI", tag, 0, len(resource)) + resource
        content += bytes(len(resource) % 2)
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def exif_with_preview():
    """EXIF as from cameras: rotated, UTF-8 text, a second directory."""
    artist = "Jürgen".encode() + b"\0"
    second_at = 8 + 2 + 2 * 12 + 4
    data_at = second_at + 2 + 2 * 12 + 4
    first = struct.pack("<H", 2)
    first += struct.pack("<HHIHH", ORIENTATION, 3, 1, 3, 0)
    first += struct.pack("<HHII", 0x013B, 2, len(artist), data_at)
    second = struct.pack("<H", 2)
    second += struct.pack("<HHII", 0x0201, 4, 1, data_at + len(artist))
    second += struct.pack("<HHII", 0x0202, 4, 1, len(PREVIEW))
    links = struct.pack("<I", second_at), bytes(4)
    header = b"II*\0" + struct.pack("<I", 8)
    return header + first + links[0] + second + links[1] + artist + PREVIEW


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_exif_is_kept_byte_for_byte_except_orientation_and_preview(extension, tmp_path):
    block = exif_with_preview()
    source, target = tmp_path / f"a.{extension}", tmp_path / f"b.{extension}"
    Image.fromarray(RGB).save(source, exif=b"Exif\0\0" + block)
    assert PREVIEW in source.read_bytes()
    photo = read_photo(source)
    assert np.abs(photo.rgb.astype(int) - RGB[::-1, ::-1]).mean() < 20
    write_photo(photo, target)
    content = target.read_bytes()
    assert PREVIEW not in content and "Jürgen".encode() in content
    with Image.open(target) as image:
        written = image.info["exif"].removeprefix(b"Exif\0\0")
    differing = {
        i for i, pair in enumerate(zip(block, written, strict=True)) if len({*pair}) > 1
    }
    orientation_at, link_at = 8 + 2 + 8, 8 + 2 + 2 * 12
    preview = range(len(block) - len(PREVIEW), len(block))
    assert differing <= {orientation_at, link_at, *preview}


def test_damaged_exif_is_dropped_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    photo = read_photo(path)
    assert photo.rgb.shape == RGB.shape and photo.metadata.exif == b""
    assert str(path) in caplog.text and "damaged" in caplog.text


def test_metadata_too_long_for_a_jpeg_are_dropped_with_a_warning(tmp_path, caplog):
    exif = Image.Exif()
    exif[MAKE] = "x" * 70_000
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / "b.jpg")
    assert "exif" in caplog.text and "JPEG" in caplog.text
    assert read_photo(tmp_path / "b.jpg").metadata.exif == b""


def test_colour_chunks_of_png_without_a_profile(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", struct.pack(">I", 100_000))
    chunks.add(b"cHRM", struct.pack(">8I", *range(1000, 9000, 1000)))
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=chunks)
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert b.info["gamma"] == a.info["gamma"] == 1
        assert b.info["chromaticity"] == a.info["chromaticity"]


def test_iptc_of_tiff_stored_as_numbers_is_dropped(tmp_path, caplog):
    """Pillow reads only its first four bytes."""
    (tmp_path / "a.tif").write_bytes(tiff("<", 1, np.zeros((4, 4), int), IPTC))
    write_photo(read_photo(tmp_path / "a.tif"), tmp_path / "b.tif")
    with Image.open(tmp_path / "b.tif") as image:
        assert 33723 not in image.tag_v2
    assert "IPTC" in caplog.text


def test_other_formats_get_the_metadata_they_can_store(tmp_path):
    exif = full_exif(1)
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif, xmp=XMP)
    photo = read_photo(tmp_path / "a.jpg")
    for name in ("b.png", "b.tiff", "b.webp", "b.bmp"):
        write_photo(photo, tmp_path / name)
        written = read_photo(tmp_path / name).metadata
        assert (b"A maker" in written.exif) == (name != "b.bmp")
        assert (b"mine" in written.xmp) == (name != "b.bmp")


def test_masks_are_rotated_upright(tmp_path):
    hole = np.zeros((9, 5), np.bool_)
    hole[1:3, 1:2] = True
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = np.ascontiguousarray(STORED[6](hole))
    Image.fromarray(np.uint8(255) * stored).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "x.png", "white").hole, hole)
