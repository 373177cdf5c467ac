"""Watching a run by its held-out pictures: figures, grids, curves, the best so far."""

import logging
import math

import jax

from migan_jax.systems.base import TrainState
from migan_jax.training.curves import save_curves
from migan_jax.training.reporting import Reporter
from migan_jax.training.samples import BY_MEAN_COLOUR, save_grid
from migan_jax.training.setup import Setup

logger = logging.getLogger(__name__)


class Validation:
    """What the held-out pictures said last, and when they said the best."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self.best = setup.best  # step and score
        self._figures: tuple[int, dict[str, float]] = -1, {}  # of the last evaluation

    def evaluate(self, state: TrainState, step: int, reporter: Reporter) -> None:
        """Figures and a grid of the held-out pictures, and the curves."""
        with reporter.aside():
            if self._setup.samples is not None:
                self._show_samples(state, step, reporter)
            if jax.process_index() == 0 and step > 0:
                save_curves(self._setup.workdir, self._setup.family.panels)

    def _show_samples(self, state: TrainState, step: int, reporter: Reporter) -> None:
        score = self._setup.score
        figures, grid = self._setup.samples.evaluate(state)
        self._figures = step, figures
        value = score.of(figures)
        if not math.isfinite(value):
            logger.warning("step %d has no %s to choose by", step, score.name)
        elif self.best is None or value > self.best[1]:
            self.best = step, value
        reporter.write(step, {f"eval/{name}": v for name, v in figures.items()})
        reporter.show(step, "samples", grid)
        if jax.process_index() == 0:
            path = save_grid(self._setup.workdir, step, grid)
            reporter.say(
                f"step {step:,}: held-out hole PSNR {figures['hole_psnr']:.2f} dB, "
                f"that of the mean colour {figures[BY_MEAN_COLOUR]:.2f} dB; {path}"
            )

    def figures_of(self, step: int) -> dict[str, float] | None:
        """What was measured at a step, if the score is among it."""
        measured, figures = self._figures
        finite = {name: v for name, v in figures.items() if math.isfinite(v)}
        return finite if measured == step and self._setup.score.name in finite else None

    def is_stale(self, step: int) -> bool:
        """Whether the score has not improved for as long as is allowed.

        Only where it is measured at regular steps, so that stops between them do not
        matter.
        """
        config, timeline = self._setup.config, self._setup.timeline
        patience = config.patience_kimg
        if patience is None or self.best is None or step % config.save_every_steps:
            return False
        shown = timeline.images(step) - timeline.images(self.best[0])
        return shown >= 1000 * patience
