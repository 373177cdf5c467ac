"""P-IDS and U-IDS: can a linear SVM tell completions from photos (Zhao 2021, 4.1)?

The SVM is fitted to the features of all photos and completions, and evaluated on the
same ones. P-IDS is how often it finds a completion more real than its photo, U-IDS how
often it is wrong.
"""

from typing import Any, NamedTuple

import numpy as np

from migan_jax.errors import missing_extra


class Scores(NamedTuple):
    paired: float  # P-IDS, 0 to 1
    unpaired: float  # U-IDS, 0 to 0.5 for an SVM that is no worse than chance


class Decisions(NamedTuple):
    """The SVM's decision values; above 0 is real."""

    real: np.ndarray  # [N]
    fake: np.ndarray  # [N], in the same order

    def scores(self, rows: np.ndarray | slice = slice(None)) -> Scores:
        """Return the scores of all pairs, or of a bootstrap sample of rows."""
        real, fake = self.real[rows], self.fake[rows]
        wrong = np.mean(real <= 0) + np.mean(fake > 0)
        return Scores(float(np.mean(fake > real)), float(wrong) / 2)


def import_svm() -> Any:
    """Import scikit-learn's linear SVM, or raise UserError saying how to install it."""
    try:
        from sklearn.svm import LinearSVC
    except ModuleNotFoundError as error:
        raise missing_extra("scikit-learn", "eval", "P-IDS and U-IDS") from error
    return LinearSVC


def decide(real: np.ndarray, fake: np.ndarray) -> Decisions:
    """Fit the SVM and return its decisions on the same features.

    Args:
      real: features of photos, [N, features].
      fake: features of their completions, in the same order.
    """
    if real.shape != fake.shape:
        raise ValueError(f"{real.shape} and {fake.shape} are not pairs of features.")
    svm = import_svm()(dual=False)
    labels = np.repeat([1, 0], len(real))
    svm.fit(np.concatenate([real, fake]).astype(np.float64), labels)
    return Decisions(svm.decision_function(real), svm.decision_function(fake))
