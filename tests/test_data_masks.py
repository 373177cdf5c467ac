"""Holes of masks, and warnings of masks that look inverted."""

import numpy as np
import pytest
from pictures import hole_in

from migan_jax.data.masks import hole_of, polarity_warning
from migan_jax.errors import UserError


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.int32, np.float32])
def test_mask_of_zeros_is_black(dtype):
    zeros = np.zeros((2, 3), dtype)
    assert not hole_of(zeros).any()
    assert hole_of(zeros, "black").all()


@pytest.mark.parametrize("value", [1, 2, 254, 255])
def test_constant_mask_is_white(value):
    assert hole_of(np.full((2, 3), value, np.uint8)).all()


@pytest.mark.parametrize("maximum", [*range(1, 256)])
def test_white_starts_at_half_the_maximum(maximum):
    values = np.arange(maximum + 1, dtype=np.uint8)[None]
    expected = 2 * values.astype(int) >= maximum
    assert np.array_equal(hole_of(values), expected)
    for dtype in (np.int64, np.uint16, np.float16, np.float64):
        assert np.array_equal(hole_of(values.astype(dtype)), expected)


def test_smallest_float_is_white():
    smallest = np.nextafter(np.float32(0), np.float32(1))
    assert hole_of(np.array([[0, smallest]], np.float32)).tolist() == [[False, True]]


def test_large_integers_do_not_overflow():
    maximum = np.iinfo(np.uint64).max
    values = np.array([[0, maximum // 2, maximum // 2 + 1, maximum]], np.uint64)
    assert hole_of(values).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("mask", "part"),
    [
        (np.zeros((2, 2, 3)), r"\[2, 2, 3\]"),
        (np.zeros(4), r"\[4\]"),
        (np.array([["a"]]), "<U1"),
        (np.array([[1j]]), "complex128"),
        (np.array([[-1, 1]]), "negative"),
        (np.array([[np.nan, 1]]), "NaN"),
        (np.array([[np.inf, 1]]), "infinity"),
    ],
)
def test_invalid_masks(mask, part):
    with pytest.raises(UserError, match=part):
        hole_of(mask)


def test_invalid_polarity():
    with pytest.raises(UserError, match="mask_hole is 'grey'"):
        hole_of(np.zeros((2, 2)), "grey")


SHAPE = (100, 100)


@pytest.mark.parametrize(
    ("hole", "parts"),
    [
        (np.ones(SHAPE, np.bool_), ["whole image"]),
        (hole_in(SHAPE, (0, 0, 71, 100)), ["71%", "border", "do that."]),
        (hole_in(SHAPE, (5, 5, 95, 95)), ["81%", "do that."]),
        (~hole_in(SHAPE, (20, 20, 85, 85)), ["58%", "border"]),
        (hole_in(SHAPE, (0, 0, 70, 100)), ["70%", "border"]),
        (hole_in(SHAPE, (5, 5, 90, 89)), ["71%", "do that."]),
        (hole_in(SHAPE, (10, 10, 90, 90)), None),
        (~hole_in(SHAPE, (10, 10, 90, 90)), None),
        (hole_in(SHAPE, (10, 10, 30, 30)), None),
        (np.zeros(SHAPE, np.bool_), None),
    ],
)
def test_polarity_warning(hole, parts):
    warning = polarity_warning(hole, "do that")
    if parts is None:
        assert warning is None
    else:
        for part in parts:
            assert part in warning
