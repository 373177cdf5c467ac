"""The schedule of a run: which steps belong to which stage, and images seen by then.

Stages may differ in batch size, so positions in the data are counted in images.
"""

import dataclasses
from collections.abc import Sequence

import jax

from migan_jax.systems.base import Stage


@dataclasses.dataclass(frozen=True)
class Span:
    """The steps of a stage in a run."""

    stage: Stage
    batch_size: int
    resolution: int
    first_step: int
    end_step: int  # exclusive
    first_image: int  # images seen before the span
    total_steps: int  # of the stage; the run may end before

    def images(self, step: int) -> int:
        """Return the number of images that the run sees before this step."""
        return self.first_image + (step - self.first_step) * self.batch_size

    def progress(self, step: jax.Array | int) -> jax.Array | float:
        """Return the fraction of the stage that is done before this step."""
        return (step - self.first_step) / self.total_steps

    def kimg(self, step: jax.Array | int) -> jax.Array | float:
        """Return thousands of images that the stage sees before this step."""
        return (step - self.first_step) * (self.batch_size / 1000)


class Timeline:
    """The spans of a run, in order: at least one, each of at least one step."""

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        batch_size: int,
        resolution: int,
        total_kimg: float,
    ):
        """The batch size and resolution are for stages that do not set their own."""
        self.spans: list[Span] = []
        step = image = 0
        for stage in stages:
            size = stage.batch_size or batch_size

            def steps_until(
                kimg: float, step: int = step, image: int = image, size: int = size
            ) -> int:
                # Round the run's steps as if all had this batch size. So with one size,
                # stages do not change the total.
                end = round((1000 * kimg - image + step * size) / size)
                return max(end - step, 0)

            total = steps_until(
                total_kimg if stage.until_kimg is None else stage.until_kimg
            )
            steps = min(total, steps_until(total_kimg))
            is_required = stage is stages[-1] and not self.spans
            if not steps and not is_required:
                continue
            steps, total = max(steps, 1), max(total, 1)
            self.spans.append(
                Span(
                    stage,
                    size,
                    stage.resolution or resolution,
                    step,
                    step + steps,
                    image,
                    total,
                )
            )
            step, image = step + steps, image + steps * size

    @property
    def end_step(self) -> int:
        """The run's number of steps."""
        return self.spans[-1].end_step

    def at(self, step: int) -> Span:
        """Return the span of a step; after the end, the last one."""
        return next((s for s in self.spans if step < s.end_step), self.spans[-1])

    def before(self, step: int) -> Span:
        """Return the span of the step before, which made this step's state."""
        return self.at(max(step - 1, 0))

    def images(self, step: int) -> int:
        """Return the number of images that the run sees before this step."""
        return self.at(step).images(step)
