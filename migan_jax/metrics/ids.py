"""P-IDS and U-IDS: can a linear SVM tell completions from photos (Zhao 2021, 4.1)?

The machine is fitted to the features of all photos and all completions, and asked
about the same ones: P-IDS is how often it takes a completion for more real than its own
photo, U-IDS how often it is wrong.
"""

from typing import Any, NamedTuple

import numpy as np

from migan_jax.errors import missing_extra


class Scores(NamedTuple):
    paired: float  # P-IDS, 0 to 1
    unpaired: float  # U-IDS, 0 to 0.5 for a machine that is no worse than chance


class Decisions(NamedTuple):
    """How real the machine finds each picture; above 0 is real."""

    real: np.ndarray  # [N]
    fake: np.ndarray  # [N], in the same order

    def scores(self, chosen: np.ndarray | slice = slice(None)) -> Scores:
        """Of all pairs, or those that are chosen, as a bootstrap does."""
        real, fake = self.real[chosen], self.fake[chosen]
        wrong = np.mean(real <= 0) + np.mean(fake > 0)
        return Scores(float(np.mean(fake > real)), float(wrong) / 2)


def import_svm() -> Any:
    """scikit-learn's machine, or the sentence that says how to get it."""
    try:
        from sklearn.svm import LinearSVC
    except ModuleNotFoundError as error:
        raise missing_extra("scikit-learn", "eval", "P-IDS and U-IDS") from error
    return LinearSVC


def decide(real: np.ndarray, fake: np.ndarray) -> Decisions:
    """Fit the machine and ask it.

    Args:
      real: features of photos, [N, features].
      fake: features of their completions, in the same order.
    """
    if real.shape != fake.shape:
        raise ValueError(f"{real.shape} and {fake.shape} are no pairs of features.")
    machine = import_svm()(dual=False)
    labels = np.repeat([1, 0], len(real))
    machine.fit(np.concatenate([real, fake]).astype(np.float64), labels)
    return Decisions(machine.decision_function(real), machine.decision_function(fake))
