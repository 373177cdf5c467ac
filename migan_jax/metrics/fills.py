"""Fills by a network, and classical baselines."""

from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike

from migan_jax.metrics.evaluator import Fill, NonFiniteError

GREY = 128
RADIUS = 3  # pixels around a hole that OpenCV's methods use


def network_fill(complete: Callable[[np.ndarray, np.ndarray], ArrayLike]) -> Fill:
    """Make a fill from a network with the interface of `geometry.fill`.

    Known pixels stay bit for bit. The network may return more images than it was given;
    the surplus is dropped.
    """

    def fill(truths: np.ndarray, holes: np.ndarray) -> np.ndarray:
        known = (~holes).astype(np.float32)[..., None]
        images = truths.astype(np.float32) / 127.5 - 1
        rgb = np.asarray(complete(images * known, known), np.float32)[: len(images)]
        finite = np.isfinite(rgb).all(axis=(1, 2, 3))
        if not finite.all():
            raise NonFiniteError(int(finite.argmin()))
        outputs = np.clip(np.rint((rgb + 1) * 127.5), 0, 255).astype(np.uint8)
        return np.where(holes[..., None], outputs, truths)

    return fill


def mean_colour(truths: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Fill every hole with the mean of its image's known pixels; grey without any."""
    results = truths.copy()
    for result, hole in zip(results, holes, strict=True):
        known = result[~hole]
        result[hole] = np.rint(known.mean(axis=0)) if len(known) else GREY
    return results


def classical_fills() -> dict[str, Fill]:
    """Return by name the mean colour and, if OpenCV is installed, its two methods."""
    fills: dict[str, Fill] = {"mean colour": mean_colour}
    try:
        import cv2
    except ModuleNotFoundError:
        return fills

    def opencv_fill(method: int) -> Fill:
        def fill(truths: np.ndarray, holes: np.ndarray) -> np.ndarray:
            # OpenCV also reads pixels inside holes that are wide or at the border.
            blank = mean_colour(truths, holes)
            pairs = zip(blank, holes.astype(np.uint8), strict=True)
            return np.stack([cv2.inpaint(*pair, RADIUS, method) for pair in pairs])

        return fill

    fills["Telea"] = opencv_fill(cv2.INPAINT_TELEA)
    fills["Navier-Stokes"] = opencv_fill(cv2.INPAINT_NS)
    return fills
