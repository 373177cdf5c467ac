"""Mask files: any mode, any colour, or the transparent part; photos are refused."""

import numpy as np
import pytest
from pictures import picture
from PIL import Image, ImageFilter
from test_photos import HEIGHT, RGB, WIDTH

from migan_jax.errors import UserError
from migan_jax.photos import read_mask


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "I;16", "I", "F"])
def test_masks_of_any_mode(mode, tmp_path):
    hole = np.zeros((HEIGHT, WIDTH), np.bool_)
    hole[3:9, 4:20] = True
    image = Image.fromarray(np.uint8(255 * hole))
    if mode == "I;16":
        image = Image.fromarray(np.uint16(65535) * hole)
    elif mode in ("I", "F"):
        image = Image.fromarray(hole.astype(np.int32 if mode == "I" else np.float32))
    elif mode != "L":
        image = image.convert(mode)
    path = tmp_path / "mask.tif"
    image.save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
    assert np.array_equal(read_mask(path, "white").hole, hole)
    assert np.array_equal(read_mask(path, "black").hole, ~hole)


@pytest.mark.parametrize("colour", ["red", "lime", "blue", "white", "#000040"])
def test_holes_may_be_painted_in_any_colour(colour, tmp_path):
    image = Image.new("RGB", (9, 9))
    image.paste(Image.new("RGB", (3, 3), colour), (2, 4))
    image.save(tmp_path / "x.png")
    expected = np.zeros((9, 9), np.bool_)
    expected[4:7, 2:5] = True
    assert np.array_equal(read_mask(tmp_path / "x.png", "white").hole, expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
@pytest.mark.parametrize("mask_hole", ["white", "black"])
def test_the_transparent_part_is_the_hole(mode, mask_hole, tmp_path):
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[2:5, 3:9] = 0
    alpha[5:6, 3:9] = 127
    image = Image.fromarray(RGB)
    image.putalpha(Image.fromarray(alpha))
    path = tmp_path / "x.png"
    (image.quantize(32) if mode == "PA" else image.convert(mode)).save(path)
    mask = read_mask(path, mask_hole)
    assert mask.from_alpha and np.array_equal(mask.hole, alpha < 128)


@pytest.mark.parametrize("alpha", [255, 254, 128])
def test_an_alpha_channel_without_a_hole_is_ignored(alpha, tmp_path):
    """Opaque, or a little transparent here and there."""
    hole = np.zeros((9, 9), np.uint8)
    hole[2:4, 3:6] = 255
    image = Image.fromarray(hole).convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, alpha))
    image.save(tmp_path / "x.png")
    mask = read_mask(tmp_path / "x.png", "white")
    assert not mask.from_alpha and np.array_equal(mask.hole, hole > 0)


def paint(photo, colour):
    """A copy of a photo with a painted rectangle."""
    copy = photo.copy()
    copy[10:30, 20:45] = colour
    return copy


@pytest.mark.parametrize(
    "content",
    [
        paint(picture(60, 80), (255, 0, 0)),
        paint(picture(60, 80), (255, 255, 255)),
        paint(picture(60, 80), (0, 0, 0))[..., 0],
        paint(picture(60, 80) // 2, (255, 0, 0)),  # at dusk
        paint(np.full((60, 80, 3), 255, np.uint8), (255, 0, 0)),  # on paper
        picture(60, 80)[..., 0].astype(np.uint16) * 257,
    ],
    ids=["red", "white", "grey", "dusk", "paper", "16 bits"],
)
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_photos_are_refused_as_masks(content, extension, tmp_path):
    path = tmp_path / f"x.{extension}"
    Image.fromarray(content).save(path)
    for mask_hole in ("white", "black"):
        with pytest.raises(UserError, match=rf"x\.{extension} .*photo"):
            read_mask(path, mask_hole)


def test_flat_levels_are_masks(tmp_path):
    """White on dark grey."""
    levels = np.full((60, 80), 60, np.uint8)
    levels[10:30, 20:60] = 255
    Image.fromarray(levels).save(tmp_path / "x.png")
    assert np.array_equal(read_mask(tmp_path / "x.png", "white").hole, levels == 255)


@pytest.mark.parametrize("blur", [3, 12])
@pytest.mark.parametrize("colour", ["white", "red"])
def test_soft_and_compressed_masks_are_masks(colour, blur, tmp_path):
    """A brush with a soft edge, saved as JPEG."""
    image = Image.new("RGB", (400, 300))
    image.paste(Image.new("RGB", (120, 90), colour), (100, 80))
    image.filter(ImageFilter.GaussianBlur(blur)).save(tmp_path / "x.jpg", quality=60)
    hole = read_mask(tmp_path / "x.jpg", "white").hole
    inside = np.zeros((300, 400), np.bool_)
    inside[80:170, 100:220] = True
    assert np.mean(hole != inside) < 0.01
