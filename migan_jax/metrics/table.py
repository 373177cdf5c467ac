"""Metrics of each image, and their aggregates: means, intervals, bins."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from migan_jax.metrics.fid import fid_from_features
from migan_jax.metrics.ids import decide
from migan_jax.metrics.kid import kid

# Hole areas as fractions of the image, as papers bin them: some in steps of 20 %,
# others, with sets of irregular masks, from 10 to 50 % in steps of 10 %.
HOLE_RATIO_BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
NARROW_HOLE_RATIO_BINS = (0.1, 0.2, 0.3, 0.4, 0.5)
BOOTSTRAP_SAMPLES, CONFIDENCE, BOOTSTRAP_SEED = 1000, 0.95, 0
HIGHER_IS_BETTER = "psnr", "hole_psnr", "ssim", "hole_ssim", "p_ids", "u_ids"


@dataclass(frozen=True)
class Table:
    """One row per image.

    `ratios` are hole ratios, [N]; `metrics` are of pairs, [N] each; `real` and `fake`
    are features, [N, 2048], or [N, 0] without Inception.
    """

    names: tuple[str, ...]
    ratios: np.ndarray
    metrics: Mapping[str, np.ndarray]
    real: np.ndarray
    fake: np.ndarray

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """Join tables of different images."""
        return cls(
            tuple(name for table in tables for name in table.names),
            np.concatenate([table.ratios for table in tables]),
            {
                name: np.concatenate([table.metrics[name] for table in tables])
                for name in tables[0].metrics
            },
            np.concatenate([table.real for table in tables]),
            np.concatenate([table.fake for table in tables]),
        )

    def compute(self) -> dict[str, dict[str, float]]:
        """Return every metric's value, and its interval unless it is FID or KID.

        FID, P-IDS and U-IDS depend on the number of images, which their names include.
        """
        count = len(self.names)
        results = {
            name: bootstrap_interval(lambda rows, v=values: nan_mean(v[rows]), count)
            for name, values in self.metrics.items()
        }
        if not self.real.shape[1]:
            return results
        results |= {
            name: {"value": value} for name, value in self._set_metrics().items()
        }
        if count >= 2:
            decisions = decide(self.real, self.fake)
            for index, name in enumerate(("p_ids", "u_ids")):
                results[f"{name}_{count}"] = bootstrap_interval(
                    lambda rows, i=index: decisions.scores(rows)[i], count
                )
        return results

    def values(self) -> dict[str, float]:
        """Return values without intervals, and without the slow P-IDS and U-IDS."""
        means = {name: nan_mean(values) for name, values in self.metrics.items()}
        return means | (self._set_metrics() if self.real.shape[1] else {})

    def _set_metrics(self) -> dict[str, float]:
        fid = self._fid(slice(None))
        return {f"fid_{len(self.names)}": fid, "kid": kid(self.real, self.fake)}

    def by_hole_ratio(
        self, edges: Sequence[float] = HOLE_RATIO_BINS
    ) -> list[dict[str, Any]]:
        """Return the mean metrics and FID of each bin that has images.

        A bin includes its lower edge; the last one of all, whole images too.
        """
        rows = []
        for low, high in itertools.pairwise(edges):
            inside = (self.ratios >= low) & ((self.ratios < high) | (high == 1))
            if inside.any():
                values = {n: nan_mean(v[inside]) for n, v in self.metrics.items()}
                if self.real.shape[1]:
                    values["fid"] = self._fid(inside)
                count = int(inside.sum())
                rows.append({"from": low, "to": high, "pictures": count, **values})
        return rows

    def _fid(self, rows: np.ndarray | slice) -> float:
        return fid_from_features(self.real[rows], self.fake[rows])

    def extremes(self, count: int) -> dict[str, list[int]]:
        """Return the indices of the images with the best and worst `hole_psnr`."""
        scores = self.metrics["hole_psnr"]
        order = [int(n) for n in np.argsort(scores) if np.isfinite(scores[n])]
        return {"best": order[::-1][:count], "worst": order[:count]}


def nan_mean(values: np.ndarray) -> float:
    """Average the values that are not NaN; NaN if all are."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def bootstrap_interval(
    statistic: Callable[[np.ndarray | slice], float], count: int
) -> dict[str, float]:
    """Return a statistic of `count` images with its bootstrap interval."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    samples = [
        statistic(rng.integers(0, count, count))
        for _ in range(BOOTSTRAP_SAMPLES if count else 0)
    ]
    tail = 50 * (1 - CONFIDENCE)  # percent
    low, high = (
        np.nanpercentile(samples, [tail, 100 - tail])
        if np.isfinite(samples).any()
        else (np.nan, np.nan)
    )
    value = statistic(slice(None))
    return {"value": value, "low": float(low), "high": float(high)}
