"""Crops: their regions, resizing, orientation and masks."""

from io import BytesIO

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from migan_jax.data.examples import (
    CropSettings,
    Encoded,
    decode,
    decode_crop,
    resize_hole,
)
from migan_jax.errors import UserError

RGB = picture(120, 180)
SQUARE = (30, 0, 150, 120)  # the largest central one


def encode(array, kind="PNG", **options):
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def make_crop(image, crop, rng=None, mask=None):
    return decode_crop(Encoded(image, mask), "x", "white", crop, rng)


@pytest.mark.parametrize(
    "kind, box",
    [("square", SQUARE), ("whole", (0, 0, 180, 120)), ("native", (74, 44, 106, 76))],
)
def test_central_crop_is_pillows_bicubic(kind, box):
    expected = Image.fromarray(RGB).resize((32, 32), Image.Resampling.BICUBIC, box)
    found = make_crop(encode(RGB), CropSettings(32, kind))
    assert np.array_equal(found.image, np.asarray(expected)) and found.hole is None


def test_drawn_image_is_cropped_like_a_file():
    drawn = make_crop(RGB, CropSettings(32)).image
    assert np.array_equal(drawn, make_crop(encode(RGB), CropSettings(32)).image)
    assert np.array_equal(
        make_crop(RGB[:32, :32], CropSettings(32)).image, RGB[:32, :32]
    )


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (20, 20)])
def test_small_image_is_enlarged(shape):
    for kind in ("square", "whole", "native"):
        rng = np.random.default_rng(0)
        found = make_crop(encode(picture(*shape)), CropSettings(32, kind), rng)
        assert found.image.shape == (32, 32, 3)


def draw_regions(crop, count=2000):
    rng = np.random.default_rng(0)
    return np.array([crop.region(180, 120, rng) for _ in range(count)])


def test_random_squares_have_all_positions_and_scales():
    left, top, width, height = draw_regions(CropSettings(32, min_scale=0.5)).T
    assert (width == height).all() and width.min() == 60 and width.max() == 120
    assert np.mean(width) == pytest.approx(90, abs=1.5)
    assert left.min() == 0 and (left + width).max() == 180
    assert top.min() == 0 and (top + height).max() == 120
    position = left / np.maximum(180 - width, 1)
    assert np.mean(position) == pytest.approx(0.5, abs=0.02)


def test_native_crops_keep_their_size():
    left, top, width, height = draw_regions(CropSettings(32, "native")).T
    assert (width == 32).all() and (height == 32).all()
    assert (left.min(), left.max(), top.min(), top.max()) == (0, 148, 0, 88)


def test_jpeg_decoded_at_a_smaller_scale_looks_the_same():
    """Random crops may use JPEG's own scaling: far faster, and hardly different."""
    rgb = picture(960, 1280)
    jpeg, crop = encode(rgb, "JPEG", quality=95), CropSettings(64, min_scale=0.999)
    for seed in range(5):
        fast = make_crop(jpeg, crop, np.random.default_rng(seed)).image
        region = crop.region(1280, 960, np.random.default_rng(seed))
        with Image.open(BytesIO(jpeg)) as image:
            kernel = Image.Resampling.BICUBIC
            slow = np.asarray(image.resize((64, 64), kernel, region.corners))
        difference = np.abs(fast.astype(int) - slow)
        assert difference.max() <= 4 and difference.mean() < 0.6


def test_exif_rotates_images_and_crops():
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = encode(np.rot90(RGB), exif=exif)
    mask = np.zeros((120, 180), np.uint8)
    mask[10:30, 40:90] = 255
    crop = CropSettings(32, min_scale=0.6)
    for seed in (None, 1, 2):
        rngs = [None if seed is None else np.random.default_rng(seed) for _ in "ab"]
        upright = make_crop(encode(RGB), crop, rngs[0], encode(mask))
        found = make_crop(rotated, crop, rngs[1], encode(mask))
        assert np.array_equal(found.image, upright.image)
        assert np.array_equal(found.hole, upright.hole)
    assert np.array_equal(decode(Encoded(rotated), "x", "white").image, RGB)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8, 9, 100])
def test_every_orientation_in_every_format(kind, orientation):
    """Values above 8 mean nothing; Pillow rotates TIFFs when it reads them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    stored = encode(RGB, kind, exif=exif, **lossless)
    whole = decode(Encoded(stored), "x", "white").image
    rotated = orientation in (5, 6, 7, 8)
    assert whole.shape == ((180, 120, 3) if rotated else RGB.shape)
    for crop in (
        CropSettings(32),
        CropSettings(32, "whole"),
        CropSettings(150, "native"),
    ):
        expected = make_crop(encode(whole), crop).image
        for rng in (None, np.random.default_rng(0)):
            if rng is not None:
                expected = make_crop(
                    encode(whole), crop, np.random.default_rng(0)
                ).image
            found = make_crop(
                stored, crop, rng, encode(np.uint8(255 * (whole[..., 0] > 99)))
            )
            assert np.abs(found.image.astype(int) - expected).max() <= 2


# Masks.


@pytest.mark.parametrize("height, width", [(8000, 513), (513, 8000)])
def test_image_and_mask_stay_aligned_when_a_jpeg_is_decoded_smaller(height, width):
    """JPEG's scaling rounds each side separately."""
    stripes = np.uint8(np.arange(max(height, width)) // 128 % 2 * 255)
    along = stripes[:height, None] if height > width else stripes[None, :width]
    mask = np.ascontiguousarray(np.broadcast_to(along, (height, width)))
    jpeg = encode(np.dstack([mask] * 3), "JPEG", quality=95)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        found = make_crop(jpeg, CropSettings(64), rng, encode(mask))
        inside, outside = found.image[..., 0] > 200, found.image[..., 0] < 10
        assert found.hole[inside].all() and found.hole[outside].mean() < 0.03


def test_thin_hole_survives_shrinking():
    hole = np.zeros((120, 120), np.bool_)
    hole[7, :] = hole[:, 113] = True
    shrunk = resize_hole(hole, (0, 0, 120, 120), (10, 10))
    expected = np.zeros((10, 10), np.bool_)
    expected[0, :] = expected[:, 9] = True
    assert np.array_equal(shrunk, expected)


def test_image_and_mask_are_cropped_together():
    """An image that is white in its mask's hole remains so."""
    mask = np.zeros((120, 180), np.uint8)
    mask[20:90, 50:140] = 255
    image = np.repeat(mask[..., None], 3, axis=-1)
    for kind in ("square", "whole", "native"):
        for seed in range(10):
            rng = np.random.default_rng(seed)
            crop = CropSettings(60, kind, min_scale=0.5)
            found = make_crop(encode(image), crop, rng, encode(mask))
            inside = found.image[..., 0] > 250
            assert found.hole[inside].all() and (found.hole != inside).mean() < 0.1


def test_random_crop_always_includes_some_of_the_hole():
    mask = np.zeros((120, 180), np.uint8)
    mask[3, 176] = 255
    for seed in range(50):
        rng = np.random.default_rng(seed)
        found = make_crop(encode(RGB), CropSettings(16, "native"), rng, encode(mask))
        assert found.hole.sum() == 1


def test_small_image_is_rejected():
    with pytest.raises(UserError, match=r"x .*180x120.*121"):
        make_crop(encode(RGB), CropSettings(32, smallest_side=121))
    image = make_crop(encode(RGB), CropSettings(32, smallest_side=120)).image
    assert image.shape == (32, 32, 3)
