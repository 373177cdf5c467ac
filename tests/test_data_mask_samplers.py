"""Random masks on host and device: the references' statistics."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from migan_jax.data import mask_samplers
from migan_jax.data.mask_samplers import (
    FREE_FORM,
    HOLE_BINS,
    MIN_MASK_SIZE,
    SAMPLERS,
    BoxMask,
    Brush,
    CellularAutomaton,
    Irregular,
    Rectangles,
    mask_on_host,
    masks_on_device,
)

pytestmark = pytest.mark.usefixtures("optimised")

GOLDEN = Path(__file__).parent / "golden"
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
# Hole ratios of the reference sampler, by size: count, mean, deviation, quantiles.
REFERENCE = {
    256: (
        *(3000, 0.7293, 0.1812),
        (0.172, 0.368, 0.469, 0.630, 0.770, 0.866, 0.924, 0.948, 0.981),
    ),
    512: (
        *(2000, 0.6447, 0.1807),
        (0.155, 0.300, 0.391, 0.539, 0.669, 0.783, 0.857, 0.894, 0.953),
    ),
}
# Hole ratios of the others at 256: mean, deviation, 5% and 95% quantiles.
OTHERS = {
    "brush": (0.150, 0.079, 0.036, 0.289),
    "box": (0.248, 0.083, 0.128, 0.402),
    "cellular_automaton": (0.512, 0.072, 0.373, 0.623),
    "short_strokes": (0.395, 0.060, 0.295, 0.494),
    "half_box_and_brush": (0.358, 0.061, 0.272, 0.469),
}
# Brushes are slow; free-form masks, which use one, are tested anyway. So are irregular
# masks of all bins, instead of each one's.
ONE_BIN = {f"irregular_{low}_{high}": (low, high) for low, high in HOLE_BINS[1:5]}
NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.full
        if "brush" in name or name == "deepgin" or name in ONE_BIN
        else (),
    )
    for name in SAMPLERS
]
# Tolerance, in deviations of the sampling error. The seeds are fixed.
SIGMAS = 3.5


def keys(count, seed=0):
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return fold(jax.random.key(seed), jnp.arange(count))


def host_masks(name, count, size, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([mask_on_host(SAMPLERS[name], rng, size) for _ in range(count)])


def device_masks(name, count, size, seed=0, batch=50):
    draw = jax.jit(lambda keys: masks_on_device(SAMPLERS[name], keys, size))
    batches = keys(count, seed).reshape(-1, batch)
    return np.concatenate([np.asarray(draw(some)) for some in batches])[..., 0]


def hole_ratios(masks):
    return 1 - masks.reshape(len(masks), -1).mean(axis=1)


def check_moments(ratios, mean, deviation, count):
    error = SIGMAS * deviation * np.sqrt(1 / len(ratios) + 1 / count)
    assert abs(ratios.mean() - mean) < error
    assert abs(ratios.std() - deviation) < error


def check_quantiles(ratios, quantiles, values, count):
    for quantile, value in zip(quantiles, values, strict=True):
        variance = quantile * (1 - quantile) * (1 / len(ratios) + 1 / count)
        below = (ratios < value).mean()
        assert abs(below - quantile) < SIGMAS * np.sqrt(variance), quantile


@pytest.mark.parametrize("size", [256, pytest.param(512, marks=pytest.mark.full)])
def test_host_free_form_masks_match_the_reference(size):
    count, mean, deviation, quantiles = REFERENCE[size]
    ratios = hole_ratios(host_masks("free_form", 3000, size))
    check_moments(ratios, mean, deviation, count)
    check_quantiles(ratios, QUANTILES, quantiles, count)


@pytest.mark.parametrize("name", ["half_box", "centre_box"])
def test_boxes_of_half_the_size(name):
    """On host and device a quarter is one box, uniformly anywhere or in the centre."""
    size, count = 16, 1000
    for masks in (host_masks(name, count, size), device_masks(name, count, size)):
        np.testing.assert_array_equal(hole_ratios(masks), 0.25)
        edges = [(masks.min(axis) == 0).argmax(axis=1) for axis in (2, 1)]
        for first, along in zip(edges, (1, 2), strict=True):
            span = (masks.min(3 - along) == 0).sum(axis=1)
            np.testing.assert_array_equal(span, size // 2)
            if name == "centre_box":
                np.testing.assert_array_equal(first, size // 4)
            else:
                counts = np.bincount(first, minlength=size // 2)
                assert len(counts) == size // 2
                expected = count / len(counts)
                assert abs(counts - expected).max() < 4 * np.sqrt(expected)
        if name == "half_box":
            assert abs(np.corrcoef(edges)[0, 1]) < 4 / np.sqrt(count)


def test_a_union_holds_all_of_its_parts():
    centre = SAMPLERS["centre_box"]
    union = mask_samplers.Union((SAMPLERS["half_box"], centre))
    rng = np.random.default_rng(0)
    host = np.stack([union.hole_on_host(rng, 16) for _ in range(200)])
    draw = jax.jit(jax.vmap(lambda key: union.hole_on_device(key, 16)))
    for holes in (host, np.asarray(draw(keys(200)))):
        assert holes[:, centre.hole_on_host(rng, 16)].all()
        # Each box is a quarter; they share 0.14 on average.
        assert abs(holes.mean() - 0.36) < 0.02
    assert hole_ratios(host_masks("half_box_and_brush", 50, 64)).min() >= 0.25


@pytest.mark.full  # follows from the tests of the host and of host against device
@pytest.mark.parametrize(("size", "drawn"), [(256, 1000), (512, 250)])
def test_device_free_form_masks_match_the_reference(size, drawn):
    count, mean, deviation, quantiles = REFERENCE[size]
    ratios = hole_ratios(device_masks("free_form", drawn, size))
    check_moments(ratios, mean, deviation, count)
    check_quantiles(ratios, QUANTILES, quantiles, count)


@pytest.mark.parametrize("name", OTHERS)
def test_other_host_masks_match_the_references(name):
    mean, deviation, low, high = OTHERS[name]
    ratios = hole_ratios(host_masks(name, 3000, 256))
    check_moments(ratios, mean, deviation, 3000)
    check_quantiles(ratios, (0.05, 0.95), (low, high), 3000)


@pytest.mark.parametrize("name", NAMES)
def test_device_and_host_have_the_same_distribution(name):
    """Compare hole ratios (Kolmogorov-Smirnov) and the hole's probability by region."""
    size, count = 64, 1000
    host = host_masks(name, count, size).astype(np.float32)
    device = device_masks(name, count, size)
    ordered = np.sort(hole_ratios(host)), np.sort(hole_ratios(device))
    points = np.concatenate(ordered)
    below = [np.searchsorted(ratios, points, "right") / count for ratios in ordered]
    assert np.abs(below[0] - below[1]).max() < 1.95 * np.sqrt(2 / count)
    blocks = [m.reshape(count, 8, 8, 8, 8).mean((2, 4)) for m in (host, device)]
    error = np.sqrt(sum(block.var(axis=0) for block in blocks) / count)
    difference = np.abs(blocks[0].mean(axis=0) - blocks[1].mean(axis=0))
    assert (difference < 4.5 * error + 1e-3).all()


def test_irregular_masks_are_uniform_over_bins():
    """On host and device. A bin includes its lower edge."""
    count, size, sampler = 600, 16, SAMPLERS["irregular"]
    rng = np.random.default_rng(0)
    draw = jax.jit(jax.vmap(lambda key: sampler.hole_on_device(key, size)))
    host = np.stack([sampler.hole_on_host(rng, size) for _ in range(count)])
    for holes in (host, np.asarray(draw(keys(count)))):
        pixels = holes.sum(axis=(1, 2))
        assert pixels.min() > 0
        found = np.bincount(10 * pixels // size**2, minlength=7)
        expected = count / 6
        assert found[6:].sum() == 0
        assert abs(found[:6] - expected).max() < 4 * np.sqrt(expected * 5 / 6)


@pytest.mark.parametrize("name", ONE_BIN)
def test_masks_of_one_bin(name):
    low, high = ONE_BIN[name]
    ratios = hole_ratios(host_masks(name, 100, 32))
    assert low / 100 <= ratios.min() and ratios.max() < high / 100
    assert SAMPLERS[name] == Irregular(((low, high),))  # whose device draws alike


def test_strokes_of_irregular_masks_are_rotated_and_dilated():
    """Those of the brush go to the right, and are up to 40 pixels wide at 256."""
    irregular, rng, count = Irregular(), np.random.default_rng(0), 400

    def draw(path_on_host):
        paths = [path_on_host(rng, 256) for _ in range(count)]
        steps = [np.subtract(points[-1], points[0]) for points, _ in paths]
        return np.array(steps), np.array([width for _, width in paths])

    steps, widths = draw(irregular.brush.path_on_host)
    assert (steps[:, 0] >= 0).all() and widths.max() <= 40
    steps, widths = draw(irregular._path_on_host)
    directions = np.arctan2(*steps.T)
    for multiple in (1, 2, 4):
        assert abs(np.exp(multiple * 1j * directions).mean()) < 3 / np.sqrt(count)
    assert 12 <= widths.min() and 45 < widths.max() <= 56
    assert abs(widths.mean() - (12 + 40) / 2 - 8) < 2


def stroke_widths(holes):
    """Return twice the deepest pixel's distance, of strokes that miss the border."""
    border = [holes[:, 0], holes[:, -1], holes[:, :, 0], holes[:, :, -1]]
    inside = holes[~np.concatenate(border, axis=1).any(axis=1)]
    return np.array([2 * ndimage.distance_transform_edt(hole).max() for hole in inside])


@pytest.mark.parametrize(
    ("brush", "size", "widths"),
    [
        (Brush(), 128, (6, 20)),
        pytest.param(Brush(), 256, (12, 40), marks=pytest.mark.full),
        # The reference does not scale these widths.
        (FREE_FORM.parts[-1], 192, (12, 48)),
        pytest.param(FREE_FORM.parts[-1], 256, (12, 48), marks=pytest.mark.full),
    ],
)
def test_stroke_widths(brush, size, widths):
    """Widths of single segments are uniform between the bounds, on host and device."""
    one = dataclasses.replace(brush, strokes=(1, 2), segments=(1, 2))
    rng = np.random.default_rng(size)
    draw = jax.jit(jax.vmap(lambda key: one.hole_on_device(key, size)))
    host = stroke_widths(np.stack([one.hole_on_host(rng, size) for _ in range(500)]))
    device = stroke_widths(np.asarray(draw(keys(500))))
    even, below = np.arange(*widths), []
    for drawn in (host, device):
        assert len(drawn) > 100  # the others touch the border, broad ones more often
        assert even.mean() - 4 < drawn.mean() < even.mean() + 2
        assert widths[0] - 2 < drawn.min() < widths[0] + 3
        assert widths[1] - 6 < drawn.max() < widths[1] + 3
        below.append(np.searchsorted(np.sort(drawn), even) / len(drawn))
    limit = 1.95 * np.sqrt(1 / len(host) + 1 / len(device))  # one in a thousand
    assert np.abs(below[0] - below[1]).max() < limit


@pytest.mark.parametrize("width", [12, 13, 30, 47])
def test_device_path_matches_pillow(width):
    rng = np.random.default_rng(width)
    size, wrong, excess, area = 128, 0, 0, 0
    for _ in range(20):
        points = rng.integers(0, size, (6, 2))
        image = Image.new("1", (size, size))
        draw = ImageDraw.Draw(image)
        corners = [tuple(map(int, point)) for point in points[:5]]
        draw.line(corners, fill=1, width=width)
        for x, y in corners:
            box = (x - width // 2, y - width // 2, x + width // 2, y + width // 2)
            draw.ellipse(box, fill=1)
        expected = np.asarray(image)
        path = jnp.asarray(points, jnp.float32)  # its last point is unused
        actual = mask_samplers._paint_path(path, 4, *[jnp.float32(width)] * 2, size)
        wrong += (np.asarray(actual) != expected).sum()
        excess += int(actual.sum()) - expected.sum()
        area += expected.sum()
    assert wrong < 0.7 * area / width  # on the outline only
    assert abs(excess) < 0.015 * area


def test_path_of_one_point_is_a_disc():
    points = jnp.full((3, 2), 30.0)
    hole = mask_samplers._paint_path(points, 2, *[jnp.float32(12)] * 2, 64)
    assert 100 < hole.sum() < 150


@pytest.mark.parametrize("votes", [1, 2, 6])
def test_majority_vote_is_a_median_filter(votes):
    bits = np.random.default_rng(0).random((40, 40)) < 0.5
    expected, host, device = bits, bits, jnp.asarray(bits)
    for _ in range(votes):
        expected = ndimage.median_filter(expected, 3, mode="constant", cval=0)
        host = mask_samplers._majority_vote(host, np)
        device = mask_samplers._majority_vote(device, jnp)
    assert np.array_equal(host, expected)
    assert np.array_equal(device, expected)


def test_enlarged_cells_are_dilated_by_a_cross():
    bits = np.random.default_rng(0).random((10, 10)) < 0.3
    large = bits.repeat(4, axis=0).repeat(4, axis=1)
    expected = ndimage.binary_dilation(large)
    assert np.array_equal(mask_samplers._enlarge(bits, 4, np), expected)
    assert np.array_equal(mask_samplers._enlarge(jnp.asarray(bits), 4, jnp), expected)
    assert np.array_equal(mask_samplers._enlarge(bits, 1, np), bits)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("votes", [2, 6])
def test_automaton_equals_the_reference(scale, votes):
    """The organisers' script, for given bits."""
    with np.load(GOLDEN / "cellular_automata.npz") as arrays:
        bits, expected = (
            np.unpackbits(arrays[f"{name}_{scale}_{votes}"], axis=1).astype(np.bool_)
            for name in ("bits", "hole")
        )
    for _ in range(votes):
        bits = mask_samplers._majority_vote(bits, np)
    assert np.array_equal(mask_samplers._enlarge(bits, scale, np), expected)


# Means of hole ratios at 256, by scale, after 2 to 6 votes; their deviation.
BY_SCALE = {
    1: ((0.490, 0.490, 0.488, 0.488, 0.485), 0.011),
    2: ((0.636, 0.607, 0.590, 0.578, 0.576), 0.04),
    4: ((0.547, 0.525, 0.513, 0.507, 0.504), 0.04),
    8: ((0.474, 0.456, 0.436, 0.412, 0.417), 0.08),
}


@pytest.mark.parametrize("scale", BY_SCALE)
def test_automaton_by_scale_and_votes(scale):
    means, deviation = BY_SCALE[scale]
    rng = np.random.default_rng(scale)
    for votes, mean in enumerate(means, 2):
        automaton = CellularAutomaton((scale,), (votes, votes + 1))
        ratios = [automaton.hole_on_host(rng, 256).mean() for _ in range(30)]
        assert abs(np.mean(ratios) - mean) < 4 * deviation / np.sqrt(30)
        assert all(abs(ratio - mean) < 4 * deviation for ratio in ratios)


def test_a_mixture_draws_each_of_its_parts():
    parts = Rectangles(1, 0.2), BoxMask((0.8, 0.8))
    mixture = mask_samplers.Mixture(parts)
    rng = np.random.default_rng(0)
    host = np.stack([mixture.hole_on_host(rng, 32) for _ in range(200)])
    draw = jax.jit(jax.vmap(lambda key: mixture.hole_on_device(key, 32)))
    for holes in (host, np.asarray(draw(keys(200)))):
        assert 0.35 < (holes.mean((1, 2)) > 0.5).mean() < 0.65


@pytest.mark.parametrize(
    "sampler",
    [
        Rectangles(1, 0.1),
        pytest.param(Rectangles(4, 3.0), marks=pytest.mark.full),
        pytest.param(Brush((0, 2), (1, 2), (100, 101)), marks=pytest.mark.full),
    ],
)
def test_uniform_masks_are_redrawn(sampler):
    """Many holes of these samplers are empty or everything."""
    size = 32
    draw = jax.jit(jax.vmap(lambda key: sampler.hole_on_device(key, size)))
    holes = draw(keys(200))
    uniform = holes.all((1, 2)) | ~holes.any((1, 2))
    assert 0.1 < uniform.mean()
    device = jax.jit(masks_on_device, static_argnums=(0, 2))(sampler, keys(200), size)
    rng = np.random.default_rng(0)
    host = np.stack([mask_on_host(sampler, rng, size) for _ in range(200)])
    for masks in (np.asarray(device[..., 0]), host):
        means = masks.mean((1, 2))
        assert (means > 0).all() and (means < 1).all()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in ("free_form", "box") else pytest.mark.full
        )
        for name in SAMPLERS
    ],
)
def test_mask_depends_only_on_its_key(name):
    """At the minimum size too, masks are not redrawn for ever."""
    draw = jax.jit(masks_on_device, static_argnums=(0, 2))
    masks = draw(SAMPLERS[name], keys(64), MIN_MASK_SIZE)
    assert (
        masks.shape == (64, MIN_MASK_SIZE, MIN_MASK_SIZE, 1)
        and masks.dtype == jnp.float32
    )
    assert set(np.unique(masks)) == {0, 1}
    assert np.array_equal(
        draw(SAMPLERS[name], keys(64)[::-1], MIN_MASK_SIZE), masks[::-1]
    )
    distinct = len({mask.tobytes() for mask in np.asarray(masks)})
    assert distinct == 1 if name == "centre_box" else distinct > 4


@pytest.mark.parametrize("name", SAMPLERS)
def test_smallest_host_masks_have_holes(name):
    sampler, rng = SAMPLERS[name], np.random.default_rng(0)
    holes = np.stack([sampler.hole_on_host(rng, MIN_MASK_SIZE) for _ in range(300)])
    assert (holes.any(axis=(1, 2)) & ~holes.all(axis=(1, 2))).any()


@pytest.mark.full  # test_data_transforms.py tests simpler ones
def test_masks_are_the_same_on_eight_devices():
    draw = jax.jit(masks_on_device, static_argnums=(0, 2))
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = draw(SAMPLERS["free_form"], jax.device_put(keys(8), spread), 16)
    assert len(sharded.sharding.device_set) == 8
    assert np.array_equal(sharded, draw(SAMPLERS["free_form"], keys(8), 16))


@pytest.mark.parametrize("name", SAMPLERS)
def test_host_masks_depend_on_the_seed(name):
    first, again = (host_masks(name, 3, 64, seed=5) for _ in range(2))
    assert first.dtype == np.uint8 and set(np.unique(first)) == {0, 1}
    assert np.array_equal(first, again)
    is_fixed = name == "centre_box"
    assert np.array_equal(first, host_masks(name, 3, 64, seed=6)) == is_fixed


def test_samplers_are_hashable_values():
    """So they can be static arguments of compiled functions."""
    brush = dataclasses.replace(Brush(), widths=(5, 9))
    assert brush != Brush() and hash(Brush()) == hash(Brush())
    assert CellularAutomaton(scales=(2,)) != CellularAutomaton()
