"""Networks that metrics look at pictures with: those whose public weights are here."""

from pathlib import Path
from typing import Any

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

Missing = dict[str, str]  # by metric, why it cannot be had


def open_eyes() -> tuple[Eyes, Missing]:
    """All that can be opened."""
    paths, missing = _find_all()
    return _load_all(paths, missing), missing


def open_common_eyes(best_by: str) -> Eyes:
    """Of a run: those that all its processes have, `best_by`'s among them.

    The others are done without, and nothing is said of them: nobody asked.
    """
    paths, missing = _find_all()
    here = np.array([[name in paths for name in FILES]], np.uint32)
    everywhere = processes.together(here, "feature weights are looked for").all(axis=0)
    for name, on_all in zip(FILES, everywhere, strict=True):
        if not on_all and paths.pop(name, None):
            _miss(missing, name, f"{FILES[name].name} is not on all hosts.")
    eyes = _load_all(paths, missing)
    if best_by in missing:
        raise UserError(f"best_by is {best_by}, but {missing[best_by]}")
    return eyes


def _find_all() -> tuple[dict[str, Path], Missing]:
    paths: dict[str, Path] = {}
    missing: Missing = {}
    for name in FILES:
        try:
            paths[name] = find(name)
        except UserError as error:
            _miss(missing, name, str(error))
    return paths, missing


def _load_all(paths: dict[str, Path], missing: Missing) -> Eyes:
    """Files that cannot be read join the missing ones."""
    inception, perceptual = None, {}
    sources = {name: FILES[name].sha256 for name in paths}

    def load(name: str, loader: Any, *arguments: Any) -> Any:
        try:
            return on_every_device(loader(*arguments))
        except UserError as error:  # as without PyTorch, which reads them
            _miss(missing, name, str(error))
            del sources[name]
            return None

    if "fid" not in missing:
        inception = load("inception", load_inception, paths["inception"])
    for name in ("alex", "vgg"):
        if f"lpips_{name}" not in missing:
            files = paths[name], paths[f"{name}_lpips"]
            if loaded := load(name, load_perceptual, name, *files):
                perceptual[name] = loaded
    return Eyes(inception, perceptual, sources)


def _miss(missing: Missing, name: str, why: str) -> None:
    for metric in FILES[name].metrics:  # some need two files
        missing[metric] = f"{missing.get(metric, '')} {why}".strip()
