"""The current stage of a run: its compiled programs and its batches."""

import contextlib
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import jax

from migan_jax.data.pipeline import open_batches
from migan_jax.data.rejects import Rejects
from migan_jax.systems.base import Metrics, TrainState
from migan_jax.training import overview, processes
from migan_jax.training.mesh import put_images, replicated_sharding, rows_of_process
from migan_jax.training.programs import Programs, shapes_of
from migan_jax.training.setup import Setup
from migan_jax.training.timeline import Span

if TYPE_CHECKING:
    from jax.stages import Compiled

logger = logging.getLogger(__name__)

REJECTS_FILE = "rejected.json"


class Stages:
    """A context manager that opens each stage of a run when it starts."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self.programs = Programs(
            setup.config,
            setup.system,
            setup.mesh,
            *shapes_of(
                (setup.state, setup.frozen, setup.key), replicated_sharding(setup.mesh)
            ),
            setup.source.has_masks or setup.source.unpaired_masks is not None,
            setup.source.points,
        )
        self._stack = contextlib.ExitStack()
        self._open: OpenStage | None = None

    def at(self, step: int) -> "OpenStage":
        """Return the stage of a step; compile it and start loading if it is new."""
        if self._open is None or step >= self._open.span.end_step:
            self._stack.close()  # drop batches loaded ahead for the previous stage
            span = self._setup.timeline.at(step)
            self._open = OpenStage(self._setup, span, self.programs, step)
            self._stack.enter_context(self._open.loading())
        return self._open

    def merge_rejects(self, step: int) -> None:
        """Add the unusable images that other processes have found."""
        rejects = None if self._open is None else self._open.rejects
        found = {} if rejects is None else rejects.reasons
        merged = processes.gather_json(found, f"rejected before step {step}")
        if rejects is not None:
            rejects.merge(merged)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()


class OpenStage:
    """A stage's compiled programs and batches, from a step on."""

    def __init__(self, setup: Setup, span: Span, programs: Programs, step: int):
        self.span, self.opened_at = span, step
        self._setup = setup
        self._rows = rows_of_process(setup.mesh, span.batch_size, span.resolution)
        self._batch_names = tuple(programs.batch(span))
        self._programs = self._compile(programs)

    def _compile(self, programs: Programs) -> dict[int, "Compiled"]:
        """Compile the programs, by interval: 1 is the step, others are lazy turns."""
        span = self.span

        def compile_one(every: int) -> "Compiled":
            return programs.compile(programs.lower(span, every))

        intervals = 1, *span.stage.lazy
        start, name = time.perf_counter(), span.stage.name
        logger.info("compiling %s; large networks take minutes", name)
        with ThreadPoolExecutor(len(intervals)) as pool:  # XLA releases the GIL
            compiled = pool.map(compile_one, intervals)
            by_interval = dict(zip(intervals, compiled, strict=True))
        logger.info("compiled in %.0f s", time.perf_counter() - start)
        for line in overview.describe_memory(name, by_interval):
            logger.info(line)
        return by_interval

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Load batches ahead within this context."""
        setup, span = self._setup, self.span
        report = setup.workdir / REJECTS_FILE if jax.process_index() == 0 else None
        with open_batches(
            setup.config,
            setup.source,
            batch_size=span.batch_size,
            resolution=span.resolution,
            rows=self._rows,
            first_step=self.opened_at,
            # Positions count images: earlier stages may have other batch sizes.
            offset=span.images(0),
            report=report,
        ) as self._batches:
            yield

    @property
    def rejects(self) -> Rejects:
        """The unusable images that this process has found."""
        return self._batches.rejects

    def next_batch(self) -> dict[str, jax.Array]:
        """Load the next batch and put it on the devices."""
        loaded = next(self._batches)
        arrays = {name: loaded[name] for name in self._batch_names}
        return put_images(arrays, self._rows, self._setup.mesh, self.span.batch_size)

    def advance(
        self, state: TrainState, batch: dict[str, jax.Array], step: int
    ) -> tuple[TrainState, Metrics]:
        """Take a step, and then the lazy turns that are due.

        Return without waiting for the results.
        """
        inputs = self._setup.frozen, batch, self._setup.key
        metrics: Metrics = {}
        for every, program in self._programs.items():
            if step % every == 0:
                state, new_metrics = program(state, *inputs)
                metrics |= new_metrics
        return state, metrics
