"""Crops: what is cut out of a picture, how it is resized, what becomes of its mask."""

from io import BytesIO

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from migan_jax.data.examples import Crop, Encoded, decode, decode_crop, shrink_hole
from migan_jax.errors import UserError

RGB = picture(120, 180)
SQUARE = (30, 0, 150, 120)  # the largest in the middle


def encode(array, kind="PNG", **options):
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def crop_of(image, crop, rng=None, mask=None):
    return decode_crop(Encoded(image, mask), "x", "white", crop, rng)


@pytest.mark.parametrize(
    "kind, box",
    [("square", SQUARE), ("whole", (0, 0, 180, 120)), ("native", (74, 44, 106, 76))],
)
def test_the_central_crop_is_pillows_bicubic(kind, box):
    expected = Image.fromarray(RGB).resize((32, 32), Image.Resampling.BICUBIC, box)
    found = crop_of(encode(RGB), Crop(32, kind))
    assert np.array_equal(found.image, np.asarray(expected)) and found.hole is None


def test_a_drawn_picture_is_cropped_like_a_stored_one():
    drawn = crop_of(RGB, Crop(32)).image
    assert np.array_equal(drawn, crop_of(encode(RGB), Crop(32)).image)
    assert np.array_equal(crop_of(RGB[:32, :32], Crop(32)).image, RGB[:32, :32])


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (20, 20)])
def test_a_smaller_picture_is_enlarged(shape):
    for kind in ("square", "whole", "native"):
        rng = np.random.default_rng(0)
        found = crop_of(encode(picture(*shape)), Crop(32, kind), rng)
        assert found.image.shape == (32, 32, 3)


def regions(crop, count=2000):
    rng = np.random.default_rng(0)
    return np.array([crop.region(180, 120, rng) for _ in range(count)])


def test_random_squares_are_everywhere_and_of_all_shares():
    left, top, width, height = regions(Crop(32, smallest_share=0.5)).T
    assert (width == height).all() and width.min() == 60 and width.max() == 120
    assert np.mean(width) == pytest.approx(90, abs=1.5)
    assert left.min() == 0 and (left + width).max() == 180
    assert top.min() == 0 and (top + height).max() == 120
    place = left / np.maximum(180 - width, 1)
    assert np.mean(place) == pytest.approx(0.5, abs=0.02)


def test_native_crops_keep_their_size():
    left, top, width, height = regions(Crop(32, "native")).T
    assert (width == 32).all() and (height == 32).all()
    assert (left.min(), left.max(), top.min(), top.max()) == (0, 148, 0, 88)


def test_a_jpeg_that_is_decoded_smaller_looks_the_same():
    """Random crops may take JPEG's own reduction: far faster, and hardly different."""
    rgb = picture(960, 1280)
    jpeg, crop = encode(rgb, "JPEG", quality=95), Crop(64, smallest_share=0.999)
    for seed in range(5):
        fast = crop_of(jpeg, crop, np.random.default_rng(seed)).image
        region = crop.region(1280, 960, np.random.default_rng(seed))
        with Image.open(BytesIO(jpeg)) as image:
            kernel = Image.Resampling.BICUBIC
            slow = np.asarray(image.resize((64, 64), kernel, region.corners))
        difference = np.abs(fast.astype(int) - slow)
        assert difference.max() <= 4 and difference.mean() < 0.6


def test_exif_turns_the_picture_and_its_crop():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(np.rot90(RGB), exif=exif)
    mask = np.zeros((120, 180), np.uint8)
    mask[10:30, 40:90] = 255
    crop = Crop(32, smallest_share=0.6)
    for seed in (None, 1, 2):
        rngs = [None if seed is None else np.random.default_rng(seed) for _ in "ab"]
        upright = crop_of(encode(RGB), crop, rngs[0], encode(mask))
        found = crop_of(turned, crop, rngs[1], encode(mask))
        assert np.array_equal(found.image, upright.image)
        assert np.array_equal(found.hole, upright.hole)
    assert np.array_equal(decode(Encoded(turned), "x", "white").image, RGB)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8, 9, 100])
def test_every_orientation_in_every_format(kind, orientation):
    """Beyond 8 there is none; a TIFF is turned by its reader already."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    stored = encode(RGB, kind, exif=exif, **lossless)
    whole = decode(Encoded(stored), "x", "white").image
    turned = orientation in (5, 6, 7, 8)
    assert whole.shape == ((180, 120, 3) if turned else RGB.shape)
    for crop in (Crop(32), Crop(32, "whole"), Crop(150, "native")):
        expected = crop_of(encode(whole), crop).image
        for rng in (None, np.random.default_rng(0)):
            if rng is not None:
                expected = crop_of(encode(whole), crop, np.random.default_rng(0)).image
            found = crop_of(
                stored, crop, rng, encode(np.uint8(255 * (whole[..., 0] > 99)))
            )
            assert np.abs(found.image.astype(int) - expected).max() <= 2


# Masks.


@pytest.mark.parametrize("height, width", [(8000, 513), (513, 8000)])
def test_picture_and_mask_stay_together_where_a_jpeg_is_decoded_smaller(height, width):
    """Each side is rounded up for itself."""
    stripes = np.uint8(np.arange(max(height, width)) // 128 % 2 * 255)
    along = stripes[:height, None] if height > width else stripes[None, :width]
    mask = np.ascontiguousarray(np.broadcast_to(along, (height, width)))
    jpeg = encode(np.dstack([mask] * 3), "JPEG", quality=95)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        found = crop_of(jpeg, Crop(64), rng, encode(mask))
        inside, outside = found.image[..., 0] > 200, found.image[..., 0] < 10
        assert found.hole[inside].all() and found.hole[outside].mean() < 0.03


def test_a_thin_hole_survives_shrinking():
    hole = np.zeros((120, 120), np.bool_)
    hole[7, :] = hole[:, 113] = True
    shrunk = shrink_hole(hole, (0, 0, 120, 120), (10, 10))
    expected = np.zeros((10, 10), np.bool_)
    expected[0, :] = expected[:, 9] = True
    assert np.array_equal(shrunk, expected)


def test_image_and_mask_are_cropped_together():
    """A picture that is white where its mask is stays so."""
    mask = np.zeros((120, 180), np.uint8)
    mask[20:90, 50:140] = 255
    image = np.repeat(mask[..., None], 3, axis=-1)
    for kind in ("square", "whole", "native"):
        for seed in range(10):
            rng = np.random.default_rng(seed)
            crop = Crop(60, kind, smallest_share=0.5)
            found = crop_of(encode(image), crop, rng, encode(mask))
            inside = found.image[..., 0] > 250
            assert found.hole[inside].all() and (found.hole != inside).mean() < 0.1


def test_a_random_crop_always_sees_some_of_the_hole():
    mask = np.zeros((120, 180), np.uint8)
    mask[3, 176] = 255
    for seed in range(50):
        rng = np.random.default_rng(seed)
        found = crop_of(encode(RGB), Crop(16, "native"), rng, encode(mask))
        assert found.hole.sum() == 1


def test_what_is_refused():
    with pytest.raises(UserError, match="x has 180x120 pixels, and its shorter side"):
        crop_of(encode(RGB), Crop(32, smallest_side=121))
    assert crop_of(encode(RGB), Crop(32, smallest_side=120)).image.shape == (32, 32, 3)
