"""Photo files: pixels, transparency, compression, and refused files."""

import math
import struct
import sys
from io import BytesIO

import numpy as np
import pytest
from pictures import picture
from PIL import Image, JpegImagePlugin

from migan_jax import photos
from migan_jax.data.examples import Encoded, decode
from migan_jax.data.image_files import READABLE_SUFFIXES
from migan_jax.errors import UserError
from migan_jax.photos import is_intact, read_mask, read_photo, write_photo

HEIGHT, WIDTH = 24, 36
RGB = picture(HEIGHT, WIDTH)


def make_image(mode):
    image = Image.fromarray(RGB)
    if mode == "I;16":
        return Image.fromarray(RGB[..., 0].astype(np.uint16) * 257 + 5)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        alpha = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 256
        image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
        return image
    return image.convert(mode)


def change_square(photo):
    """Change the colours of a rectangle, as inpainting would."""
    rgb = np.array(photo.rgb)
    rgb[5:9, 7:12] = 255 - rgb[5:9, 7:12]
    return photo.with_rgb(rgb), rgb


def inside(array):
    return array[5:9, 7:12]


def outside(array):
    array = np.array(array)
    array[5:9, 7:12] = 0
    return array


# Pixels.

LOSSLESS = [
    *[(mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[(mode, "tif") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")],
    *[(mode, "bmp") for mode in ("1", "L", "P", "RGB")],
    *[(mode, "webp") for mode in ("RGB", "RGBA")],
]


@pytest.mark.parametrize(("mode", "extension"), LOSSLESS)
def test_known_pixels_keep_their_values_in_every_mode(mode, extension, tmp_path):
    source, target = tmp_path / f"a.{extension}", tmp_path / f"b.{extension}"
    lossless = {"lossless": True, "exact": True} if extension == "webp" else {}
    make_image(mode).save(source, **lossless)
    photo = read_photo(source)
    kept = {"1": "L", "P": "RGB"}.get(mode, mode)
    assert photo.mode == kept
    with Image.open(source) as image:
        native = np.asarray(image if kept == mode else image.convert(kept))
    assert np.array_equal(photo.pixels, native)
    assert photo.rgb.shape == (HEIGHT, WIDTH, 3) and photo.rgb.dtype == np.uint8
    changed, rgb = change_square(photo)
    write_photo(changed, target)
    written = read_photo(target)
    assert written.mode == kept
    assert np.array_equal(outside(written.pixels), outside(native))
    grey = kept in ("L", "LA", "I;16")
    expected = rgb if not grey else np.asarray(Image.fromarray(rgb).convert("L"))
    actual = written.rgb[..., 0] if grey else written.rgb
    assert np.array_equal(inside(actual), inside(expected))
    if kept in ("LA", "RGBA"):
        assert np.array_equal(written.pixels[..., -1], native[..., -1])


def test_sixteen_bits_are_scaled_by_257(tmp_path):
    values = np.array([[0, 128, 129, 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert read_photo(tmp_path / "x.png").rgb[0, :, 0].tolist() == [0, 0, 1, 1, 255]


@pytest.mark.parametrize(("order", "white"), [("<", 1), (">", 1), ("<", 0)])
def test_sixteen_bit_tiffs(order, white, tmp_path):
    """Both byte orders; white may be zero."""
    values = np.arange(1000, 1000 + 24 * 36 * 70, 70).reshape(24, 36)
    stored = values if white else 65535 - values
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(order, white, stored))
    photo = read_photo(path)
    assert photo.mode == "I;16" and np.array_equal(photo.pixels, values)
    write_photo(photo, tmp_path / "y.tif")
    assert np.array_equal(read_photo(tmp_path / "y.tif").pixels, values)
    hole = values > 30_000
    path.write_bytes(tiff(order, white, 65535 * (hole if white else ~hole)))
    assert np.array_equal(read_mask(path, "white").hole, hole)


def tiff(order, photometric, grey, iptc=b""):
    """A minimal file of one strip with 16 bits per pixel; IPTC as 32-bit numbers."""
    height, width = grey.shape
    data = grey.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: photometric}
    data_at = 8 + 2 + 10 * 12 + 4
    tags |= {273: data_at, 277: 1, 278: height, 279: len(data)}
    tags |= {33723: data_at + len(data)}
    start = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(
        struct.pack(
            f"{order}HHII", tag, 4, len(iptc) // 4 if tag == 33723 else 1, value
        )
        for tag, value in tags.items()
    )
    head = struct.pack(f"{order}IH", 8, len(tags))
    return start + head + entries + bytes(4) + data + iptc


def test_a_transparent_colour_becomes_an_alpha_channel(tmp_path):
    for mode, colour, kept in (("RGB", (1, 2, 3), "RGBA"), ("L", 7, "LA")):
        image = Image.new(mode, (4, 4), colour)
        image.putpixel((1, 1), 200 if mode == "L" else (200, 0, 0))
        image.save(tmp_path / "x.png", transparency=colour)
        photo = read_photo(tmp_path / "x.png")
        assert photo.mode == kept
        assert photo.pixels[1, 1, -1] == 255 and photo.pixels[0, 0, -1] == 0
        assert photo.without_alpha().mode == mode
        assert np.array_equal(photo.without_alpha().rgb, photo.rgb)


def test_palettes_with_transparency(tmp_path):
    image = make_image("RGB").quantize(16)
    image.save(tmp_path / "x.png", transparency=bytes([0, 99] + [255] * 14))
    photo = read_photo(tmp_path / "x.png")
    assert photo.mode == "RGBA"
    alpha = {0: 0, 1: 99}
    expected = np.vectorize(lambda v: alpha.get(v, 255))(np.asarray(image))
    assert np.array_equal(photo.pixels[..., 3], expected)


def test_sixteen_bit_colour_is_reduced_with_a_warning(tmp_path, caplog):
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    rows = b"\0" + struct.pack(">6H", 0x1234, 0, 0xFFFF, 0x8000, 1, 2)
    path = tmp_path / "x.png"
    path.write_bytes(png(header, rows))
    assert read_photo(path).pixels.tolist() == [[[0x12, 0, 0xFF], [0x80, 0, 0]]]
    assert str(path) in caplog.text and "16-bit" in caplog.text


def png(header, rows):
    import zlib

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# Compression.


@pytest.mark.parametrize("quality", [30, 75, 98])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_quality_is_kept(quality, subsampling, progressive, tmp_path):
    source, target = tmp_path / "a.jpg", tmp_path / "b.jpeg"
    options = {"subsampling": subsampling, "progressive": progressive}
    Image.fromarray(RGB).save(source, quality=quality, **options)
    photo = read_photo(source)
    write_photo(photo, target)
    with Image.open(source) as before, Image.open(target) as after:
        assert after.quantization == before.quantization
        sampling = JpegImagePlugin.get_sampling
        assert sampling(after) == sampling(before)
        assert ("progressive" in after.info) == progressive
    # Recompressing with the same settings loses almost nothing.
    again = read_photo(target).rgb.astype(int)
    assert np.abs(again - photo.rgb).mean() < 1.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs(mode, tmp_path):
    source, target = tmp_path / "a.jpg", tmp_path / "b.jpg"
    make_image(mode).save(source, quality=90)
    photo = read_photo(source)
    changed, _ = change_square(photo)
    write_photo(changed, target)
    written = read_photo(target)
    assert written.mode == mode
    difference = np.abs(written.pixels.astype(int) - changed.pixels)
    assert difference.mean() < 3
    with Image.open(source) as before, Image.open(target) as after:
        assert after.quantization == before.quantization


def test_jpegs_stored_as_rgb(tmp_path):
    source, target = tmp_path / "a.jpg", tmp_path / "b.jpg"
    Image.fromarray(RGB).save(source, keep_rgb=True, quality=90)
    photo = read_photo(source)
    write_photo(photo, target)
    assert np.abs(read_photo(target).rgb.astype(int) - photo.rgb).mean() < 0.5


def test_mpo_files_are_written_as_jpegs(tmp_path):
    image = Image.fromarray(RGB)
    image.save(tmp_path / "a.mpo", save_all=True, append_images=[image], quality=60)
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.format == "JPEG"
    write_photo(photo, tmp_path / "b.jpg")
    with Image.open(tmp_path / "a.jpg") as old, Image.open(tmp_path / "b.jpg") as new:
        assert (old.format, new.format) == ("MPO", "JPEG")
        assert new.quantization == old.quantization


def test_other_formats_become_jpegs_of_high_quality(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    write_photo(read_photo(tmp_path / "a.png"), tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as image:
        assert max(image.quantization[0]) <= 12
        assert JpegImagePlugin.get_sampling(image) == 0
    assert np.abs(read_photo(tmp_path / "b.jpg").rgb.astype(int) - RGB).mean() < 4


def test_tiff_and_webp_compression_are_kept(tmp_path):
    for compression in ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate"):
        Image.fromarray(RGB).save(tmp_path / "a.tif", compression=compression)
        write_photo(read_photo(tmp_path / "a.tif"), tmp_path / "b.tif")
        with Image.open(tmp_path / "b.tif") as image:
            assert image.info["compression"] == compression
    for lossless in (False, True):
        Image.fromarray(RGB).save(tmp_path / "a.webp", lossless=lossless, quality=80)
        write_photo(read_photo(tmp_path / "a.webp"), tmp_path / "b.webp")
        assert (b"VP8L" in (tmp_path / "b.webp").read_bytes()) == lossless


def test_jpegs_become_lossless_in_other_formats(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", quality=40)
    photo = read_photo(tmp_path / "a.jpg")
    for name in ("b.png", "b.tiff", "b.webp", "b.bmp", "B.PNG"):
        write_photo(photo, tmp_path / name)
        assert np.array_equal(read_photo(tmp_path / name).rgb, photo.rgb)


# Damaged files.


def save_rotated(path):
    image = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=60)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "bmp"])
def test_truncated_files_are_not_intact(extension, tmp_path):
    save_rotated(tmp_path / "a.jpg")
    path = tmp_path / f"b.{extension}"
    write_photo(read_photo(tmp_path / "a.jpg"), path)
    content, pixels = path.read_bytes(), read_photo(path).pixels
    assert is_intact(path)
    size = len(content)
    for length in (*range(0, size, 9), *range(size - 20, size)):
        path.write_bytes(content[:length])
        assert not is_intact(path) or np.array_equal(read_photo(path).pixels, pixels)
    if extension in ("jpg", "png", "tif"):
        for length in range(0, size - 40, 9):
            path.write_bytes(content[:length] + bytes(size - length))
            assert not is_intact(path), length
    path.write_bytes(content + b"appended by a phone")
    assert is_intact(path)


def test_folders_texts_and_missing_files_are_not_intact(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("hello")
    for name in ("folder.png", "text.png", "nothing.png"):
        assert not is_intact(tmp_path / name)


# Memory.


def test_free_memory():
    free = photos.free_memory()
    if sys.platform != "linux":
        assert free == math.inf
        return
    assert 0 < free < 1e15
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, limits[1]))
    try:
        assert photos.free_memory() == pytest.approx(50e6, abs=20e6)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_memory_errors_are_not_reported_as_damage(tmp_path, monkeypatch):
    """While decoding, rotating or writing a photo, or decoding a training image."""
    path = tmp_path / "x.jpg"
    save_rotated(path)
    photo, content = read_photo(path), path.read_bytes()

    def fail(*arguments, **options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(photos.ImageOps, "exif_transpose", fail)
        with pytest.raises(UserError, match=r"36x24 .* 15\.6 kB"):
            read_photo(path)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", fail)
        with pytest.raises(MemoryError):
            write_photo(photo, path)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", fail)
    with pytest.raises(UserError, match=r"36x24 .* 15\.6 kB"):
        read_photo(path)
    with pytest.raises(UserError, match=r"36x24 .* 10\.4 kB"):
        read_mask(path, "white")
    with pytest.raises(UserError, match=r"x\.jpg .*memory") as caught:
        decode(Encoded(content), "x.jpg", "white")
    assert "damaged" not in str(caught.value)


def test_other_errors_are_passed_on():
    with (
        pytest.raises(RuntimeError, match="a bug"),
        photos.report_memory_errors("x.png", (9, 9)),
    ):
        raise RuntimeError("a bug")


# Refused files.


def test_decompression_bombs_are_refused(tmp_path):
    side = 1 << 16
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(png(header, b"\0" * (side + 1)))
    for read in (read_photo, lambda path: read_mask(path, "white")):
        with pytest.raises(UserError, match=r"bomb\.png .*179"):
            read(path)


def save_animation(path):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tif"])
def test_files_with_several_images_are_refused(extension, tmp_path):
    save_animation(tmp_path / f"x.{extension}")
    with pytest.raises(UserError, match=rf"x\.{extension} .*\b2\b"):
        read_photo(tmp_path / f"x.{extension}")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    Image.fromarray(RGB).save(tmp_path / "x.eps")  # would run Ghostscript
    (tmp_path / "folder.png").mkdir()
    content = BytesIO()
    Image.fromarray(RGB).save(content, "PNG")
    (tmp_path / "half.png").write_bytes(content.getvalue()[:-300])
    for name, match in (
        ("text.jpg", "JPEG2000"),
        ("empty.png", "JPEG2000"),
        ("x.eps", "JPEG2000"),
        ("folder.png", "not a file"),
        ("absent.png", "No such file"),
        ("half.png", "damaged"),
    ):
        with pytest.raises(UserError, match=match) as caught:
            read_photo(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        with pytest.raises(UserError, match=match):
            read_mask(tmp_path / name, "white")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_modes_of_unknown_range_are_refused(kind, tmp_path):
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif .*mode [IF]"):
        read_photo(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("mode", "name", "match"),
    [
        ("RGBA", "x.jpg", "JPEG .*transparency"),
        ("LA", "x.jpeg", "JPEG .*transparency"),
        ("I;16", "x.jpg", "JPEG .*16 bits"),
        ("CMYK", "x.png", r"PNG .*CMYK.*\.tif"),
        ("RGBA", "x.bmp", "BMP .*transparency"),
        ("RGB", "x.gif", r"x\.gif .*\.bmp \.jpeg"),
        ("RGB", "x", r"x .*\.bmp \.jpeg"),
    ],
)
def test_formats_that_cannot_store_a_photo(mode, name, match, tmp_path):
    make_image(mode).save(tmp_path / "a.tif")
    photo = read_photo(tmp_path / "a.tif")
    with pytest.raises(UserError, match=match):
        write_photo(photo, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(b"before")
    Image.fromarray(RGB).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")

    def write_partly(self, content):
        with open(self, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", write_partly)
    with pytest.raises(UserError, match="No space left"):
        write_photo(photo, path)
    assert path.read_bytes() == b"before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "x.png"]


def test_every_writable_format_can_be_read_and_has_defaults():
    assert set(photos.WRITABLE) <= set(READABLE_SUFFIXES)
    assert (
        {*photos.WRITABLE.values()}
        == {*photos.DEFAULT_COMPRESSION}
        == {*photos.UNSUPPORTED_MODES}
    )
