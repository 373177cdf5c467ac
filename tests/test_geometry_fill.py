"""Resizing to the network and back, known pixels, and the paste."""

import numpy as np
import pytest
from pictures import hole_in, picture, white
from scipy.ndimage import distance_transform_edt, gaussian_filter

from migan_jax.errors import UserError
from migan_jax.geometry import fill
from migan_jax.geometry.crops import Box, crop_around, plan_boxes
from migan_jax.geometry.fill import fill_holes, make_network_input, squared_distance

SIZE = 64


def no_hole(shape):
    return np.zeros(shape, np.bool_)


def single_crop(hole, size=SIZE):
    return crop_around(plan_boxes(hole, size, "one")[0], hole.shape, size)


# Resizing kernels as matrices, from their definitions.


def triangle(t):
    return np.maximum(1 - np.abs(t), 0)


def cubic(t):
    """Catmull-Rom."""
    t = np.abs(t)
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t < 1, near, np.where(t < 2, far, 0))


def resizing_matrix(kernel, before, after):
    """[after, before]: half-pixel centres, antialiased, rows sum to 1."""
    scale = before / after
    centres = (np.arange(after)[:, None] + 0.5) * scale
    positions = np.arange(before)[None] + 0.5
    weights = kernel((positions - centres) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


def test_photos_are_shrunk_by_a_triangle_kernel():
    hole = hole_in((150, 170), (20, 30, 141, 133))
    image, crop = picture(*hole.shape), single_crop(hole)
    assert crop.side > crop.size
    part = image[crop.box.slices]
    down = resizing_matrix(triangle, crop.box.height, crop.inner.height)
    right = resizing_matrix(triangle, crop.box.width, crop.inner.width)
    expected = np.einsum("ij,jkc,lk->ilc", down, part / 127.5 - 1, right)
    masked, known = make_network_input(part, no_hole(part.shape[:2]), crop)
    assert masked.dtype == known.dtype == np.float32
    assert (known == 1).all()
    np.testing.assert_allclose(
        masked[0][crop.inner.slices], expected, rtol=0, atol=1e-5
    )


def test_outputs_are_enlarged_by_a_cubic_kernel():
    hole = hole_in((150, 170), (20, 30, 141, 133))
    image, crop = picture(*hole.shape), single_crop(hole)
    output = np.random.default_rng(0).uniform(-1, 1, (1, SIZE, SIZE, 3))
    masked, known = make_network_input(
        image[crop.box.slices], hole[crop.box.slices], crop
    )
    completed = np.where(known > 0, masked, output)[0][crop.inner.slices]
    down = resizing_matrix(cubic, crop.inner.height, crop.box.height)
    right = resizing_matrix(cubic, crop.inner.width, crop.box.width)
    expected = np.einsum("ij,jkc,lk->ilc", down, completed, right)
    expected = np.clip(127.5 * (expected + 1), 0, 255)
    result = fill_holes(image, hole, lambda *inputs: output, SIZE, 0)
    inside = hole[crop.box.slices]
    actual = result[crop.box.slices][inside]
    assert np.abs(actual - expected[inside]).max() <= 0.501  # rounding


def test_a_crop_of_the_networks_size_is_passed_and_pasted_exactly():
    hole = hole_in((200, 200), (90, 90, 110, 120))
    image, crop = picture(200, 200), single_crop(hole)
    part = image[crop.box.slices]
    masked, _ = make_network_input(part, hole[crop.box.slices], crop)
    np.testing.assert_allclose(
        127.5 * (masked[0] + 1),
        np.where(hole[crop.box.slices][..., None], 127.5, part),
        rtol=0,
        atol=1e-4,
    )
    truth, _ = make_network_input(part, no_hole(part.shape[:2]), crop)
    for feather in (0, 3, 8):
        result = fill_holes(image, hole, lambda *inputs: truth, SIZE, feather)
        assert np.array_equal(result, image)


def test_strips_do_not_change_the_result(monkeypatch):
    hole = hole_in((150, 170), (20, 30, 141, 133))
    image = picture(*hole.shape)
    raw, raw_strips = np.empty_like(image), np.empty_like(image)

    def predict(image, known):
        return gaussian_filter(image, (0, 2, 2, 0)) + 0.1

    whole = fill_holes(image, hole, predict, SIZE, raw=raw)
    monkeypatch.setattr(fill, "STRIP_PIXELS", 700)
    strips = fill_holes(image, hole, predict, SIZE, raw=raw_strips)
    assert np.array_equal(whole, strips)
    assert np.array_equal(raw, raw_strips)


# The network's input.


@pytest.mark.parametrize("feather", [0, 4])
@pytest.mark.parametrize(
    "box", [(20, 30, 141, 133), (60, 60, 61, 61), (0, 50, 150, 53)]
)
def test_nothing_of_the_hole_reaches_the_network(box, feather):
    """Neither the masked pixels, nor the mask, depend on what is in the hole."""
    hole = hole_in((150, 170), box)
    one, other = picture(*hole.shape), picture(*hole.shape)
    other[hole] = 255 - other[hole]
    seen = []

    def predict(image, known):
        seen.append((image, known))
        return white(image, known)

    for image in (one, other):
        fill_holes(image, hole, predict, SIZE, feather)
    half = len(seen) // 2
    for (a, known), (b, same) in zip(seen[:half], seen[half:], strict=True):
        # Unknown pixels contribute far less than a grey level to resized ones.
        assert np.abs(a - b).max() < 1e-5
        assert set(np.unique(known)) == {0, 1} and np.array_equal(known, same)
        assert (a[known[..., 0] == 0] == 0).all()


def test_the_feather_is_unknown_to_the_network():
    hole = hole_in((64, 64), (30, 30, 31, 31))
    seen = []

    def predict(image, known):
        seen.append(known)
        return white(image, known)

    fill_holes(picture(64, 64), hole, predict, SIZE, 3)
    unknown = seen[0][0, ..., 0] == 0
    assert np.array_equal(unknown, distance_transform_edt(~hole) <= 3)


def test_small_photos_are_mirrored():
    image = picture(40, 24)
    hole = hole_in((40, 24), (10, 10, 15, 15))
    crop = single_crop(hole)
    assert crop.inner == Box(12, 20, 52, 44)
    x = make_network_input(image, no_hole(hole.shape), crop)[0][0]
    inner = x[12:52, 20:44]
    assert np.array_equal(x[12:52, 44:], inner[:, ::-1][:, :20])
    assert np.array_equal(x[12:52, :20], inner[:, ::-1][:, -20:])
    assert np.array_equal(x[:12], x[12:24][::-1])
    assert np.array_equal(x[52:], x[40:52][::-1])


def test_the_networks_output_on_known_pixels_is_not_used():
    hole = hole_in((150, 170), (20, 30, 141, 133))
    image = picture(*hole.shape)

    def make_predict(known_value):
        return lambda image, known: np.where(known, known_value, 0.25 + 0 * image)

    results = [fill_holes(image, hole, make_predict(v), SIZE) for v in (-9.0, 9.0)]
    assert np.array_equal(*results)


def test_filled_pixels_are_known_to_later_crops():
    hole = hole_in((64, 400), (20, 20, 40, 40), (20, 70, 40, 90), (20, 300, 40, 320))
    seen = []

    def predict(image, known):
        seen.append((image[0], known[0]))
        return white(image, known)

    fill_holes(picture(64, 400), hole, predict, 128, 0)
    assert len(seen) == 2  # the first two share a crop, the third is far away
    wide = hole_in((64, 300), (20, 10, 44, 290))
    seen.clear()
    fill_holes(picture(64, 300), wide, predict, 64, 0)
    (first, known), (second, later) = seen[:2]
    assert len(seen) > 2
    # The second crop starts in pixels that the first has filled: white and known.
    assert later[31, 0] == 1 and (second[31, 0] == 1).all()
    assert known[31, 0] == 1 and (first[31, 0] < 1).all()


def test_raw_is_the_networks_whole_output():
    hole = hole_in((150, 170), (20, 30, 141, 133))
    image = picture(*hole.shape)
    raw = np.empty_like(image)
    result = fill_holes(image, hole, white, SIZE, raw=raw)
    crop = crop_around(Box(20, 30, 141, 133), hole.shape, SIZE)
    outside = np.ones(hole.shape, np.bool_)
    outside[crop.box.slices] = False
    assert (raw[crop.box.slices] == 255).all()
    assert np.array_equal(raw[outside], image[outside])
    assert not np.array_equal(raw, result)


# The paste.


@pytest.mark.parametrize("feather", [0, 1, 4, 11, 12, 64])
def test_distances_are_euclidean(feather):
    rng = np.random.default_rng(feather)
    for shape, fraction in (((50, 70), 0.001), ((70, 50), 0.2), ((1, 30), 0.1)):
        hole = rng.random(shape) < fraction
        hole[rng.integers(shape[0]), rng.integers(shape[1])] = True
        expected = np.round(distance_transform_edt(~hole) ** 2).astype(int)
        actual = squared_distance(hole, feather).astype(int)
        near = expected <= feather**2
        assert np.array_equal(actual[near], expected[near])
        assert (actual[~near] > feather**2).all()


def test_paste_weights_fall_with_distance():
    hole = hole_in((64, 64), (20, 20, 40, 40))
    image = np.zeros((64, 64, 3), np.uint8)
    result = fill_holes(image, hole, white, SIZE, 6)[..., 0].astype(int)
    distance = distance_transform_edt(~hole)
    ordered = result[
        np.argsort(distance, axis=None) // 64, np.argsort(distance, axis=None) % 64
    ]
    assert (np.diff(ordered) <= 0).all()
    assert (result[hole] == 255).all()
    assert result[30, 40] > 200 and 0 < result[30, 45] < 30 and result[30, 46] == 0


# Errors.


@pytest.mark.parametrize(
    ("image", "mask", "options", "match"),
    [
        (np.zeros((4, 4)), (4, 4), {}, r"float64 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), (4, 4), {}, r"uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), (0, 4), {}, r"\[0, 4, 3\]"),
        (np.zeros((4, 6, 3), np.uint8), (6, 4), {}, "4x6 .* 6x4"),
        (np.zeros((4, 4, 3), np.uint8), (4, 4), {"feather": -1}, "feather .*-1"),
        (
            np.zeros((4, 4, 3), np.uint8),
            (4, 4),
            {"feather": 65},
            "feather .* 8 .* 64 .* 65",
        ),
        (np.zeros((4, 4, 3), np.uint8), (4, 4), {"feather": 1.5}, r"feather .*1\.5"),
        (np.zeros((4, 4, 3), np.uint8), (4, 4), {"crops": "two"}, "crops .*'two'"),
    ],
)
def test_wrong_arguments(image, mask, options, match):
    with pytest.raises(UserError, match=match):
        fill_holes(image, np.ones(mask, np.bool_), white, SIZE, **options)


def test_networks_that_return_nan():
    with pytest.raises(UserError, match="NaN"):
        fill_holes(
            picture(64, 64),
            hole_in((64, 64), (1, 1, 2, 2)),
            lambda *inputs: np.nan * white(*inputs),
            SIZE,
        )
