"""Batches of a source's images, the same for any number of processes and workers.

The seed determines one order of the records of all epochs. Batch `step` is the next
`batch_size` records in this order, and each process loads some of its rows. A position
in the order is thus a number of images, at which a run can resume with any number of
processes. Each position has its own random numbers, for the crop.

An unusable record is reported and replaced by another one, which also depends on the
position only. Too many of them end the run.
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
from migan_jax.data.examples import CropSettings, Example, decode_crop
from migan_jax.data.mask_samplers import SAMPLERS, HostSampler, mask_on_host
from migan_jax.data.rejects import Rejects
from migan_jax.data.sources import Source
from migan_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HostBatch = dict[str, np.ndarray]

MAX_REPLACEMENTS = 100  # records to try instead of an unusable one
BATCHES_AHEAD = 2  # to load in advance, per worker, or per thread without workers
END_STEP = 1 << 40  # never reached


@dataclasses.dataclass(frozen=True)
class Loader:
    """Loads batches; is pickled to worker processes."""

    source: Source
    crop: CropSettings
    seed: int
    batch_size: int
    rows: range  # of each batch, to load in this process
    sampler: HostSampler | None = None  # of masks, for images without their own
    offset: int = 0  # position of batch 0, after stages with other batch sizes

    def __post_init__(self) -> None:
        if not 0 <= self.rows.start < self.rows.stop <= self.batch_size:
            raise ValueError(f"rows {self.rows} of a batch of {self.batch_size}")

    def __call__(self, step: int) -> HostBatch:
        """Load this process's rows of a batch.

        Returns "image", uint8 [rows, R, R, 3]; if the source has masks, or if they are
        drawn here, "mask", uint8 [rows, R, R, 1], 1 where known; if it has keypoints,
        "points", float32 [rows, K, 2], relative to the crop; for each row the "planned"
        record of the order, and the "used" one.
        """
        positions = [self.position(step, row) for row in self.rows]
        planned = [self.record_at(position) for position in positions]
        used, examples = zip(*map(self._load_usable, positions, planned), strict=True)
        batch = {
            "image": np.stack([example.image for example in examples]),
            "planned": np.array(planned),
            "used": np.array(used),
        }
        if examples[0].hole is not None:
            holes = np.stack([example.hole for example in examples])
            batch["mask"] = 1 - holes[..., None].astype(np.uint8)
        elif self.sampler is not None:
            masks = [self._draw_mask(position) for position in positions]
            batch["mask"] = np.stack(masks)[..., None]
        if examples[0].points is not None:
            batch["points"] = np.stack([example.points for example in examples])
        return batch

    def position(self, step: int, row: int) -> int:
        """Return the position of a batch's row in the order of all epochs."""
        return self.offset + step * self.batch_size + row

    def _draw_mask(self, position: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, position, 5))
        return mask_on_host(self.sampler, rng, self.crop.resolution)

    def record_at(self, position: int) -> int:
        """Return the record at a position in the order of all epochs."""
        epoch, index = divmod(position, len(self.source))
        return int(_permutation(self.seed, epoch, len(self.source))[index])

    def candidates(self, position: int, planned: int) -> Iterator[int]:
        """Yield the records to try at a position."""
        yield planned
        rng = np.random.default_rng((self.seed, position, 1))
        for _ in range(MAX_REPLACEMENTS):
            yield int(rng.integers(len(self.source)))

    def _load_usable(self, position: int, planned: int) -> tuple[int, Example]:
        for record in self.candidates(position, planned):
            try:
                return record, self.load(record, position)
            except UserError as error:
                last = error
        raise UserError(
            f"Found no usable image in {self.source.fingerprint.source} in "
            f"{MAX_REPLACEMENTS + 1} tries. The last: {last}"
        )

    def load(self, record: int, position: int) -> Example:
        """Load a record's random crop at a position in the order."""
        rng = np.random.default_rng((self.seed, position))
        source = self.source
        return decode_crop(
            source.encoded(record),
            source.name(record),
            source.mask_hole,
            self.crop,
            rng,
        )


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, records: int) -> np.ndarray:
    """Return an epoch's order; a million records take megabytes and milliseconds."""
    rng = np.random.default_rng((seed, epoch, 2))
    return rng.permutation(np.arange(records, dtype=np.uint32))


def make_loader(
    config: "ConfigDict",
    source: Source,
    rows: range | None = None,
    *,
    batch_size: int | None = None,
    resolution: int | None = None,
    offset: int = 0,
) -> Loader:
    """Make the loader that a configuration describes.

    Args:
      rows: of each batch, to load in this process; default: all.
      batch_size, resolution: of the stage; default: the configuration's.
      offset: position of the stage's batch 0 in the order of all epochs.
    """
    data, resolution = config.data, resolution or config.resolution
    batch_size = batch_size or config.batch_size
    min_side = resolution // 2 if data.smallest_side is None else data.smallest_side
    crop = CropSettings(resolution, data.crop, data.crop_scale, min_side)
    rows = range(batch_size) if rows is None else rows
    sampler: HostSampler | None = source.unpaired_masks
    if sampler is None and data.draw_masks_on == "host":
        sampler = SAMPLERS[data.mask_kind]
    return Loader(source, crop, config.seed, batch_size, rows, sampler, offset)


class Batches:
    """An endless iterator of batches, loaded ahead in the background.

    A context manager. Workers also end when this process dies.
    """

    def __init__(
        self, loader: Loader, rejects: Rejects, *, first_step: int = 0, workers: int = 0
    ):
        """Start `workers` loader processes, or threads if 0."""
        self.loader, self.rejects, self._step = loader, rejects, first_step
        steps = grain.MapDataset.range(first_step, END_STEP)
        threads = 1 if workers else available_cores()
        batches = steps.map(loader).to_iter_dataset(
            grain.ReadOptions(threads, prefetch_buffer_size=threads + BATCHES_AHEAD)
        )
        if workers:
            if not flags.FLAGS.is_parsed():  # grain requires parsed flags
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(workers, BATCHES_AHEAD), _start_worker
            )
        self._iterator = iter(batches)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> HostBatch:
        loaded = self._load_next()
        # Copy, because workers reuse the memory of their arrays.
        batch = {name: np.array(array) for name, array in loaded.items()}
        planned, used = batch.pop("planned"), batch.pop("used")
        replaced = np.flatnonzero(planned != used)
        for row in replaced:
            self._report(int(row), int(used[row]))
        if replaced.size:
            self.rejects.write()
        self._step += 1
        return batch

    def _load_next(self) -> HostBatch:
        try:
            return next(self._iterator)
        except UserError:  # found no usable image
            self._report(0, None)
            self.rejects.write()
            raise
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                "A loader process was killed, by a signal or for lack of memory. Use "
                "fewer data.workers, or 0."
            ) from error

    def _report(self, row: int, used: int | None) -> None:
        """Load the records tried before `used` again, to report their errors."""
        loader = self.loader
        position = loader.position(self._step, loader.rows[row])
        for record in loader.candidates(position, loader.record_at(position)):
            if record == used:
                return
            try:
                loader.load(record, position)
            except UserError as error:
                # Images that all processes have loaded, in all stages.
                seen = loader.position(self._step + 1, 0)
                self.rejects.add(loader.source.name(record), str(error), seen)

    def close(self) -> None:
        """Stop loading and end the workers."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None  # grain complains if it outlives the interpreter

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_batches(
    config: "ConfigDict",
    source: Source,
    *,
    rows: range | None = None,
    first_step: int = 0,
    report: Path | None = None,
    **stage: int,
) -> Batches:
    """Open the batches that a configuration describes.

    Args:
      rows: of each batch, to load in this process; default: all.
      report: a JSON file for the list of unusable images.
      stage: further arguments of `make_loader`.
    """
    if first_step < 0:
        raise ValueError(f"first_step is {first_step}")
    loader = make_loader(config, source, rows, **stage)
    rejects = Rejects(loader.source, config.data.max_rejected_fraction, report)
    workers = config.data.workers
    return Batches(loader, rejects, first_step=first_step, workers=workers)


def _start_worker(worker: int, workers: int) -> None:
    """End this worker when its parent process ends, even if that is killed.

    Ctrl-C and schedulers signal both processes; the parent handles that.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of oddities in images
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, signal.SIG_IGN)

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
