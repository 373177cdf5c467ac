"""No seams: gradients across a hole's border are no larger than around it."""

import numpy as np
import pytest
from pictures import hole_in, picture
from scipy.ndimage import distance_transform_edt, gaussian_filter
from test_geometry_cases import HOLES, SIZE

from migan_jax.geometry.crops import crop_around, plan_boxes
from migan_jax.geometry.fill import DEFAULT_FEATHER, fill_holes, make_network_input

BORDERED = [name for name, hole in HOLES.items() if hole.any() and not hole.all()]


def no_hole(shape):
    return np.zeros(shape, np.bool_)


def seam(result, hole, feather):
    """How much larger gradients are across the hole's border than beside it.

    Mean absolute difference of neighbouring pixels: across the border, minus that of
    all others within 8 pixels of it.
    """
    values = result.astype(np.float32).mean(axis=-1)
    reach = distance_transform_edt(~hole)
    depth = distance_transform_edt(hole)
    near = (reach <= feather + 8) & (depth <= 8)
    across, beside = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(values, axis=axis))
        first, second = (
            np.take(hole, np.arange(hole.shape[axis] - 1) + k, axis) for k in (0, 1)
        )
        both_near = np.take(near, np.arange(hole.shape[axis] - 1), axis)
        across.append(steps[first != second])
        beside.append(steps[(first == second) & both_near])
    return np.concatenate(across).mean() - np.concatenate(beside).mean()


class Oracle:
    """A network that returns the photo, after `change`."""

    def __init__(self, image, hole, size, change=lambda truth: truth):
        boxes = plan_boxes(hole, size, "auto")
        crops = [crop_around(box, hole.shape, size) for box in boxes]
        self.truths = (
            make_network_input(
                image[crop.box.slices], no_hole(image[crop.box.slices].shape[:2]), crop
            )[0]
            for crop in crops
        )
        self.change = change

    def __call__(self, image, known):
        return self.change(next(self.truths))


def blur(truth):
    return gaussian_filter(truth, (0, 2, 2, 0))


def brighten(truth):
    return truth + 20 / 127.5


def shift(truth):
    return np.roll(truth, 3, axis=2)


SEAMS = {
    "one crop, unshrunk": hole_in((200, 300), (90, 100, 120, 130)),
    "shrunk": hole_in((400, 400), (100, 100, 300, 300)),
    "wide, split": hole_in((200, 900), (90, 20, 110, 880)),
    "at a corner": hole_in((200, 300), (150, 250, 200, 300)),
    "portrait": hole_in((600, 120), (100, 20, 500, 100)),
    "photo smaller than the network": hole_in((40, 50), (10, 10, 25, 30)),
    "two far ones": hole_in((200, 600), (20, 20, 50, 60), (150, 500, 180, 560)),
}


@pytest.mark.parametrize("change", [lambda truth: truth, blur], ids=["id", "blur"])
@pytest.mark.parametrize("name", SEAMS)
def test_no_seam(name, change):
    hole = SEAMS[name]
    image = picture(*hole.shape)
    network = Oracle(image, hole, 128, change)
    result = fill_holes(image, hole, network, 128)
    assert seam(result, hole, DEFAULT_FEATHER) < 0.5


@pytest.mark.parametrize("change", [lambda truth: truth, blur], ids=["id", "blur"])
@pytest.mark.parametrize("name", BORDERED)
def test_no_seam_in_any_case(name, change):
    """Gradients across the border are hardly larger than the photo's there."""
    hole = HOLES[name]
    image = picture(*hole.shape)
    result = fill_holes(image, hole, Oracle(image, hole, SIZE, change), SIZE)
    assert across_border(result, hole) < across_border(image, hole) + 0.5


def across_border(image, hole):
    """Mean absolute difference of neighbouring pixels across the hole's border."""
    values = image.astype(np.float32).mean(axis=-1)
    steps = []
    for axis in (0, 1):
        border = np.diff(hole.astype(np.int8), axis=axis) != 0
        steps.append(np.abs(np.diff(values, axis=axis))[border])
    return np.concatenate(steps).mean()


def test_the_identity_restores_the_photo():
    """Exactly without resizing, otherwise up to the loss by shrinking."""
    for name, hole in SEAMS.items():
        image = picture(*hole.shape)
        result = fill_holes(image, hole, Oracle(image, hole, 128), 128, 4)
        smooth = gaussian_filter(image.astype(np.float32), (1.5, 1.5, 0))
        worst = np.abs(
            gaussian_filter(result.astype(np.float32), (1.5, 1.5, 0)) - smooth
        )
        if name == "one crop, unshrunk":
            assert np.array_equal(result, image)
        assert worst.max() < 8, name


@pytest.mark.parametrize("change", [brighten, shift])
def test_seams_are_detected(change):
    """Wrong colours or positions without a feather exceed the limit above."""
    hole = SEAMS["one crop, unshrunk"]
    image = picture(*hole.shape)
    network = Oracle(image, hole, 128, change)
    hard = seam(fill_holes(image, hole, network, 128, 0), hole, 0)
    assert hard > 1
    network = Oracle(image, hole, 128, change)
    soft = seam(fill_holes(image, hole, network, 128), hole, DEFAULT_FEATHER)
    assert soft < hard / 2
