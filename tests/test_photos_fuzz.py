"""Damaged files give a photo or a one-line error, and no partly written file.

Bytes are flipped, deleted, repeated, and overwritten with values that break parsers.
"""

from io import BytesIO

import numpy as np
import pytest
from test_metadata import PROFILE, XMP, full_exif, iptc_segment
from test_photos import make_image

from migan_jax.data.masks import hole_of
from migan_jax.errors import UserError
from migan_jax.photos import (
    WRITABLE,
    check_writable,
    read_mask,
    read_photo,
    write_photo,
)

NASTY = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\1")


def files():
    meta = {"exif": full_exif(6), "icc_profile": PROFILE}
    yield (
        "jpg",
        make_image("RGB"),
        {**meta, "xmp": XMP, "extra": iptc_segment(), "comment": b"hi"},
    )
    yield "jpg", make_image("CMYK"), {"progressive": True}
    yield "png", make_image("RGB"), meta
    yield "png", make_image("P"), {"transparency": 3}
    yield "png", make_image("I;16"), {}
    yield "webp", make_image("RGBA"), {**meta, "xmp": XMP}
    yield "tif", make_image("RGB"), meta
    yield "tif", make_image("L"), {"compression": "tiff_lzw", "icc_profile": PROFILE}
    yield "bmp", make_image("RGB"), {}
    yield "gif", make_image("P"), {}


FILES = {
    f"{i} {image.mode} {extension}": (extension, image, options)
    for i, (extension, image, options) in enumerate(files())
}


def mutate(content, rng):
    content = bytearray(content)
    # Mostly headers and metadata.
    reach = len(content) if rng.random() < 0.3 else min(len(content), 600)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(reach))
        match rng.integers(5):
            case 0:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                nasty = NASTY[rng.integers(len(NASTY))]
                content[at : at + len(nasty)] = nasty
            case 2:
                del content[at : at + int(rng.integers(1, 40))]
            case 3:
                content[at:at] = content[at : at + int(rng.integers(1, 40))]
            case 4:
                del content[int(rng.integers(len(content))) :]
        reach = max(1, min(reach, len(content)))
        if not content:
            break
    return bytes(content)


@pytest.mark.parametrize("count", [300, pytest.param(1000, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_give_a_photo_or_an_error(name, count, tmp_path):
    extension, image, options = FILES[name]
    buffer = BytesIO()
    image.save(
        buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(extension, extension), **options
    )
    rng = np.random.default_rng(len(name))
    source = tmp_path / f"source.{extension}"
    target = tmp_path / f"target.{extension if extension != 'gif' else 'png'}"
    assert target.suffix in WRITABLE
    outcomes = {"photo": 0, "error": 0}
    for _ in range(count):
        source.write_bytes(mutate(buffer.getvalue(), rng))
        target.unlink(missing_ok=True)
        try:
            photo = read_photo(source)
            check_writable(photo, target)
            rgb = photo.rgb
            write_photo(photo.with_rgb(255 - rgb), target)
            assert read_photo(target).rgb.shape == rgb.shape
            outcomes["photo"] += 1
        except UserError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
            outcomes["error"] += 1
            assert not target.exists()
        try:
            hole = read_mask(source, "white").hole
            assert hole.dtype == np.bool_ and hole.ndim == 2
        except UserError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
    assert {file.name for file in tmp_path.iterdir()} <= {source.name, target.name}
    assert all(outcomes.values()), outcomes


def test_arrays_of_all_types_give_a_hole_or_an_error():
    rng = np.random.default_rng(0)
    kinds = "?bBhHiIqQefdFSO"
    for _ in range(2000):
        shape = rng.integers(0, 4, rng.integers(0, 5))
        mask = np.frombuffer(rng.bytes(2048), np.uint8)[: int(np.prod(shape))]
        kind = kinds[rng.integers(len(kinds))]
        mask = mask.reshape(shape).astype(kind if kind != "?" else bool)
        try:
            assert hole_of(mask).dtype == np.bool_
        except UserError as error:
            assert "\n" not in str(error)
