"""KID: squared maximum mean discrepancy of features (Bińkowski et al., 2018).

Its estimate is unbiased, so it means something for sets that are too small for FID.
"""

import numpy as np

BLOCK = 2048  # rows whose products are in memory at a time


def kid(real: np.ndarray, fake: np.ndarray) -> float:
    """Over all pairs of both sets, with the cubic kernel; NaN for less than two.

    Args:
      real: features, [N, features].
      fake: features, [M, features]; the numbers may differ.
    """
    if min(len(real), len(fake)) < 2:
        return float("nan")
    real, fake = (x.astype(np.float64) for x in (real, fake))
    between = _kernel_sum(real, fake) / (len(real) * len(fake))
    return _within(real) + _within(fake) - 2 * between


def _within(features: np.ndarray) -> float:
    """Mean over pairs of different pictures."""
    count = len(features)
    own = _kernel((features**2).sum(axis=1), features.shape[1]).sum()
    return (_kernel_sum(features, features) - own) / (count * (count - 1))


def _kernel_sum(first: np.ndarray, second: np.ndarray) -> float:
    parts = [
        _kernel(first[start : start + BLOCK] @ second.T, first.shape[1]).sum()
        for start in range(0, len(first), BLOCK)
    ]
    return float(np.sum(parts))


def _kernel(product: np.ndarray, features: int) -> np.ndarray:
    return (product / features + 1) ** 3
