"""Crops: around the hole, inside the photo, with the aspect ratio kept."""

import numpy as np
import pytest
from pictures import hole_in

from migan_jax.geometry.crops import (
    BOX_DIVISOR,
    NETWORK_DIVISOR,
    Box,
    crop_around,
    plan_boxes,
)


def random_boxes(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        shape = tuple(int(2 ** rng.uniform(0, 12)) for _ in range(2))
        top, left = (int(rng.integers(n)) for n in shape)
        bottom = int(rng.integers(top, shape[0])) + 1
        right = int(rng.integers(left, shape[1])) + 1
        size = int(2 ** rng.integers(3, 10))
        yield shape, Box(top, left, bottom, right), size


def test_crops_contain_the_hole_and_its_context():
    for shape, box, size in random_boxes(2000):
        crop = crop_around(box, shape, size)
        longer = max(box.height, box.width)
        context = max(longer // BOX_DIVISOR, size // NETWORK_DIVISOR)
        assert crop.size == size <= crop.side
        for k in (0, 1):
            start, stop = crop.box[k], crop.box[k + 2]
            # Inside the photo, as much of it as fits into the square, ...
            assert 0 <= start < stop <= shape[k]
            assert stop - start == min(crop.side, shape[k])
            # ... with context, unless the photo ends.
            assert start <= max(box[k] - context, 0)
            assert stop >= min(box[k + 2] + context, shape[k])


def test_aspect_ratios_are_kept():
    """Both axes are shrunk by the same factor, up to rounding."""
    for shape, box, size in random_boxes(2000):
        crop = crop_around(box, shape, size)
        for k in (0, 1):
            length = crop.box[k + 2] - crop.box[k]
            inner = crop.inner[k + 2] - crop.inner[k]
            assert 0 <= crop.inner[k] and crop.inner[k + 2] <= size
            assert inner == max(1, round(length * size / crop.side + 1e-9))
            before, after = crop.inner[k], size - crop.inner[k + 2]
            assert 0 <= after - before <= 1


def test_crops_are_no_larger_than_necessary():
    """At most the photo's longer side or the network's size."""
    crop = crop_around(Box(100, 0, 200, 3000), (2000, 3000), 512)
    assert crop.side == 3000
    assert crop.box == Box(0, 0, 2000, 3000)
    crop = crop_around(Box(10, 10, 20, 20), (2000, 3000), 512)
    assert crop.side == 512 and crop.box == Box(0, 0, 512, 512)


def test_one_crop_is_the_bounding_box():
    hole = hole_in((100, 90), (3, 80, 4, 81), (50, 7, 70, 9))
    assert plan_boxes(hole, 8, "one") == [Box(3, 7, 70, 81)]


def random_holes():
    rng = np.random.default_rng(1)
    for fraction in (0.0001, 0.001, 0.01, 0.1, 0.5):
        yield rng.random((400, 500)) < fraction
    for _ in range(30):
        hole = np.zeros((400, 500), np.bool_)
        for _ in range(rng.integers(1, 8)):
            top, left = rng.integers(0, 400), rng.integers(0, 500)
            height, width = 2 ** rng.uniform(0, 8, 2)
            hole[top : top + int(height), left : left + int(width)] = True
        yield hole


def test_every_hole_pixel_is_in_one_box():
    for hole in random_holes():
        boxes = plan_boxes(hole, 64, "auto")
        count = np.zeros(hole.shape, int)
        for box in boxes:
            count[box.slices] += 1
            part = hole[box.slices]
            edges = part[0], part[-1], part[:, 0], part[:, -1]
            assert all(edge.any() for edge in edges)  # the bounding box
        assert (count[hole] == 1).all() and count.max() == 1
        assert boxes == sorted(boxes, key=lambda box: (box.top, box.left))
        assert boxes == plan_boxes(hole.copy(), 64, "auto")


def crop_sides(hole, size=512):
    boxes = plan_boxes(hole, size, "auto")
    return [crop_around(box, hole.shape, size).side for box in boxes]


def test_holes_far_apart_are_filled_at_full_resolution():
    hole = hole_in((2000, 3000), (10, 10, 200, 200), (1700, 2600, 1900, 2900))
    assert crop_sides(hole) == [512, 512]


def test_near_holes_share_a_crop():
    hole = hole_in((2000, 3000), (10, 10, 100, 100), (150, 200, 200, 300))
    assert crop_sides(hole) == [512]


@pytest.mark.parametrize("gap", [63, 64])
def test_holes_are_split_at_gaps_of_an_eighth_of_the_network(gap):
    """An eighth is the minimum context."""
    hole = hole_in((2000, 3000), (0, 0, 600, 600), (0, 600 + gap, 600, 1200 + gap))
    assert len(crop_sides(hole)) == (2 if gap >= 64 else 1)


def test_long_thin_holes_are_split():
    scratch = np.eye(2000, 3000, dtype=np.bool_)
    wire = hole_in((2000, 3000), (900, 100, 1000, 2900))
    # The minimum for 2,000 and 2,800 pixels, with a third of each crop being context.
    for hole, crops in ((scratch, 6), (wire, 9)):
        assert crop_sides(hole) == [512] * crops


def test_large_holes_are_not_split():
    hole = hole_in((2000, 3000), (300, 300, 1500, 2000))
    assert len(crop_sides(hole)) == 1


def test_small_photos_are_one_crop():
    """Splitting would gain no detail."""
    rng = np.random.default_rng(0)
    assert crop_sides(rng.random((512, 300)) < 0.02) == [512]
    assert crop_sides(rng.random((512, 640)) < 0.02) == [512, 512]
