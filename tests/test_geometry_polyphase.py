"""Whole photos in tiles of every phase, and the mean over a square's symmetries."""

import jax.numpy as jnp
import numpy as np
import pytest
from pictures import hole_in, picture, white
from scipy.ndimage import distance_transform_edt, gaussian_filter

from migan_jax.errors import UserError
from migan_jax.geometry.ensemble import ensemble
from migan_jax.geometry.polyphase import fill_polyphase, merge_phases, split_phases

SIZE = 32
# (photo, phases): multiples of the size, others, a tie, smaller photos, a thin one.
PHOTOS = {
    (64, 96): (2, 3),
    (75, 111): (2, 3),
    (80, 33): (2, 1),
    (20, 70): (1, 2),
    (7, 9): (1, 1),
    (1, 90): (1, 3),
}
shapes = pytest.mark.parametrize(("shape", "phases"), PHOTOS.items(), ids=str)


def waves(height, width, channel):
    """A smooth function on a photo of any size, in [-1, 1]."""
    y, x = np.mgrid[:height, :width] + 0.5
    wave = 0.7 * np.sin(2 * x / width + channel) + 0.2 * (y / height - 0.5)
    return wave.astype(np.float32)


def smooth(height, width):
    return np.stack([waves(height, width, c) for c in range(3)], axis=-1)


def to_photo(image):
    return np.uint8(np.round(127.5 * (image + 1)))


class Recorder:
    """A network that blurs, and keeps what it is given."""

    def __init__(self):
        self.images, self.masks = [], []

    def __call__(self, image, known):
        assert image.shape == (1, SIZE, SIZE, 3) and known.shape == (1, SIZE, SIZE, 1)
        assert image.dtype == known.dtype == np.float32 and np.abs(image).max() <= 1
        self.images.append(image)
        self.masks.append(known)
        return gaussian_filter(image, (0, 2, 2, 0)) + 0.1


# Phases.


@pytest.mark.parametrize("phases", [(1, 1), (1, 3), (2, 1), (2, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("library", [np, jnp], ids=["numpy", "jax"])
def test_split_and_merge(library, phases):
    rows, columns = phases
    shape = 2, 5 * rows, 7 * columns, 3
    x = np.random.default_rng(0).random(shape, np.float32)
    tiles = split_phases(library.asarray(x), rows, columns)
    assert isinstance(tiles, type(library.asarray(x)))
    assert tiles.shape == (rows * columns, 2, 5, 7, 3)
    for a in range(rows):
        for b in range(columns):
            assert np.array_equal(tiles[a * columns + b], x[:, a::rows, b::columns])
    assert np.array_equal(merge_phases(tiles, rows, columns), x)


# Filling.


@shapes
def test_each_side_is_the_nearest_multiple(shape, phases):
    network, hole = Recorder(), np.ones(shape, np.bool_)
    tracked = []

    def track(tiles):
        tracked.extend(tiles)
        return tiles

    fill_polyphase(picture(*shape), hole, network, SIZE, track=track, warn=str)
    assert len(network.images) == len(tracked) == phases[0] * phases[1]


def test_photos_of_a_multiple_are_not_resized():
    hole, network = hole_in((64, 96), (20, 30, 41, 50)), Recorder()
    image = picture(*hole.shape)
    fill_polyphase(image, hole, network, SIZE, 3)
    known = merge_phases(np.stack(network.masks), 2, 3)[0]
    masked = merge_phases(np.stack(network.images), 2, 3)[0]
    assert np.array_equal(known[..., 0] > 0, distance_transform_edt(~hole) > 3)
    expected = (image / 127.5 - 1) * known
    np.testing.assert_allclose(masked, expected, rtol=0, atol=1e-6)


@shapes
def test_a_perfect_network_restores_the_photo(shape, phases):
    rows, columns = phases
    truth = smooth(rows * SIZE, columns * SIZE)[None]
    tiles = iter(split_phases(truth, rows, columns))
    image, hole = to_photo(smooth(*shape)), np.ones(shape, np.bool_)
    raw = np.empty_like(image)
    result = fill_polyphase(
        image, hole, lambda *inputs: next(tiles), SIZE, raw=raw, warn=str
    )
    assert next(tiles, None) is None
    assert np.abs(result.astype(int) - image).max() <= 2  # cubics at the edges
    assert np.array_equal(raw, result)
    if shape == (rows * SIZE, columns * SIZE):
        assert np.array_equal(result, image)


@shapes
@pytest.mark.parametrize("feather", [0, 4])
def test_nothing_of_the_hole_reaches_the_network(shape, phases, feather):
    height, width = shape
    box = height // 2, width // 3, height // 2 + 1, width // 2
    hole = hole_in(shape, box)
    one, other = picture(*shape), picture(*shape)
    other[hole] = 255 - other[hole]
    networks, results, raws = (Recorder(), Recorder()), [], []
    for image, network in zip((one, other), networks, strict=True):
        raw = np.empty_like(image)
        results.append(
            fill_polyphase(image, hole, network, SIZE, feather, raw, warn=str)
        )
        raws.append(raw)
    assert np.array_equal(*(network.images for network in networks))
    assert np.array_equal(*(network.masks for network in networks))
    assert np.array_equal(*results) and np.array_equal(*raws)
    for image, known in zip(networks[0].images, networks[0].masks, strict=True):
        assert set(np.unique(known)) <= {0, 1}
        assert (image[known[..., 0] == 0] == 0).all()


@shapes
@pytest.mark.parametrize("feather", [0, 3])
def test_only_the_hole_and_its_feather_change(shape, phases, feather):
    hole = hole_in(shape, (0, shape[1] // 3, 5, shape[1] // 3 + 6))
    image = picture(*shape)
    result = fill_polyphase(image, hole, white, SIZE, feather, warn=str)
    far = distance_transform_edt(~hole) > feather
    assert np.array_equal(result[far], image[far])
    assert (result[hole] > image[hole]).all()


def test_raw_is_the_networks_whole_output():
    hole = hole_in((75, 111), (20, 30, 41, 50))
    image = picture(*hole.shape)
    raw = np.empty_like(image)
    result = fill_polyphase(image, hole, white, SIZE, raw=raw)
    assert (raw == 255).all() and not (result == 255).all()


def test_inputs_stay_in_range_beside_sharp_edges():
    image, network = picture(75, 111), Recorder()  # which checks the range
    image = np.where(image > 110, 255, 0).astype(np.uint8)
    hole = hole_in((75, 111), (20, 30, 41, 50))
    fill_polyphase(image, hole, network, SIZE)
    assert np.max(network.images) == 1 and np.min(network.images) == -1


def test_known_pixels_keep_the_photo_not_the_networks_output():
    hole = hole_in((75, 111), (20, 30, 41, 50))
    image = picture(*hole.shape)

    def make_predict(value):
        return lambda image, known: np.where(known, value, 0.25 + 0 * image)

    results = [fill_polyphase(image, hole, make_predict(v), SIZE) for v in (-9.0, 9.0)]
    assert np.array_equal(*results)


def test_tiles_without_a_hole_are_skipped():
    hole = hole_in((128, 128), (40, 40, 41, 42))
    image, network = picture(128, 128), Recorder()
    raw = np.empty_like(image)
    fill_polyphase(image, hole, network, SIZE, 0, raw)
    assert len(network.images) == 2
    phases = np.ones((4, 4), np.bool_)
    phases[0, :2] = False
    kept = np.tile(phases, (SIZE, SIZE))
    assert np.array_equal(raw[kept], image[kept]) and (raw != image)[~kept].any()


def test_without_a_hole_the_result_is_a_copy():
    image = picture(40, 50)
    raw = np.empty_like(image)
    result = fill_polyphase(image, hole_in((40, 50)), white, SIZE, raw=raw)
    assert np.array_equal(result, image) and np.array_equal(raw, image)
    assert not np.shares_memory(result, image)


def test_large_holes_get_one_warning():
    hole, messages = np.zeros((64, 64), np.bool_), []
    hole[:40] = True
    fill_polyphase(picture(64, 64), hole, white, SIZE, warn=messages.append)
    assert not messages
    hole[:60] = True
    fill_polyphase(picture(64, 64), hole, white, SIZE, warn=messages.append)
    assert len(messages) == 1


def test_wrong_arguments_and_outputs():
    image, hole = picture(40, 50), hole_in((40, 50), (10, 10, 20, 20))
    for wrong in ((image[..., 0], hole), (image, hole.T), (image, hole * 1)):
        with pytest.raises(UserError):
            fill_polyphase(*wrong, white, SIZE)
    with pytest.raises(UserError, match="feather"):
        fill_polyphase(image, hole, white, SIZE, -1)
    for value in (np.nan, np.inf):

        def broken(image, known, value=value):
            return image + value

        for network in (broken, ensemble(broken)):
            with pytest.raises(UserError, match="NaN"):
                fill_polyphase(image, hole, network, SIZE)


# Ensembles.


def square(seed=0):
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (1, SIZE, SIZE, 3)).astype(np.float32)
    known = (rng.random((1, SIZE, SIZE, 1)) < 0.7).astype(np.float32)
    return image * known, known


def test_the_ensemble_of_an_equivariant_network_equals_it():
    def predict(image, known):
        return gaussian_filter(image, (0, 1, 1, 0)) - 0.5 * known

    expected = np.clip(predict(*square()), -1, 1)
    actual = ensemble(predict)(*square())
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_the_ensemble_is_the_mean_of_five_outputs():
    """Pixel by pixel: a ramp that does not turn with the image."""
    ramp = np.linspace(-1.5, 1.5, SIZE * SIZE).reshape(SIZE, SIZE)[None, ..., None]
    seen = []

    def predict(image, known):
        assert image.shape == (1, SIZE, SIZE, 3) and known.shape == (1, SIZE, SIZE, 1)
        seen.append((image, known))
        return 0.5 * image + ramp - 0.25 * known

    actual = ensemble(predict)(*square())
    assert len(seen) == 5
    image, known = square()
    base, limits = (0.5 * image - 0.25 * known)[0], (-1, 1)
    expected, last = np.zeros((SIZE, SIZE, 3)), SIZE - 1
    for i in range(SIZE):
        for j in range(SIZE):
            # Where the pixel is in the square: turned, four times, and mirrored.
            places = [(i, j), (last - j, i), (last - i, last - j), (j, last - i)]
            for y, x in (*places, (i, last - j)):
                expected[i, j] += np.clip(base[i, j] + ramp[0, y, x], *limits) / 5
    np.testing.assert_allclose(actual[0], expected, rtol=0, atol=1e-6)
