"""Validation on held-out images: metrics, grids, curves and early stopping."""

import logging
import math

import jax

from migan_jax.systems.base import TrainState
from migan_jax.training.curves import save_curves
from migan_jax.training.reporting import Reporter
from migan_jax.training.samples import MEAN_COLOUR_PSNR, save_grid
from migan_jax.training.setup import Setup

logger = logging.getLogger(__name__)


class Validation:
    """Evaluates a run, and keeps track of its best score."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self.best = setup.best  # step and score
        self._metrics: tuple[int, dict[str, float]] = -1, {}  # of the last evaluation

    def evaluate(self, state: TrainState, step: int, reporter: Reporter) -> None:
        """Log metrics and a grid of the held-out images, and draw the curves."""
        with reporter.spending("evaluation"):
            if self._setup.samples is not None:
                self._evaluate_samples(state, step, reporter)
            if jax.process_index() == 0 and step > 0:
                save_curves(self._setup.workdir, self._setup.family.panels)

    def _evaluate_samples(
        self, state: TrainState, step: int, reporter: Reporter
    ) -> None:
        timeline = self._setup.timeline
        span = timeline.before(step)
        metrics, grid = self._setup.samples.evaluate(state, span.stage)
        # Networks in growth work at other resolutions: their scores do not compare.
        if span.stage.system is None or span is timeline.spans[-1]:
            self._compare(step, metrics)
        reporter.write(step, {f"eval/{name}": v for name, v in metrics.items()})
        reporter.show(step, "samples", grid)
        if jax.process_index() == 0:
            path = save_grid(self._setup.workdir, step, grid)
            reporter.print(
                f"step {step:,}: held-out hole PSNR {metrics['hole_psnr']:.2f} dB, "
                f"mean colour {metrics[MEAN_COLOUR_PSNR]:.2f} dB; "
                f"{self._setup.location}/{path.relative_to(self._setup.workdir)}"
            )

    def _compare(self, step: int, metrics: dict[str, float]) -> None:
        """Note the metrics, and whether they are the best so far."""
        score = self._setup.score
        self._metrics = step, metrics
        value = score.of(metrics)
        if not math.isfinite(value):
            logger.warning("step %d: %s is missing or not finite", step, score.name)
        elif self.best is None or value > self.best[1]:
            self.best = step, value

    def metrics_of(self, step: int) -> dict[str, float] | None:
        """Return the finite metrics of a step, or None if it has no score."""
        last, metrics = self._metrics
        finite = {name: v for name, v in metrics.items() if math.isfinite(v)}
        return finite if last == step and self._setup.score.name in finite else None

    def should_stop_early(self, step: int) -> bool:
        """Return whether the score has not improved for `patience_kimg`.

        Only at multiples of `save_every_steps`, so that interruptions do not matter.
        """
        config, timeline = self._setup.config, self._setup.timeline
        patience = config.patience_kimg
        if patience is None or self.best is None or step % config.save_every_steps:
            return False
        images = timeline.images(step) - timeline.images(self.best[0])
        return images >= 1000 * patience
