"""FID: Fréchet distance of two Gaussians fitted to features (Heusel et al., 2017)."""

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of features seen so far, in float64.

    Kept about the mean: sums of squares would lose the digits that the mean has.
    """

    count: int
    mean: np.ndarray  # [features]
    scatter: np.ndarray  # sum of outer products of deviations, [features, features]

    @classmethod
    def empty(cls, features: int) -> Self:
        return cls(0, np.zeros(features), np.zeros((features, features)))

    def update(self, features: np.ndarray) -> Self:
        """With more of them, [N, features]."""
        if not len(features):
            return self
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        deviations = features - mean
        return self.merge(type(self)(len(features), mean, deviations.T @ deviations))

    def merge(self, other: Self) -> Self:
        """As if all had been seen by one."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        return type(self)(
            count,
            self.mean + apart * (other.count / count),
            self.scatter
            + other.scatter
            + np.outer(apart, apart) * (self.count * other.count / count),
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
    """Squared, as FID is.

    The trace of the root of the product of two covariances is that of a symmetric
    matrix of the same eigenvalues. So it is real whatever the rank, which a set with
    fewer pictures than features does not have in full.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    common = np.linalg.eigvalsh(root @ other_covariance @ root)
    shared = np.sqrt(np.maximum(common, 0)).sum()
    apart = mean - other_mean
    traces = np.trace(covariance) + np.trace(other_covariance)
    return float(apart @ apart + traces - 2 * shared)


def fid_of_features(real: np.ndarray, fake: np.ndarray) -> float:
    """The same from the features themselves, [N, features] and [M, features].

    Of small sets the covariances are large, and have few eigenvalues that are not zero:
    their shared trace is the sum of the singular values of an N by M matrix.
    """
    features = real.shape[1]
    sets = [Moments.empty(features).update(values) for values in (real, fake)]
    if max(len(real), len(fake)) >= features or min(len(real), len(fake)) < 2:
        return fid(*sets)
    ours, theirs = (
        (values - moments.mean) / np.sqrt(moments.count - 1)
        for values, moments in zip((real, fake), sets, strict=True)
    )
    shared = np.linalg.svd(ours @ theirs.T, compute_uv=False).sum()
    apart = sets[0].mean - sets[1].mean
    return float(apart @ apart + (ours**2).sum() + (theirs**2).sum() - 2 * shared)


def fid(real: Moments, fake: Moments) -> float:
    """NaN where either set has less than two pictures."""
    if min(real.count, fake.count) < 2:
        return float("nan")
    return frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance)
