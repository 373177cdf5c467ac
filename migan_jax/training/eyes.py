"""Networks that metrics look at pictures with: those whose public weights are here."""

import logging

import numpy as np

from migan_jax.errors import UserError
from migan_jax.metrics.evaluator import Eyes, on_every_device
from migan_jax.training import processes
from migan_jax.weights.feature_networks import (
    FILES,
    find,
    load_inception,
    load_perceptual,
)

logger = logging.getLogger(__name__)


def open_eyes() -> tuple[Eyes, dict[str, str]]:
    """All that can be opened, and by metric why it cannot be had."""
    paths, missing = {}, {}
    for name, file in FILES.items():
        try:
            paths[name] = find(name)
        except UserError as error:
            for metric in file.metrics:  # some need two files
                missing[metric] = f"{missing.get(metric, '')} {error}".strip()
    inception, perceptual = None, {}
    if "fid" not in missing:
        inception = on_every_device(load_inception(paths["inception"]))
    for name in ("alex", "vgg"):
        if f"lpips_{name}" not in missing:
            loaded = load_perceptual(name, paths[name], paths[f"{name}_lpips"])
            perceptual[name] = on_every_device(loaded)
    sources = {name: FILES[name].sha256 for name in paths}
    return Eyes(inception, perceptual, sources), missing


def open_common_eyes(best_by: str) -> Eyes:
    """Networks to look with, which all processes must have, and `best_by` may need."""
    eyes, missing = open_eyes()
    if best_by in missing:
        raise UserError(f"best_by is {best_by}, but {missing[best_by]}")
    if missing:
        without = ", ".join(missing)
        logger.info("held-out pictures: without %s, see evaluate --help", without)
    here = np.array([[name in eyes.sources for name in FILES]], np.uint32)
    everywhere = processes.together(here, "feature weights are looked for")
    if (everywhere != here).any():
        raise UserError(
            "Some hosts of this run have feature weights that others have not: put the "
            "same files on all of them, or on none."
        )
    return eyes
