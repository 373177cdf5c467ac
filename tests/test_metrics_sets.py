"""FID, KID, P-IDS and U-IDS against direct computations and known values."""

import warnings

import numpy as np
import pytest

from migan_jax.metrics.fid import Moments, fid, fid_from_features, frechet_distance
from migan_jax.metrics.ids import Decisions, decide
from migan_jax.metrics.kid import kid

SPLITS = (0, 1, 7, 8, 30, 31, 80)  # starts of uneven subsets


def features(count, size, seed, shift=0.0):
    """Return correlated features, like a network's."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(size, size)) / size**0.5
    return (rng.normal(size=(count, size)) @ mixing + shift).astype(np.float32)


def moments(values):
    return Moments.empty(values.shape[1]).update(values)


def test_fid_equals_pytorch_fid():
    pytest.importorskip("torch")
    pytest.importorskip("peers")
    from pytorch_fid.fid_score import calculate_frechet_distance

    for count in (200, 40):  # also fewer images than features
        real, fake = features(count, 64, 0), features(count, 64, 1, shift=0.1)
        wide = real.astype(np.float64), fake.astype(np.float64)
        statistics = [x for one in wide for x in (one.mean(axis=0), np.cov(one.T))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecated arguments of scipy
            theirs = calculate_frechet_distance(*statistics)
        ours = fid(moments(real), moments(fake))
        tolerance = (
            1e-6 if count > 64 else 1e-3
        )  # their root of a singular product is inexact
        assert ours == pytest.approx(theirs, rel=tolerance)


def test_known_distances():
    mean, covariance = np.array([1.0, 2.0]), np.diag([4.0, 9.0])
    same = frechet_distance(mean, covariance, mean, covariance)
    assert same == pytest.approx(0, abs=1e-12)
    moved = frechet_distance(mean, covariance, mean + np.array([3, 4]), covariance)
    assert moved == pytest.approx(25)
    wider = frechet_distance(mean, covariance, mean, 4 * covariance)
    assert wider == pytest.approx((2 * 2 - 2) ** 2 + (2 * 3 - 3) ** 2)
    assert np.isnan(fid(Moments.empty(2), Moments.empty(2)))


def test_merged_moments_equal_the_whole():
    values = features(100, 16, 2)
    whole = moments(values)
    parts = [moments(part) for part in np.split(values, SPLITS)]
    for order in (parts, parts[::-1]):
        merged = Moments.empty(16)
        for part in order:
            merged = merged.merge(part)
        assert merged.count == 100
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-10)
    np.testing.assert_allclose(whole.covariance, np.cov(values.T), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("counts", [(30, 21), (2, 5), (63, 70), (200, 100), (1, 5)])
def test_fid_of_small_sets(counts):
    real, fake = features(counts[0], 64, 0), features(counts[1], 64, 1, shift=0.1)
    expected = fid(moments(real), moments(fake))
    found = fid_from_features(real, fake)
    assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_a_large_mean_keeps_precision():
    values = features(100, 8, 3).astype(np.float64)
    near, far = moments(values), moments(values + 1e5)
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=1e-8, atol=1e-9)


def test_kid_is_the_sum_over_pairs():
    real, fake = features(30, 12, 0), features(21, 12, 1, shift=0.2)

    def kernel(a, b):
        return (np.dot(a.astype(float), b) / 12 + 1) ** 3

    def within(x):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
        return np.mean([kernel(x[i], x[j]) for i, j in pairs])

    between = np.mean([[kernel(a, b) for b in fake] for a in real])
    expected = within(real) + within(fake) - 2 * between
    assert kid(real, fake) == pytest.approx(expected, rel=1e-9)
    assert np.isnan(kid(real[:1], fake))


def test_kid_is_unbiased():
    """It is zero on average for small sets of one distribution."""
    estimates = [kid(features(20, 8, s), features(20, 8, s + 500)) for s in range(200)]
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates)) < 3 * error


def test_kid_does_not_depend_on_the_block_size(monkeypatch):
    real, fake = features(50, 6, 0), features(50, 6, 1)
    whole = kid(real, fake)
    monkeypatch.setattr("migan_jax.metrics.kid.BLOCK_SIZE", 7)
    assert kid(real, fake) == pytest.approx(whole, rel=1e-12)


def test_scores_of_equal_and_of_separate_sets():
    pytest.importorskip("sklearn")
    real = features(40, 4, 0)
    same = decide(real, real).scores()
    assert same.unpaired == 0.5 and same.paired == 0
    separate = decide(real, real + 100).scores()
    assert separate == (0, 0)


def test_scores_count_wrong_decisions():
    decisions = Decisions(np.array([1, 2, -1, 3.0]), np.array([2, -1, -2, 4.0]))
    scores = decisions.scores()
    assert scores.paired == 0.5  # the first and the last
    assert scores.unpaired == 3 / 8  # one photo, two completions
    sample = decisions.scores(np.array([1, 1, 2]))
    assert sample.paired == 0 and sample.unpaired == pytest.approx(1 / 6)


def test_scores_equal_those_of_scikit_learn():
    svm = pytest.importorskip("sklearn.svm")
    real, fake = features(60, 5, 0), features(60, 5, 1, shift=0.3)
    model = svm.LinearSVC(dual=False)
    both, labels = np.concatenate([real, fake]).astype(float), [1] * 60 + [0] * 60
    model.fit(both, labels)
    scores = decide(real, fake).scores()
    assert scores.unpaired == pytest.approx(1 - model.score(both, labels))
    assert 0 < scores.paired < 0.5 < 1 - scores.unpaired
