"""The stage of a run that is on: its compiled programs, and its batches."""

import contextlib
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import jax
import numpy as np

from migan_jax.data.pipeline import batches_of
from migan_jax.systems.base import Metrics, TrainState
from migan_jax.training import overview
from migan_jax.training.mesh import (
    everywhere,
    images_sharding,
    put_images,
    rows_of_process,
)
from migan_jax.training.setup import Setup
from migan_jax.training.step import make_step
from migan_jax.training.timeline import Span

if TYPE_CHECKING:
    from jax.stages import Compiled

logger = logging.getLogger(__name__)

REJECTS_FILE = "rejected.json"


class Stages:
    """Opens a run's stages as their steps come. To be used in a `with`."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            setup.state,
        )
        self._stack = contextlib.ExitStack()
        self._open: OpenStage | None = None

    def at(self, step: int) -> "OpenStage":
        """The stage of a step; when it begins, it is compiled and begins to load."""
        if self._open is None or step >= self._open.span.end_step:
            self._stack.close()  # what the one before has loaded ahead
            span = self._setup.timeline.at(step)
            self._open = OpenStage(self._setup, span, self._shapes, step)
            self._stack.enter_context(self._open.loading())
        return self._open

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()


class OpenStage:
    """The programs of a stage and its batches, from a step on."""

    def __init__(self, setup: Setup, span: Span, shapes: TrainState, step: int):
        self.span, self.opened_at = span, step
        self._setup = setup
        self._rows = rows_of_process(setup.mesh, span.batch_size, span.resolution)
        channels = {"image": 3}
        if setup.source.has_masks or setup.config.data.draw_masks_on == "host":
            channels["mask"] = 1
        self._batch_names = tuple(channels)
        self._programs = self._compile(shapes, channels)

    def _compile(
        self, shapes: TrainState, channels: dict[str, int]
    ) -> dict[int, "Compiled"]:
        """By interval: that of an iteration (1), and of what comes after some."""
        setup, span = self._setup, self.span
        side, place = span.resolution, everywhere(setup.mesh)
        batch = {
            name: jax.ShapeDtypeStruct(
                (span.batch_size, side, side, count),
                np.uint8,
                sharding=images_sharding(setup.mesh),
            )
            for name, count in channels.items()
        }

        def compile_one(every: int) -> "Compiled":
            step = make_step(
                setup.system,
                span,
                ema_halflife_kimg=setup.config.optimizer.ema_halflife_kimg,
                microbatches=setup.config.parts,
                every=every,
            )
            program = jax.jit(step, donate_argnums=0, out_shardings=(place, place))
            with jax.set_mesh(setup.mesh):
                lowered = program.lower(shapes, setup.frozen, batch, setup.key)
                return lowered.compile()

        intervals = 1, *span.stage.lazy
        start, name = time.perf_counter(), span.stage.name
        logger.info("compiling %s; on large networks this takes minutes", name)
        with ThreadPoolExecutor(len(intervals)) as pool:  # XLA works outside the lock
            compiled = pool.map(compile_one, intervals)
            programs = dict(zip(intervals, compiled, strict=True))
        logger.info("compiled in %.0f s", time.perf_counter() - start)
        for line in overview.describe_memory(name, programs):
            logger.info(line)
        return programs

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Batches are loaded ahead while in here."""
        setup, span = self._setup, self.span
        report = setup.workdir / REJECTS_FILE if jax.process_index() == 0 else None
        with batches_of(
            setup.config,
            setup.source,
            batch_size=span.batch_size,
            resolution=span.resolution,
            rows=self._rows,
            first_step=self.opened_at,
            # Positions are counted in images, of which earlier stages may have had
            # more or fewer a step.
            offset=span.images(0),
            report=report,
        ) as self._batches:
            yield

    def next_batch(self) -> dict[str, jax.Array]:
        """The next batch on the devices, split."""
        loaded = next(self._batches)
        arrays = {name: loaded[name] for name in self._batch_names}
        return put_images(arrays, self._rows, self._setup.mesh, self.span.batch_size)

    def advance(
        self, state: TrainState, batch: dict[str, jax.Array], step: int
    ) -> tuple[TrainState, Metrics]:
        """Take a step, and the lazy turns that are due after it.

        The metrics are still being computed.
        """
        rest = self._setup.frozen, batch, self._setup.key
        metrics: Metrics = {}
        for every, program in self._programs.items():
            if step % every == 0:
                state, reported = program(state, *rest)
                metrics |= reported
        return state, metrics
