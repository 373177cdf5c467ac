"""Batches of pictures from a source: the same for any number of processes and workers.

All records of all epochs stand in one order, which the seed decides, and batch number
`step` is `batch_size` of them, in order. A process loads rows of it. So the position
in the data is the number of images before: a run that resumes, with as many processes
or others, goes on exactly. Each place in the order has its own random numbers, for its
crop.

A record that cannot be used is replaced by another, which its place decides too, and is
reported; too many of them end the run.
"""

import dataclasses
import functools
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from multiprocessing import parent_process
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grain
import numpy as np
from absl import flags

from migan_jax.config import available_cores
from migan_jax.data.examples import Crop, Example, decode_crop
from migan_jax.data.mask_samplers import SAMPLERS, Sampler, mask_on_host
from migan_jax.data.rejects import Rejects
from migan_jax.data.sources import Source
from migan_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Batch = dict[str, np.ndarray]

# Other records tried in the place of one that cannot be used.
REPLACEMENTS = 100
# Batches that each worker, or each thread without workers, holds ready.
BATCHES_AHEAD = 2
LAST_STEP = 1 << 40


@dataclasses.dataclass(frozen=True)
class Loader:
    """What a batch is made of; travels to worker processes."""

    source: Source
    crop: Crop
    seed: int
    batch_size: int
    rows: range  # of each batch, that are loaded here
    sampler: Sampler | None = None  # of masks for pictures without their own
    offset: int = 0  # of batch 0 in the order: of a stage after batches of other sizes

    def __post_init__(self) -> None:
        if not 0 <= self.rows.start < self.rows.stop <= self.batch_size:
            raise ValueError(f"{self.rows} are not rows of {self.batch_size}")

    def __call__(self, step: int) -> Batch:
        """Batch number `step`, from 0.

        Returns "image", uint8 [rows, R, R, 3]; with own or drawn masks "mask", uint8
        [rows, R, R, 1], 1 where known; and the record that was "wanted" and the one
        that was "used" in each row.
        """
        places = [self.place(step, row) for row in self.rows]
        wanted = [self.record_at(place) for place in places]
        found = [self._first_usable(*pair) for pair in zip(places, wanted, strict=True)]
        used, examples = zip(*found, strict=True)
        batch = {
            "image": np.stack([example.image for example in examples]),
            "wanted": np.array(wanted),
            "used": np.array(used),
        }
        if examples[0].hole is not None:
            holes = np.stack([example.hole for example in examples])
            batch["mask"] = 1 - holes[..., None].astype(np.uint8)
        elif self.sampler is not None:
            masks = [self._drawn_mask(place) for place in places]
            batch["mask"] = np.stack(masks)[..., None]
        return batch

    def place(self, step: int, row: int) -> int:
        """Where a row of a batch stands in the order of all epochs."""
        return self.offset + step * self.batch_size + row

    def _drawn_mask(self, place: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, place, 5))
        return mask_on_host(self.sampler, rng, self.crop.resolution)

    def record_at(self, place: int) -> int:
        """The record at a place in the order of all epochs."""
        epoch, index = divmod(place, len(self.source))
        return int(_order(self.seed, epoch, len(self.source))[index])

    def candidates(self, place: int, wanted: int) -> Iterator[int]:
        """The records for a place, in the order in which they are tried."""
        yield wanted
        rng = np.random.default_rng((self.seed, place, 1))
        for _ in range(REPLACEMENTS):
            yield int(rng.integers(len(self.source)))

    def _first_usable(self, place: int, wanted: int) -> tuple[int, Example]:
        for record in self.candidates(place, wanted):
            try:
                return record, self.load(record, place)
            except UserError as error:
                last = error
        raise UserError(
            f"No picture of {self.source.fingerprint.source} was found that can be "
            f"used, in {REPLACEMENTS + 1} tries; the last: {last}"
        )

    def load(self, record: int, place: int) -> Example:
        """A record's random crop at a place in the order."""
        rng = np.random.default_rng((self.seed, place))
        source = self.source
        return decode_crop(
            source.encoded(record),
            source.name(record),
            source.mask_hole,
            self.crop,
            rng,
        )


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, records: int) -> np.ndarray:
    """An epoch's permutation; of a million records, megabytes and milliseconds."""
    rng = np.random.default_rng((seed, epoch, 2))
    return rng.permutation(np.arange(records, dtype=np.uint32))


def loader_of(
    config: "ConfigDict",
    source: Source,
    rows: range | None = None,
    *,
    batch_size: int | None = None,
    resolution: int | None = None,
    offset: int = 0,
) -> Loader:
    """Batches of a source as `config` describes them; of each, only some rows.

    Args:
      batch_size, resolution: of a stage with its own.
      offset: of its batch 0 in the order of all epochs.
    """
    data, resolution = config.data, resolution or config.resolution
    batch_size = batch_size or config.batch_size
    smallest = data.smallest_side
    if smallest is None:
        smallest = resolution // 2
    crop = Crop(resolution, data.crop, data.crop_scale, smallest)
    rows = range(batch_size) if rows is None else rows
    sampler = SAMPLERS[data.mask_kind] if data.draw_masks_on == "host" else None
    return Loader(source, crop, config.seed, batch_size, rows, sampler, offset)


class Batches:
    """Batches from `first_step` on, for ever, loaded ahead in the background.

    To be closed, or used in a `with`; workers also end when this process dies.
    """

    def __init__(
        self, loader: Loader, rejects: Rejects, *, first_step: int = 0, workers: int = 0
    ):
        """`workers`: processes that load; 0 means threads of this one."""
        self.loader, self.rejects, self._step = loader, rejects, first_step
        steps = grain.MapDataset.range(first_step, LAST_STEP)
        threads = 1 if workers else available_cores()
        batches = steps.map(loader).to_iter_dataset(
            grain.ReadOptions(threads, prefetch_buffer_size=threads + BATCHES_AHEAD)
        )
        if workers:
            if not flags.FLAGS.is_parsed():  # grain asks for them; we have none
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(workers, BATCHES_AHEAD), _start_worker
            )
        self._iterator = iter(batches)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        loaded = self._load_next()
        # Copied, because workers' arrays are in memory that is theirs to reuse.
        batch = {name: np.array(array) for name, array in loaded.items()}
        wanted, used = batch.pop("wanted"), batch.pop("used")
        replaced = np.flatnonzero(wanted != used)
        for row in replaced:
            self._report(int(row), int(used[row]))
        if replaced.size:
            self.rejects.write()
        self._step += 1
        return batch

    def _load_next(self) -> Batch:
        try:
            return next(self._iterator)
        except UserError:  # no picture was found that can be used
            self._report(0, None)
            self.rejects.write()
            raise
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                "A process that loads pictures was killed, for want of memory or by a "
                "signal: use fewer data.workers, or 0."
            ) from error

    def _report(self, row: int, used: int | None) -> None:
        """Find out what was wrong with those that were tried before `used`."""
        loader = self.loader
        place = loader.place(self._step, loader.rows[row])
        for record in loader.candidates(place, loader.record_at(place)):
            if record == used:
                return
            try:
                loader.load(record, place)
            except UserError as error:
                # By this process, of the images of all stages.
                shown = loader.place(self._step + 1, 0)
                seen = shown * len(loader.rows) // loader.batch_size
                self.rejects.add(loader.source.name(record), str(error), seen)

    def close(self) -> None:
        """Stop loading, and the workers."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None  # grain complains of those that outlive the interpreter

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def batches_of(
    config: "ConfigDict",
    source: Source,
    *,
    rows: range | None = None,
    first_step: int = 0,
    report: Path | None = None,
    **stage: int,
) -> Batches:
    """A source's batches as `config` describes them; of each, only some rows.

    Args:
      report: a JSON file that names what cannot be used.
      stage: what `loader_of` takes besides.
    """
    if first_step < 0:
        raise ValueError(f"first_step is {first_step}")
    loader = loader_of(config, source, rows, **stage)
    rejects = Rejects(loader.source, config.data.bad_share, report)
    workers = config.data.workers
    return Batches(loader, rejects, first_step=first_step, workers=workers)


def _start_worker(worker: int, workers: int) -> None:
    """Let this worker end when the process that started it is gone, even if killed.

    Signals that go to both, Ctrl-C and a scheduler's, are that process's to handle.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what it can do without
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
