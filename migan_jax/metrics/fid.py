"""FID: Fréchet distance of two Gaussians fitted to features (Heusel et al., 2017)."""

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of features, in float64.

    The scatter is about the mean: plain sums of squares would cancel digits.
    """

    count: int
    mean: np.ndarray  # [features]
    scatter: np.ndarray  # sum of outer products of deviations, [features, features]

    @classmethod
    def empty(cls, features: int) -> Self:
        return cls(0, np.zeros(features), np.zeros((features, features)))

    def update(self, features: np.ndarray) -> Self:
        """Return the moments with more features, [N, features], added."""
        if not len(features):
            return self
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        deviations = features - mean
        return self.merge(type(self)(len(features), mean, deviations.T @ deviations))

    def merge(self, other: Self) -> Self:
        """Return the moments of both sets together."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        return type(self)(
            count,
            self.mean + delta * (other.count / count),
            self.scatter
            + other.scatter
            + np.outer(delta, delta) * (self.count * other.count / count),
        )

    @property
    def covariance(self) -> np.ndarray:
        return self.scatter / (self.count - 1)


def frechet_distance(
    mean: np.ndarray,
    covariance: np.ndarray,
    other_mean: np.ndarray,
    other_covariance: np.ndarray,
) -> float:
    """Return the squared distance, as FID does.

    The trace of the root of the covariances' product equals that of a symmetric matrix
    with the same eigenvalues. So it is real at any rank: a set with fewer images than
    features does not have full rank.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ other_covariance @ root)
    root_trace = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    delta = mean - other_mean
    traces = np.trace(covariance) + np.trace(other_covariance)
    return float(delta @ delta + traces - 2 * root_trace)


def fid_from_features(real: np.ndarray, fake: np.ndarray) -> float:
    """Compute FID from features, [N, features] and [M, features].

    Covariances of small sets are large but have few non-zero eigenvalues. There the
    trace of the root is the sum of the singular values of an N by M matrix.
    """
    features = real.shape[1]
    moments = [Moments.empty(features).update(values) for values in (real, fake)]
    if max(len(real), len(fake)) >= features or min(len(real), len(fake)) < 2:
        return fid(*moments)
    x, y = (
        (values - m.mean) / np.sqrt(m.count - 1)
        for values, m in zip((real, fake), moments, strict=True)
    )
    root_trace = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    delta = moments[0].mean - moments[1].mean
    return float(delta @ delta + (x**2).sum() + (y**2).sum() - 2 * root_trace)


def fid(real: Moments, fake: Moments) -> float:
    """Compute FID from moments; NaN if a set has fewer than two images."""
    if min(real.count, fake.count) < 2:
        return float("nan")
    return frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance)
