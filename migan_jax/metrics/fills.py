"""What fills holes: a network, or what any network must be better than."""

from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike

from migan_jax.metrics.evaluator import Fill, NotFinite

GREY = 128
RADIUS = 3  # pixels around a hole that OpenCV's methods look at


def network_fill(complete: Callable[[np.ndarray, np.ndarray], ArrayLike]) -> Fill:
    """What fills holes by a network as `geometry.filling` calls it, of N pictures.

    Known pixels stay as they are, bit for bit. What comes after N pictures is left out.
    """

    def fill(truths: np.ndarray, holes: np.ndarray) -> np.ndarray:
        known = (~holes).astype(np.float32)[..., None]
        images = truths.astype(np.float32) / 127.5 - 1
        rgb = np.asarray(complete(images * known, known), np.float32)[: len(images)]
        finite = np.isfinite(rgb).all(axis=(1, 2, 3))
        if not finite.all():
            raise NotFinite(int(finite.argmin()))
        made = np.clip(np.rint((rgb + 1) * 127.5), 0, 255).astype(np.uint8)
        return np.where(holes[..., None], made, truths)

    return fill


def mean_colour(truths: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Every hole in the mean of its picture's known pixels; grey if there are none."""
    results = truths.copy()
    for result, hole in zip(results, holes, strict=True):
        known = result[~hole]
        result[hole] = np.rint(known.mean(axis=0)) if len(known) else GREY
    return results


def classical_fills() -> dict[str, Fill]:
    """By name: the mean colour, and where OpenCV is installed its two methods."""
    fills: dict[str, Fill] = {"mean colour": mean_colour}
    try:
        import cv2
    except ModuleNotFoundError:
        return fills

    def by(method: int) -> Fill:
        def fill(truths: np.ndarray, holes: np.ndarray) -> np.ndarray:
            # They look into holes, too, where these are wide or at the border.
            blank = mean_colour(truths, holes)
            pairs = zip(blank, holes.astype(np.uint8), strict=True)
            filled = [cv2.inpaint(truth, hole, RADIUS, method) for truth, hole in pairs]
            return np.stack(filled)

        return fill

    fills["Telea"] = by(cv2.INPAINT_TELEA)
    fills["Navier-Stokes"] = by(cv2.INPAINT_NS)
    return fills
