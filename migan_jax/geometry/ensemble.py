"""Average a network's outputs for a square, its rotations and its mirror image.

The self-ensemble of Li et al. 2020: networks complete a turned square differently, and
what their outputs have in common is more reliable than any of them.
"""

import numpy as np

from migan_jax.geometry.fill import Predict, run_network


def ensemble(predict: Predict) -> Predict:
    """Return the mean of five outputs, each in [-1, 1], as a function like `predict`.

    Rotations by 0, 90, 180 and 270 degrees and a horizontal flip, each undone.
    """

    def predict_mean(masked: np.ndarray, known: np.ndarray) -> np.ndarray:
        flipped = run_network(predict, masked[:, :, ::-1], known[:, :, ::-1])
        total = flipped[:, :, ::-1].copy()
        for turns in range(4):
            turned = (np.rot90(x, turns, axes=(1, 2)) for x in (masked, known))
            total += np.rot90(run_network(predict, *turned), -turns, axes=(1, 2))
        return total / 5

    return predict_mean
