"""What masks mean, and what is said about doubtful ones."""

import numpy as np
import pytest
from pictures import hole_in

from migan_jax.data.masks import doubt_about, hole_of
from migan_jax.errors import UserError


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.int32, np.float32])
def test_a_mask_of_zeros_is_black(dtype):
    zeros = np.zeros((2, 3), dtype)
    assert not hole_of(zeros).any()
    assert hole_of(zeros, "black").all()


@pytest.mark.parametrize("value", [1, 2, 254, 255])
def test_a_constant_mask_is_white(value):
    assert hole_of(np.full((2, 3), value, np.uint8)).all()


@pytest.mark.parametrize("largest", [*range(1, 256)])
def test_white_begins_at_half_of_the_largest_value(largest):
    values = np.arange(largest + 1, dtype=np.uint8)[None]
    expected = 2 * values.astype(int) >= largest
    assert np.array_equal(hole_of(values), expected)
    for dtype in (np.int64, np.uint16, np.float16, np.float64):
        assert np.array_equal(hole_of(values.astype(dtype)), expected)


def test_the_smallest_numbers_are_numbers():
    smallest = np.nextafter(np.float32(0), np.float32(1))
    assert hole_of(np.array([[0, smallest]], np.float32)).tolist() == [[False, True]]


def test_large_integers_do_not_overflow():
    largest = np.iinfo(np.uint64).max
    values = np.array([[0, largest // 2, largest // 2 + 1, largest]], np.uint64)
    assert hole_of(values).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (np.zeros((2, 2, 3)), r"\[H, W\], not \[2, 2, 3\]"),
        (np.zeros(4), r"not \[4\]"),
        (np.array([["a"]]), "booleans or numbers"),
        (np.array([[1j]]), "booleans or numbers"),
        (np.array([[-1, 1]]), "no negative values"),
        (np.array([[np.nan, 1]]), "no NaN"),
        (np.array([[np.inf, 1]]), "no infinity"),
    ],
)
def test_what_is_no_mask(mask, sentence):
    with pytest.raises(UserError, match=sentence):
        hole_of(mask)


def test_polarity_is_named():
    with pytest.raises(UserError, match="'white' or 'black', not 'grey'"):
        hole_of(np.zeros((2, 2)), "grey")


SHAPE = (100, 100)


@pytest.mark.parametrize(
    ("hole", "parts"),
    [
        (np.ones(SHAPE, np.bool_), ["the whole picture is made up"]),
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
def test_doubts(hole, parts):
    doubt = doubt_about(hole, "do that")
    if parts is None:
        assert doubt is None
    else:
        for part in parts:
            assert part in doubt
