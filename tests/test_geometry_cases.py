"""Holes of every shape in photos of every size: only the hole changes, completely."""

import numpy as np
import pytest
from pictures import BRIGHTEST, hole_in, picture, white
from scipy.ndimage import distance_transform_edt

from migan_jax.data.masks import hole_of
from migan_jax.geometry.fill import DEFAULT_FEATHER, fill_holes

SIZE = 64
SHAPE = (200, 300)
END = None  # the last row or column


def diagonal(shape):
    return np.eye(*shape, dtype=np.bool_)


def speckles(fraction):
    return np.random.default_rng(0).random(SHAPE) < fraction


def ring():
    return hole_in(SHAPE, (50, 80, 150, 220)) & ~hole_in(SHAPE, (60, 90, 140, 210))


def frame():
    return ~hole_in(SHAPE, (30, 30, -30, -30))


def wide_on_6_megapixels():
    return hole_in((2000, 3000), (900, 100, 1000, 2900))


HOLES = {
    "one pixel": hole_in(SHAPE, (70, 90, 71, 91)),
    "first pixel": hole_in(SHAPE, (0, 0, 1, 1)),
    "last pixel": hole_in(SHAPE, (-1, -1, END, END)),
    "first row": hole_in(SHAPE, (0, 0, 1, END)),
    "last row": hole_in(SHAPE, (-1, 0, END, END)),
    "first column": hole_in(SHAPE, (0, 0, END, 1)),
    "last column": hole_in(SHAPE, (0, -1, END, END)),
    "scratch across": hole_in(SHAPE, (99, 0, 100, END)),
    "scratch down, two wide": hole_in(SHAPE, (0, 99, END, 101)),
    "scratch aslant": diagonal(SHAPE),
    "3 x 3": hole_in(SHAPE, (40, 40, 43, 43)),
    "4 x 4": hole_in(SHAPE, (40, 40, 44, 44)),
    "as large as the network": hole_in(SHAPE, (40, 40, 104, 104)),
    "larger than the network": hole_in(SHAPE, (30, 90, 170, 230)),
    "wide": hole_in(SHAPE, (90, 10, 120, 290)),
    "tall": hole_in(SHAPE, (5, 140, 195, 160)),
    "ring": ring(),
    "frame": frame(),
    "half": hole_in(SHAPE, (0, 150, END, END)),
    "two far ones": hole_in(SHAPE, (10, 10, 30, 30), (170, 260, 195, 290)),
    "two near ones": hole_in(SHAPE, (10, 10, 30, 30), (10, 33, 30, 50)),
    "four corners": hole_in(
        SHAPE, (0, 0, 9, 9), (0, -9, 9, END), (-9, 0, END, 9), (-9, -9, END, END)
    ),
    "speckles": speckles(0.01),
    "noise": speckles(0.5),
    "checkerboard": np.indices(SHAPE).sum(axis=0) % 2 == 0,
    "all but one pixel": ~hole_in(SHAPE, (77, 200, 78, 201)),
    "everything": np.ones(SHAPE, np.bool_),
    "nothing": np.zeros(SHAPE, np.bool_),
    "1 x 1, everything": np.ones((1, 1), np.bool_),
    "1 x 1, nothing": np.zeros((1, 1), np.bool_),
    "2 x 2": hole_in((2, 2), (0, 1, 1, 2)),
    "one row": hole_in((1, 500), (0, 200, 1, 230)),
    "one column": hole_in((500, 1), (10, 0, 480, 1)),
    "smaller than the network": hole_in((33, 41), (10, 10, 20, 25)),
    "just the network's size": hole_in((64, 64), (0, 0, 30, 30)),
    "one pixel more": hole_in((65, 65), (5, 5, 60, 60)),
    "odd": hole_in((127, 63), (3, 2, 101, 60)),
    "portrait": hole_in((400, 150), (100, 20, 350, 130)),
    "panorama": hole_in((60, 2000), (10, 100, 50, 1900)),
    "panorama, everything": np.ones((20, 900), np.bool_),
    # A single crop is shrunk by 40.
    "corners of a strip": hole_in((3, 2560), (0, 0, 1, 1), (2, -1, END, END)),
}
LARGE_HOLES = {
    "wide on 3000 x 2000": wide_on_6_megapixels(),
    "two far ones on 3000 x 2000": hole_in(
        (2000, 3000), (100, 100, 400, 500), (1500, 2500, 1990, 3000)
    ),
    "large on 1400 x 933": hole_in((933, 1400), (100, 100, 900, 1300)),
    "scratch on 3000 x 2000": diagonal((2000, 3000)),
}


def check_filled(hole, size, crops, feather, mask=None, mask_hole="white"):
    """White in the whole hole, equal to the photo bit for bit beyond the feather."""
    image = picture(*hole.shape)
    mask = hole if mask is None else mask
    from_mask = hole_of(mask, mask_hole)
    assert np.array_equal(from_mask, hole)
    original = image.copy()
    result = fill_holes(image, from_mask, white, size, feather, crops)
    assert np.array_equal(image, original)
    assert result.dtype == np.uint8 and result.shape == image.shape
    assert (result[hole] > BRIGHTEST).all()
    far = ~hole
    if hole.any():
        far &= distance_transform_edt(~hole) > feather
    assert np.array_equal(result[far], image[far])
    if feather == 0:
        assert np.array_equal(result[~hole], image[~hole])


@pytest.mark.parametrize("feather", [0, DEFAULT_FEATHER, 8])
@pytest.mark.parametrize("crops", ["auto", "one"])
@pytest.mark.parametrize("name", HOLES)
def test_only_the_hole_is_filled(name, crops, feather):
    check_filled(HOLES[name], SIZE, crops, feather)


# test_twins_pipeline.py compares single crops with the exported pipeline.
@pytest.mark.parametrize("crops", ["auto", pytest.param("one", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", LARGE_HOLES)
def test_large_photos(name, crops):
    check_filled(LARGE_HOLES[name], 512, crops, DEFAULT_FEATHER)


def soft_edged():
    """A disc with a ramp around it, at half of the maximum on its rim."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    radius = np.hypot(y - 100, x - 150)
    return np.clip(0.5 + (40 - radius) / 6, 0, 1)


HOLE = HOLES["ring"]
SOFT = soft_edged()
MASKS = {
    "bool": (HOLE, HOLE),
    "0/1": (HOLE.astype(np.uint8), HOLE),
    "0/254": (HOLE.astype(np.uint8) * np.uint8(254), HOLE),
    "0/255": (HOLE.astype(np.uint8) * np.uint8(255), HOLE),
    "0/65535": (HOLE.astype(np.uint16) * np.uint16(65535), HOLE),
    "int64": (HOLE.astype(np.int64), HOLE),
    "float": (HOLE.astype(np.float32), HOLE),
    "[H, W, 1]": (HOLE[..., None], HOLE),
    "soft": (np.uint8(255 * SOFT), np.uint8(255 * SOFT) >= 128),
    "soft float": (SOFT, SOFT >= 0.5),
    "faint": (np.uint8(9 * SOFT), np.uint8(9 * SOFT) >= 5),
}


@pytest.mark.parametrize("mask_hole", ["white", "black"])
@pytest.mark.parametrize("name", MASKS)
def test_masks_of_all_types_and_values(name, mask_hole):
    mask, high = MASKS[name]
    hole = high if mask_hole == "white" else ~high
    check_filled(hole, SIZE, "auto", DEFAULT_FEATHER, mask, mask_hole)


def test_without_a_hole_the_result_is_a_copy():
    image = picture(*SHAPE)
    result = fill_holes(image, HOLES["nothing"], white, SIZE)
    assert np.array_equal(result, image)
    assert result is not image and not np.shares_memory(result, image)
