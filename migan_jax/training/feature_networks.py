"""Loading of the feature networks of FID, KID and LPIPS, where weights are found."""

from pathlib import Path
from typing import Any

import numpy as np

from migan_jax.errors import UserError
from migan_jax.metrics.evaluator import FeatureNetworks, replicate
from migan_jax.training import processes
from migan_jax.weights.feature_networks import (
    FILES,
    find,
    load_inception,
    load_perceptual,
)

Missing = dict[str, str]  # by metric: why it is unavailable
METRIC_FILES = [name for name, file in FILES.items() if file.metrics]


def open_feature_networks() -> tuple[FeatureNetworks, Missing]:
    """Load all feature networks whose weights are found."""
    paths, missing = _find_all()
    return _load_all(paths, missing), missing


def open_shared_feature_networks(best_by: str) -> FeatureNetworks:
    """Load the feature networks that all processes have.

    Raise UserError if `best_by` needs another one. Others are silently skipped.
    """
    paths, missing = _find_all()
    found = np.array([[name in paths for name in METRIC_FILES]], np.uint32)
    found_by_all = processes.all_gather(found, "feature weights").all(axis=0)
    for name, on_all in zip(METRIC_FILES, found_by_all, strict=True):
        if not on_all and paths.pop(name, None):
            _add_missing(missing, name, f"{FILES[name].name} is not on all hosts.")
    feature_networks = _load_all(paths, missing)
    if best_by in missing:
        raise UserError(f"best_by is {best_by}, but {missing[best_by]}")
    return feature_networks


def _find_all() -> tuple[dict[str, Path], Missing]:
    paths: dict[str, Path] = {}
    missing: Missing = {}
    for name in METRIC_FILES:
        try:
            paths[name] = find(name)
        except UserError as error:
            _add_missing(missing, name, str(error))
    return paths, missing


def _load_all(paths: dict[str, Path], missing: Missing) -> FeatureNetworks:
    """Load the networks; add those that cannot be read to `missing`."""
    inception, perceptual = None, {}
    sources = {name: FILES[name].sha256 for name in paths}

    def load(name: str, loader: Any, *arguments: Any) -> Any:
        try:
            return replicate(loader(*arguments))
        except UserError as error:  # for example, PyTorch is not installed
            _add_missing(missing, name, str(error))
            del sources[name]
            return None

    if "fid" not in missing:
        inception = load("inception", load_inception, paths["inception"])
    for name in ("alex", "vgg"):
        if f"lpips_{name}" not in missing:
            files = paths[name], paths[f"{name}_lpips"]
            if loaded := load(name, load_perceptual, name, *files):
                perceptual[name] = loaded
    return FeatureNetworks(inception, perceptual, sources)


def _add_missing(missing: Missing, name: str, why: str) -> None:
    for metric in FILES[name].metrics:  # some need two files
        missing[metric] = f"{missing.get(metric, '')} {why}".strip()
