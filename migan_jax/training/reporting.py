"""What a run says of itself: metrics.jsonl, TensorBoard, and a line or a bar.

Metrics are means over the steps since the last line. What belongs to a checkpoint is on
the disk before the checkpoint is, and what is newer than the checkpoint that a run goes
on from is cut off again: the files read as if nothing had been interrupted, but for
`time/...`, which is measured. Process 0 alone writes.
"""

import contextlib
import json
import logging
import math
import os
import struct
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


class Averages:
    """Means of metrics over steps; a metric need not be there in every step."""

    def __init__(self, sums: Mapping[str, tuple[float, int]] | None = None):
        self.sums = {name: tuple(pair) for name, pair in (sums or {}).items()}

    def add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value, count + 1

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items()}


class Reporter:
    """Takes every step's metrics, and writes some. To be used in a `with`.

    A step's metrics are waited for when the next step is on its way.
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
    ):
        """
        Args:
          labels: metrics that the line and the bar show if they are there, in this
            order, and what they are called.
          first_step: that this run begins with; the files are cut back to it.
          earlier: what `position` gave there; None if nothing was saved.
        """
        # Without a checkpoint nothing that is there belongs to this run.
        kept = -1 if earlier is None else first_step
        earlier = earlier or {"sums": {}}
        self._total, self._labels = total_steps, labels
        self._every, self._limit = log_every_steps, nonfinite_steps
        # Of the newest step, which is on its way: number, metrics, images.
        self._pending: tuple[int, Mapping[str, Any], int] | None = None
        self._images = 0  # since the last line
        self._averages = Averages(earlier["sums"])
        self._nonfinite = 0  # with other losses nothing is saved to go on from
        self._waited, self._waits = 0.0, 0
        self._since, self._since_step = time.perf_counter(), first_step
        self._file = self._board = self._bar = None
        if jax.process_index() == 0:
            self._open(workdir, first_step, kept)

    def _open(self, workdir: Path, first_step: int, kept: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tqdm import tqdm

        board = workdir / BOARD_FOLDER
        with _writing(workdir):
            board.mkdir(exist_ok=True)
            cut_lines(workdir / METRICS_FILE, kept)
            for path in sorted(board.glob("events.*")):
                cut_events(path, kept)
            self._file = (workdir / METRICS_FILE).open("a")
            # Not the SummaryWriter, whose thread leaves open what is on the disk. Names
            # hold a second, in which a short run may end and go on.
            self._board = EventsWriter(str(board / "events"), f".{first_step:08}")
            self._board_files = [*board.glob(f"events.*.{first_step:08}")]
            sync(board)
            sync(workdir)
        self._workdir = workdir
        self._bar = tqdm(
            total=self._total,
            initial=first_step,
            unit="step",
            disable=None,  # unless this is a terminal
            dynamic_ncols=True,
            smoothing=0.1,
        )

    @property
    def position(self) -> dict[str, Any]:
        """What a run has to know to go on, as JSON."""
        return {"sums": self._averages.sums}

    @property
    def is_finite(self) -> bool:
        """Whether the last step's losses were."""
        return self._nonfinite == 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start
        self._waits += 1

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Time in here is not part of any step."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def report(self, step: int, metrics: Mapping[str, Any], images: int) -> None:
        """The metrics of the step that makes the state number `step`, of some images.

        UserError if too many in a row, up to the step before, are not finite.
        """
        pending, self._pending = self._pending, (step, metrics, images)
        self._take(pending)

    def catch_up(self) -> None:
        """Wait for the newest step's, too."""
        pending, self._pending = self._pending, None
        self._take(pending)

    def _take(self, pending: tuple[int, Mapping[str, Any], int] | None) -> None:
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
            self._log(step)
        if self._nonfinite >= self._limit:
            bad = sorted(k for k, v in values.items() if not math.isfinite(v))
            raise UserError(
                f"{', '.join(bad)} has not been finite for {self._nonfinite} steps, up "
                f"to step {step}: the run has diverged. Go on from the last checkpoint "
                f"with a smaller optimizer.learning_rate (and --force-resume)."
            )

    def _log(self, step: int) -> None:
        now = time.perf_counter()
        steps = max(step - self._since_step, 1)
        seconds = (now - self._since) / steps
        rate = self._images / (now - self._since)
        timing = {
            "time/step": seconds,
            "time/data": self._waited / max(self._waits, 1),
            "time/images_per_second": rate,
        }
        means = self._averages.means()
        self.write(step, {**means, **timing})
        self._say(step, means, seconds, rate)
        self._averages = Averages()
        self._since, self._since_step = now, step
        self._waited, self._waits, self._images = 0.0, 0, 0

    def _say(
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
        left = _duration(seconds * (self._total - step))
        print(
            f"step {step:,} of {self._total:,}  {speed}  {left} left  {shown}",
            flush=True,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A line of its own, and TensorBoard's points."""
        if self._file is None:
            return
        from tensorboardX.summary import scalar

        line = {"step": step, **{k: _rounded(v) for k, v in values.items()}}
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
        """A picture for TensorBoard."""
        if self._board is not None:
            from tensorboardX.summary import image

            with _writing(self._workdir):
                summary = image(name, np.asarray(picture), dataformats="HWC")
                self._add_event(step, summary)

    def say(self, text: str) -> None:
        """A line, beside the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def flush(self) -> None:
        """Bring everything so far to the disk."""
        if self._file is not None:
            with _writing(self._workdir):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._board.flush()
                for path in self._board_files:
                    sync(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for resource in (self._bar, self._board, self._file):
            if resource is not None:
                with contextlib.suppress(OSError):  # what counts is flushed before
                    resource.close()


@contextlib.contextmanager
def _writing(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Metrics cannot be written to {error.filename or workdir}: "
            f"{reason(error)}."
        ) from error


def _rounded(value: float) -> float | str:
    """As JSON, which has no NaN, and as short as float32 is exact."""
    return float(f"{value:.9g}") if math.isfinite(value) else str(value)


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{hours} h" if hours < 72 else f"{hours / 24:.1f} days"


def numbers_in(line: bytes | str) -> dict[str, float]:
    """A line of metrics.jsonl; ValueError, TypeError or KeyError if it is damaged."""
    numbers = {name: float(value) for name, value in dict(json.loads(line)).items()}
    numbers["step"] = int(numbers["step"])
    return numbers


def cut_lines(path: Path, step: int) -> None:
    """Drop the lines of later steps, and what a kill or a power cut has spoiled."""
    if not path.exists():
        return
    content = path.read_bytes()
    kept, spoiled = [], 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):  # the last, at which the run was killed
            break
        try:
            later = numbers_in(line)["step"] > step
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            spoiled += 1
        else:
            kept += [] if later else [line]
    if spoiled:
        logger.warning("%s: left out %d damaged lines", path, spoiled)
    _write_if_changed(path, content, b"".join(kept))


def cut_events(path: Path, step: int) -> None:
    """The same for a file of TensorBoard's events.

    A record is its length in 8 bytes, their checksum in 4, the event, and its in 4.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    def fits(begin: int, end: int) -> bool:
        return content[end : end + 4] == struct.pack(
            "<I", masked_crc32c(content[begin:end])
        )

    content = path.read_bytes()
    kept, spoiled, start = [], 0, 0
    while start < len(content):
        if not fits(start, start + 8):  # nobody knows where the next one begins
            spoiled += 1
            break
        (length,) = struct.unpack_from("<Q", content, start)
        end = start + 12 + length
        if not fits(start + 12, end):
            spoiled += 1
        elif Event.FromString(content[start + 12 : end]).step <= step:
            kept.append(content[start : end + 4])
        start = end + 4
    if spoiled:
        logger.warning("%s: left out %d damaged records", path, spoiled)
    _write_if_changed(path, content, b"".join(kept))


def _write_if_changed(path: Path, before: bytes, after: bytes) -> None:
    if before != after:
        write_whole(path, lambda part: part.write_bytes(after))
