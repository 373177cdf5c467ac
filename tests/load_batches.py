"""Load batches in a separate process; print a hash of each row.

A row is an image, its own mask and a drawn mask.

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


def hash_rows(folder, masks, process, processes, first_step, steps, workers, stop=()):
    """Yield (step, row, hash) of each row that a process loads, until `stop`."""
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
    # Raise KeyboardInterrupt between batches, as the trainer does: Python drops
    # exceptions of signal handlers inside destructors, which the loaded arrays have.
    # Also, shells let background processes ignore Ctrl-C.
    interruptions = []
    signal.signal(signal.SIGINT, lambda *args: interruptions.append(args))
    folder, masks = map(Path, sys.argv[1:3])
    for row in hash_rows(folder, masks, *map(int, sys.argv[3:]), stop=interruptions):
        print(*row, flush=True)


if __name__ == "__main__":
    main()
