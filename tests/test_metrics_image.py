"""PSNR, SSIM and L1 against scikit-image, over images and over holes."""

import numpy as np
import pytest

from migan_jax.metrics.image import NAMES, SSIM_RADIUS, image_metrics


def pair(shape=(2, 40, 53), noise=10, seed=0):
    """Return images, changed images, and the holes in which they differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[1], : shape[2]]
    smooth = 120 + 80 * np.sin(x / 9)[None, ..., None] * np.cos(y / 7)[None, ..., None]
    truths = np.broadcast_to(smooth, (*shape, 3)) + rng.normal(0, 3, (*shape, 3))
    holes = np.zeros(shape, bool)
    holes[0, 8:20, 10:30] = True
    holes[1:, :, -2:] = True
    results = truths + rng.normal(0, noise, (*shape, 3)) * holes[..., None]
    return *(np.clip(x, 0, 255).astype(np.uint8) for x in (truths, results)), holes


def test_scikit_image_agrees():
    skimage = pytest.importorskip("skimage.metrics")
    truths, results, holes = pair()
    ours = image_metrics(truths, results, holes)
    for index, (truth, result, hole) in enumerate(
        zip(truths, results, holes, strict=True)
    ):
        psnr = skimage.peak_signal_noise_ratio(truth, result)
        inside = skimage.peak_signal_noise_ratio(truth[hole], result[hole])
        ssim, values = skimage.structural_similarity(
            truth,
            result,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=-1,
            full=True,
        )
        inner = (slice(SSIM_RADIUS, -SSIM_RADIUS),) * 2
        of_hole = values[inner][hole[inner]].mean() if hole[inner].any() else np.nan
        expected = psnr, inside, ssim, of_hole
        found = [ours[name][index] for name in NAMES[:4]]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_l1_is_a_fraction_of_the_range():
    truths, _, holes = pair()
    results = truths.copy()
    results[holes] ^= 255
    expected = np.abs(truths.astype(float) - results)[holes].mean() / 255
    both = image_metrics(truths[:1], results[:1], holes[:1])
    ratio = holes[0].mean()
    assert both["hole_l1"][0] == pytest.approx(both["l1"][0] / ratio)
    of_all = image_metrics(truths, results, holes)
    weights = holes.sum(axis=(1, 2))
    assert np.average(of_all["hole_l1"], weights=weights) == pytest.approx(expected)


def test_undefined_metrics_are_nan():
    truths, results, holes = pair()
    holes[0] = False
    metrics = image_metrics(truths, results, holes)
    for name in NAMES:
        assert np.isnan(metrics[name][0]) == name.startswith("hole"), name
    tiny = image_metrics(truths[:, :10], results[:, :10], holes[:, :10])
    assert np.isnan(tiny["ssim"]).all() and np.isfinite(tiny["psnr"][1])
    same = image_metrics(truths, truths, holes)
    nearly = truths.copy()
    nearly[1, 3, -1, 0] ^= 1
    off_by_one = image_metrics(truths, nearly, holes)
    for name in ("psnr", "hole_psnr"):
        assert same[name][1] == off_by_one[name][1] > 60
    assert same["l1"][1] == 0
    assert same["ssim"][1] == pytest.approx(1)


def test_metrics_do_not_depend_on_the_batch():
    truths, results, holes = pair((5, 24, 24))
    together = image_metrics(truths, results, holes)
    for index in range(5):
        one = slice(index, index + 1)
        alone = image_metrics(truths[one], results[one], holes[one])
        for name in NAMES:
            np.testing.assert_allclose(
                alone[name][0], together[name][index], rtol=1e-12
            )
