"""KID: squared maximum mean discrepancy of features (Bińkowski et al., 2018).

The estimate is unbiased, so it is meaningful for sets that are too small for FID.
"""

import numpy as np

BLOCK_SIZE = 2048  # rows per kernel block, which bounds the memory


def kid(real: np.ndarray, fake: np.ndarray) -> float:
    """Compute KID with the cubic kernel over all pairs; NaN for fewer than two images.

    Args:
      real: features, [N, features].
      fake: features, [M, features].
    """
    if min(len(real), len(fake)) < 2:
        return float("nan")
    real, fake = (x.astype(np.float64) for x in (real, fake))
    between = _kernel_sum(real, fake) / (len(real) * len(fake))
    return _mean_within(real) + _mean_within(fake) - 2 * between


def _mean_within(features: np.ndarray) -> float:
    """Average the kernel over pairs of different images."""
    count = len(features)
    diagonal = _kernel((features**2).sum(axis=1), features.shape[1]).sum()
    return (_kernel_sum(features, features) - diagonal) / (count * (count - 1))


def _kernel_sum(first: np.ndarray, second: np.ndarray) -> float:
    sums = [
        _kernel(first[start : start + BLOCK_SIZE] @ second.T, first.shape[1]).sum()
        for start in range(0, len(first), BLOCK_SIZE)
    ]
    return float(np.sum(sums))


def _kernel(product: np.ndarray, features: int) -> np.ndarray:
    return (product / features + 1) ** 3
