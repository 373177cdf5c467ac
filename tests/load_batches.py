"""A process of its own that loads batches, for tests: prints a hash of every row,
which is a picture, its own mask and one that is drawn.

python load_batches.py FOLDER MASKS PROCESS PROCESSES FIRST_STEP STEPS WORKERS
"""

import hashlib
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from photo_folders import rows_of_process, small_loader

from migan_jax.data.mask_samplers import SAMPLERS, masks_on_device
from migan_jax.data.pipeline import Batches
from migan_jax.data.rejects import Rejects
from migan_jax.data.transforms import sample_keys


def rows(folder, masks, process, processes, first_step, steps, workers, stop=()):
    """(step, row, hash) of every row that a process loads, until there is a `stop`."""
    loader = small_loader(folder, rows_of_process(4, process, processes), masks)
    draw = jax.jit(lambda keys: masks_on_device(SAMPLERS["box"], keys, 16))
    rejects = Rejects(loader.source, 0.5, report=None)
    with Batches(loader, rejects, first_step=first_step, workers=workers) as batches:
        for step in range(first_step, first_step + steps):
            if stop:
                raise KeyboardInterrupt
            batch = next(batches)
            drawn = draw(
                sample_keys(jax.random.key(0), step, np.arange(loader.batch_size))
            )
            for index, row in enumerate(loader.rows):
                arrays = batch["image"][index], batch["mask"][index], drawn[row]
                digest = hashlib.sha256(b"".join(map(bytes, arrays))).hexdigest()
                yield step, row, digest


def main():
    # In the background of a shell, Ctrl-C would be ignored. Raised between batches, as
    # the trainer stops: Python drops an exception that a signal raises in a destructor,
    # and the loaded arrays have such.
    interruptions = []
    signal.signal(signal.SIGINT, lambda *args: interruptions.append(args))
    folder, masks = map(Path, sys.argv[1:3])
    for row in rows(folder, masks, *map(int, sys.argv[3:]), stop=interruptions):
        print(*row, flush=True)


if __name__ == "__main__":
    main()
