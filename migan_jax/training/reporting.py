"""Metrics of a run: metrics.jsonl, TensorBoard, and a progress bar or lines.

Metrics are means over the steps since the last line. They are on the disk before the
checkpoint that they belong to. A resumed run drops what is newer than its checkpoint,
so the metrics are those of an uninterrupted run, except for the measured `time/...`.
Only process 0 writes.
"""

import collections
import contextlib
import json
import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from migan_jax.errors import UserError
from migan_jax.files import reason, sync, write_whole

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
BOARD_FOLDER = "tensorboard"
# A slow step takes this many times the median of the steps before it, and not only a
# moment.
SLOW, MEDIAN_STEPS, SLOW_SECONDS = 5, 50, 0.5


class Clock:
    """Where a run's time goes, over all its processes: into steps, or something else.

    Args:
      earlier: `saved()` of the checkpoint. What was done after it is lost, so all time
        until the resumed run is ready to compile counts as restarts.
    """

    def __init__(self, earlier: Mapping[str, Any] | None):
        kinds = "data", "evaluation", "saving", "compilation", "restarts"
        self._seconds = dict.fromkeys(("steps", *kinds), 0.0)
        self._last = time.time()
        if earlier is not None:
            self._seconds |= earlier["seconds"]
            self._seconds["restarts"] += max(self._last - earlier["time"], 0)

    def add(self, kind: str, seconds: float) -> None:
        """Count seconds that would count as steps otherwise."""
        self._seconds[kind] += seconds
        self._seconds["steps"] -= seconds

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint stores, as JSON."""
        now = time.time()
        self._seconds["steps"] += now - self._last
        self._last = now
        return {"seconds": dict(self._seconds), "time": now}

    def shares(self) -> dict[str, float]:
        """Return each kind's share of the run's time."""
        seconds = self.saved()["seconds"]
        total = max(sum(seconds.values()), 1e-9)
        return {kind: value / total for kind, value in seconds.items()}


class Averages:
    """Means of metrics over steps. Not every step has every metric."""

    def __init__(self, sums: Mapping[str, tuple[float, int]] | None = None):
        self.sums = {name: tuple(pair) for name, pair in (sums or {}).items()}

    def add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value, count + 1

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items()}


class Reporter:
    """Averages every step's metrics, and logs the means. A context manager.

    It waits for a step's metrics only after the next step was dispatched.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        total_steps: int,
        log_every_steps: int,
        nonfinite_steps: int,
        labels: Mapping[str, str],
        first_step: int = 0,
        earlier: Mapping[str, Any] | None = None,
        clock: Clock | None = None,
        rotates: bool = False,
    ):
        """
        Args:
          labels: names and labels of the metrics to print, in this order.
          first_step: where the run starts or resumes; later metrics are dropped.
          earlier: `position` of the checkpoint; None without one.
          clock: where time is counted; by default, a new run's.
          rotates: start a new file for TensorBoard after each `flush`, since objects in
            buckets cannot be appended to.
        """
        # Without a checkpoint, existing metrics are of another run.
        last_kept = -1 if earlier is None else first_step
        earlier = earlier or {"sums": {}}
        self._total, self._labels = total_steps, labels
        self._every, self._limit = log_every_steps, nonfinite_steps
        # The newest step, still being computed: number, metrics, images.
        self._pending: tuple[int, Mapping[str, Any], int] | None = None
        self._images = 0  # since the last line
        self._averages = Averages(earlier["sums"])
        self._nonfinite = 0  # consecutive steps; after one, nothing is saved
        self._loading, self._loads, self._last_load = 0.0, 0, 0.0
        self._since, self._since_step = time.perf_counter(), first_step
        self.clock, self._rotates = clock or Clock(None), rotates
        # Seconds of the last steps, by the names of their metrics: those of steps with
        # lazy turns are others.
        self._durations: dict[frozenset[str], collections.deque[float]] = {}
        self._step_start: float | None = None
        self._step = first_step  # the newest written
        self._file = self._board = self._bar = None
        if jax.process_index() == 0:
            self._open(workdir, first_step, last_kept)

    def _open(self, workdir: Path, first_step: int, last_kept: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tqdm import tqdm

        self._workdir = workdir
        with _writing(workdir):
            truncate_metrics(workdir / METRICS_FILE, last_kept)
            self._file = (workdir / METRICS_FILE).open("a")
            self._open_board()
            # SummaryWriter's purge_step: TensorBoard hides earlier files' later events.
            start = SessionLog(status=SessionLog.START)
            self._board.write_event(
                Event(step=last_kept + 1, wall_time=time.time(), session_log=start)
            )
            sync(workdir)
        self._bar = tqdm(
            total=self._total,
            initial=first_step,
            unit="step",
            disable=None,  # off without a terminal
            dynamic_ncols=True,
            smoothing=0.1,
        )

    def _open_board(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        board = self._workdir / BOARD_FOLDER
        board.mkdir(exist_ok=True)
        # SummaryWriter would write in a thread, where errors are lost. Names hold only
        # seconds, in which a short run may end and resume.
        suffix = f".{self._step:08}"
        self._board = EventsWriter(str(board / "events"), suffix)
        self._board_files = [*board.glob(f"events.*{suffix}")]
        sync(board)

    @property
    def position(self) -> dict[str, Any]:
        """What a checkpoint stores to resume from, as JSON.

        A copy, since it is written in the background.
        """
        return {"sums": dict(self._averages.sums)}

    @property
    def is_finite(self) -> bool:
        """Whether the last step's losses were finite."""
        return self._nonfinite == 0

    @contextlib.contextmanager
    def loading_data(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._loading += seconds
        self._last_load = seconds
        self._loads += 1
        self.clock.add("data", seconds)

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time inside as the clock's kind, and not as a step's."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._since += seconds
        if self._step_start is not None:
            self._step_start += seconds
        self.clock.add(kind, seconds)

    def log(self, step: int, metrics: Mapping[str, Any], images: int) -> None:
        """Log the metrics of the step that leads to state `step`.

        Raises UserError after too many consecutive steps with non-finite metrics.
        """
        pending, self._pending = self._pending, (step, metrics, images)
        self._log(pending)
        # It is the pending step that was waited for.
        self._watch_duration(step - 1, frozenset(pending[1] if pending else ()))

    def _watch_duration(self, step: int, names: frozenset[str]) -> None:
        """Warn if the last step took far longer than those with the same metrics."""
        now, before = time.perf_counter(), self._step_start
        self._step_start = now
        if before is None:
            return
        seconds = now - before
        durations = self._durations.setdefault(
            names, collections.deque(maxlen=MEDIAN_STEPS)
        )
        if len(durations) == MEDIAN_STEPS:
            median = statistics.median(durations)
            if seconds > max(SLOW * median, SLOW_SECONDS):
                logger.warning(
                    "step %d took %.3g s, of which waiting for its batch took %.3g s; "
                    "the median of the last %d steps is %.3g s",
                    step,
                    seconds,
                    self._last_load,
                    MEDIAN_STEPS,
                    median,
                )
        durations.append(seconds)

    def forget_durations(self) -> None:
        """Start a new median, as for a new stage."""
        self._durations.clear()

    def log_pending(self) -> None:
        """Wait for the newest step's metrics, and log them."""
        pending, self._pending = self._pending, None
        self._log(pending)

    def _log(self, pending: tuple[int, Mapping[str, Any], int] | None) -> None:
        if pending is None:
            return
        step, metrics, images = pending
        self._images += images
        values = {name: float(value) for name, value in metrics.items()}
        self._averages.add(values)
        finite = all(math.isfinite(value) for value in values.values())
        self._nonfinite = 0 if finite else self._nonfinite + 1
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        if step % self._every == 0 or step == self._total:
            self._write_means(step)
        if self._nonfinite >= self._limit:
            bad = sorted(k for k, v in values.items() if not math.isfinite(v))
            raise UserError(
                f"The run has diverged: {', '.join(bad)} has not been finite for "
                f"{self._nonfinite} steps, up to step {step}. Resume from the last "
                f"checkpoint with a smaller optimizer.learning_rate (and "
                f"--force-resume)."
            )

    def _write_means(self, step: int) -> None:
        now = time.perf_counter()
        steps = max(step - self._since_step, 1)
        seconds = (now - self._since) / steps
        rate = self._images / (now - self._since)
        timing = {
            "time/step": seconds,
            "time/data": self._loading / max(self._loads, 1),
            "time/images_per_second": rate,
            **{f"time/share/{k}": v for k, v in self.clock.shares().items()},
        }
        means = self._averages.means()
        self.write(step, {**means, **timing})
        self._print_means(step, means, seconds, rate)
        self._averages = Averages()
        self._since, self._since_step = now, step
        self._loading, self._loads, self._images = 0.0, 0, 0

    def _print_means(
        self, step: int, means: Mapping[str, float], seconds: float, rate: float
    ) -> None:
        if self._bar is None:
            return
        shown = ", ".join(
            f"{label} {means[name]:.3g}"
            for name, label in self._labels.items()
            if name in means
        )
        speed = f"{rate:.3g} img/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{speed}, {shown}", refresh=False)
            return
        left = _format_duration(seconds * (self._total - step))
        print(
            f"step {step:,} of {self._total:,}  {speed}  {left} left  {shown}",
            flush=True,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line, and TensorBoard's scalars."""
        self._step = step
        if self._file is None:
            return
        from tensorboardX.summary import scalar

        line = {"step": step, **{k: _to_json(v) for k, v in values.items()}}
        with _writing(self._workdir):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._add_event(step, scalar(name, value))

    def _add_event(self, step: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        event = Event(step=step, wall_time=time.time(), summary=summary)
        self._board.write_event(event)

    def show(self, step: int, name: str, picture: "Image.Image") -> None:
        """Write an image for TensorBoard."""
        if self._board is not None:
            from tensorboardX.summary import image

            with _writing(self._workdir):
                summary = image(name, np.asarray(picture), dataformats="HWC")
                self._add_event(step, summary)

    def print(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def flush(self) -> None:
        """Sync everything written so far to the disk."""
        if self._file is not None:
            with _writing(self._workdir):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._board.flush()
                for path in self._board_files:
                    sync(path)
                if self._rotates:
                    self._board.close()
                    self._open_board()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for resource in (self._bar, self._board, self._file):
            if resource is not None:
                with contextlib.suppress(OSError):  # what matters was flushed before
                    resource.close()


@contextlib.contextmanager
def _writing(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write metrics to {error.filename or workdir}: {reason(error)}."
        ) from error


def _to_json(value: float) -> float | str:
    """Round to float32's precision; JSON has no NaN, so that becomes a string."""
    return float(f"{value:.9g}") if math.isfinite(value) else str(value)


def _format_duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{hours} h" if hours < 72 else f"{hours / 24:.1f} days"


def parse_line(line: bytes | str) -> dict[str, float]:
    """Parse a line of metrics.jsonl, or raise ValueError, TypeError or KeyError."""
    numbers = {name: float(value) for name, value in dict(json.loads(line)).items()}
    numbers["step"] = int(numbers["step"])
    return numbers


def truncate_metrics(path: Path, step: int) -> None:
    """Drop lines of later steps, and lines damaged by a kill or a power cut."""
    if not path.exists():
        return
    content = path.read_bytes()
    kept, damaged = [], 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):  # the last, cut by a kill
            break
        try:
            later = parse_line(line)["step"] > step
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            damaged += 1
        else:
            kept += [] if later else [line]
    if damaged:
        logger.warning("%s: dropped %d damaged lines", path, damaged)
    if (truncated := b"".join(kept)) != content:
        write_whole(path, lambda part: part.write_bytes(truncated))
