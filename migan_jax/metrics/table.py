"""Figures of each picture, and what they come to: means, intervals, bins."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from migan_jax.metrics.frechet import fid_of_features
from migan_jax.metrics.ids import decide
from migan_jax.metrics.kernel import kid

# Shares of the picture that the hole takes, as papers divide them.
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RESAMPLED, CONFIDENCE, SEED = 1000, 0.95, 0
# What is better: more of it, or less.
MORE = "psnr", "hole_psnr", "ssim", "hole_ssim", "p_ids", "u_ids"


@dataclass(frozen=True)
class Table:
    """Rows are pictures; tables of different ones merge into that of all.

    `figures` are of pairs, [N] each; `real` and `fake` are features, [N, 2048], or have
    no columns where no network looked at the pictures.
    """

    names: tuple[str, ...]
    ratios: np.ndarray
    figures: Mapping[str, np.ndarray]
    real: np.ndarray
    fake: np.ndarray

    @classmethod
    def empty(cls, figures: Sequence[str], features: int) -> Self:
        nothing = np.zeros((0, features), np.float32)
        return cls((), np.zeros(0), {f: np.zeros(0) for f in figures}, nothing, nothing)

    @classmethod
    def of(cls, parts: Sequence[Self]) -> Self:
        """Tables of different pictures as one."""
        return cls(
            tuple(name for part in parts for name in part.names),
            np.concatenate([part.ratios for part in parts]),
            {
                name: np.concatenate([part.figures[name] for part in parts])
                for name in parts[0].figures
            },
            np.concatenate([part.real for part in parts]),
            np.concatenate([part.fake for part in parts]),
        )

    def merge(self, other: Self) -> Self:
        return self.of([self, other])

    def compute(self) -> dict[str, dict[str, float]]:
        """Every metric by its name: value, and for figures of pairs its interval.

        A metric's name says what its value depends on besides the pictures.
        """
        count = len(self.names)
        results = {
            name: with_interval(lambda rows, v=values: mean(v[rows]), count)
            for name, values in self.figures.items()
        }
        if not self.real.shape[1]:
            return results
        results |= {name: {"value": value} for name, value in self._of_sets().items()}
        if count >= 2:
            decisions = decide(self.real, self.fake)
            for index, name in enumerate(("p_ids", "u_ids")):
                results[f"{name}_{count}"] = with_interval(
                    lambda rows, i=index: decisions.scores(rows)[i], count
                )
        return results

    def values(self) -> dict[str, float]:
        """The same, but for intervals and what a machine must be fitted for."""
        means = {name: mean(values) for name, values in self.figures.items()}
        return means | (self._of_sets() if self.real.shape[1] else {})

    def _of_sets(self) -> dict[str, float]:
        fid = self._fid(slice(None))
        return {f"fid_{len(self.names)}": fid, "kid": kid(self.real, self.fake)}

    def by_hole_ratio(self) -> list[dict[str, Any]]:
        """Of the pictures of each bin that has any: means of figures, and FID."""
        places = np.clip(np.digitize(self.ratios, BINS) - 1, 0, len(BINS) - 2)
        rows = []
        for place in range(len(BINS) - 1):
            chosen = places == place
            if chosen.any():
                values = {n: mean(v[chosen]) for n, v in self.figures.items()}
                if self.real.shape[1]:
                    values["fid"] = self._fid(chosen)
                bounds = {"from": BINS[place], "to": BINS[place + 1]}
                rows.append({**bounds, "pictures": int(chosen.sum()), **values})
        return rows

    def _fid(self, rows: np.ndarray | slice) -> float:
        return fid_of_features(self.real[rows], self.fake[rows])

    def extremes(self, count: int) -> dict[str, list[int]]:
        """Numbers of the pictures with the best and the worst holes."""
        scores = self.figures["hole_psnr"]
        order = [int(n) for n in np.argsort(scores) if np.isfinite(scores[n])]
        return {"best": order[::-1][:count], "worst": order[:count]}


def mean(values: np.ndarray) -> float:
    """Over pictures of which the figure can be said; NaN if there is none."""
    said = values[~np.isnan(values)]
    return float(said.mean()) if len(said) else float("nan")


def with_interval(
    statistic: Callable[[np.ndarray | slice], float], count: int
) -> dict[str, float]:
    """A value with the bootstrap's percentiles, over pictures drawn again and again."""
    rng = np.random.default_rng(SEED)
    drawn = [
        statistic(rng.integers(0, count, count))
        for _ in range(RESAMPLED if count else 0)
    ]
    outside = 50 * (1 - CONFIDENCE)
    low, high = (
        np.nanpercentile(drawn, [outside, 100 - outside])
        if np.isfinite(drawn).any()
        else (np.nan, np.nan)
    )
    value = statistic(slice(None))
    return {"value": value, "low": float(low), "high": float(high)}
