"""When which stage of a run is on: steps, and the images that they have shown.

Stages may have batches of their own sizes, so a position in the data is one of images,
which a step's number decides.
"""

import dataclasses
from collections.abc import Sequence

import jax

from migan_jax.systems.base import Stage


@dataclasses.dataclass(frozen=True)
class Span:
    """The steps that a run takes of a stage."""

    stage: Stage
    batch_size: int
    resolution: int
    first_step: int
    end_step: int  # after its last
    first_image: int  # of the run: images shown before the span
    whole_steps: int  # of the stage, of which the run's end may leave some out

    def images(self, step: int) -> int:
        """Images that the run has shown before this step."""
        return self.first_image + (step - self.first_step) * self.batch_size

    def progress(self, step: jax.Array | int) -> jax.Array | float:
        """The share of the stage that is done before this step."""
        return (step - self.first_step) / self.whole_steps

    def kimg(self, step: jax.Array | int) -> jax.Array | float:
        """Thousands of images of the stage before this step."""
        return (step - self.first_step) * (self.batch_size / 1000)


class Timeline:
    """The spans of a run, in order: at least one, of at least one step."""

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        batch_size: int,
        resolution: int,
        total_kimg: float,
    ):
        """What stages do not have of their own is the run's."""
        self.spans: list[Span] = []
        step = image = 0
        for stage in stages:
            size = stage.batch_size or batch_size

            def steps_until(
                kimg: float, step: int = step, image: int = image, size: int = size
            ) -> int:
                # Of the run's steps, as if all were of this size: with batches of one
                # size, stages do not change where it ends.
                end = round((1000 * kimg - image + step * size) / size)
                return max(end - step, 0)

            whole = steps_until(
                total_kimg if stage.until_kimg is None else stage.until_kimg
            )
            taken = min(whole, steps_until(total_kimg))
            is_last_chance = stage is stages[-1] and not self.spans
            if not taken and not is_last_chance:
                continue
            taken, whole = max(taken, 1), max(whole, 1)
            self.spans.append(
                Span(
                    stage,
                    size,
                    stage.resolution or resolution,
                    step,
                    step + taken,
                    image,
                    whole,
                )
            )
            step, image = step + taken, image + taken * size

    @property
    def end_step(self) -> int:
        """The number of steps in all."""
        return self.spans[-1].end_step

    def at(self, step: int) -> Span:
        """The span that a step belongs to; from the end on, the last."""
        return next((s for s in self.spans if step < s.end_step), self.spans[-1])

    def images(self, step: int) -> int:
        """Images that the run has shown before this step."""
        return self.at(step).images(step)
