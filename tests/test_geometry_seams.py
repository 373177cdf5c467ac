"""No seams: the picture is not steeper across a hole's border than around it."""

import numpy as np
import pytest
from pictures import hole_in, picture
from scipy.ndimage import distance_transform_edt, gaussian_filter
from test_geometry_cases import HOLES, SIZE

from migan_jax.geometry.crops import crop_around, plan
from migan_jax.geometry.filling import DEFAULT_FEATHER, fill_holes, to_square

BORDERED = [name for name, hole in HOLES.items() if hole.any() and not hole.all()]


def no_hole(shape):
    return np.zeros(shape, np.bool_)


def seam(result, hole, feather):
    """How much steeper the picture is across the hole's border than beside it.

    Mean absolute differences of neighbours: of those that the border parts, and of all
    within 8 pixels of it on either side.
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
    """A network that knows the photo, and answers with what `change` makes of it."""

    def __init__(self, image, hole, size, change=lambda truth: truth):
        boxes = plan(hole, size, "auto")
        crops = [crop_around(box, hole.shape, size) for box in boxes]
        self.truths = (
            to_square(
                image[crop.box.slices], no_hole(image[crop.box.slices].shape[:2]), crop
            )[0]
            for crop in crops
        )
        self.change = change

    def __call__(self, image, known):
        return self.change(next(self.truths))


def blurred(truth):
    return gaussian_filter(truth, (0, 2, 2, 0))


def brighter(truth):
    return truth + 20 / 127.5


def shifted(truth):
    return np.roll(truth, 3, axis=2)


SEAMS = {
    "in one crop of its size": hole_in((200, 300), (90, 100, 120, 130)),
    "shrunk": hole_in((400, 400), (100, 100, 300, 300)),
    "wide, cut in pieces": hole_in((200, 900), (90, 20, 110, 880)),
    "at a corner": hole_in((200, 300), (150, 250, 200, 300)),
    "portrait": hole_in((600, 120), (100, 20, 500, 100)),
    "photo smaller than the network": hole_in((40, 50), (10, 10, 25, 30)),
    "two far ones": hole_in((200, 600), (20, 20, 50, 60), (150, 500, 180, 560)),
}


@pytest.mark.parametrize("change", [lambda truth: truth, blurred], ids=["id", "blur"])
@pytest.mark.parametrize("name", SEAMS)
def test_there_is_no_seam(name, change):
    hole = SEAMS[name]
    image = picture(*hole.shape)
    network = Oracle(image, hole, 128, change)
    result = fill_holes(image, hole, network, 128)
    assert seam(result, hole, DEFAULT_FEATHER) < 0.5


@pytest.mark.parametrize("change", [lambda truth: truth, blurred], ids=["id", "blur"])
@pytest.mark.parametrize("name", BORDERED)
def test_no_case_has_a_seam(name, change):
    """Across the border, hardly steeper than the photo itself is there."""
    hole = HOLES[name]
    image = picture(*hole.shape)
    result = fill_holes(image, hole, Oracle(image, hole, SIZE, change), SIZE)
    assert across(result, hole) < across(image, hole) + 0.5


def across(picture, hole):
    """Mean absolute difference of neighbours that the hole's border parts."""
    values = picture.astype(np.float32).mean(axis=-1)
    steps = []
    for axis in (0, 1):
        parted = np.diff(hole.astype(np.int8), axis=axis) != 0
        steps.append(np.abs(np.diff(values, axis=axis))[parted])
    return np.concatenate(steps).mean()


def test_the_identity_restores_the_photo():
    """Exactly where nothing is resized; elsewhere but for what shrinking loses."""
    for name, hole in SEAMS.items():
        image = picture(*hole.shape)
        result = fill_holes(image, hole, Oracle(image, hole, 128), 128, 4)
        smooth = gaussian_filter(image.astype(np.float32), (1.5, 1.5, 0))
        worst = np.abs(
            gaussian_filter(result.astype(np.float32), (1.5, 1.5, 0)) - smooth
        )
        if name == "in one crop of its size":
            assert np.array_equal(result, image)
        assert worst.max() < 8, name


@pytest.mark.parametrize("change", [brighter, shifted])
def test_a_seam_would_be_seen(change):
    """What the measure above is worth: without a feather, wrong colours and places."""
    hole = SEAMS["in one crop of its size"]
    image = picture(*hole.shape)
    network = Oracle(image, hole, 128, change)
    hard = seam(fill_holes(image, hole, network, 128, 0), hole, 0)
    assert hard > 1
    network = Oracle(image, hole, 128, change)
    soft = seam(fill_holes(image, hole, network, 128), hole, DEFAULT_FEATHER)
    assert soft < hard / 2
