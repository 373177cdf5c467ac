"""Completions of a test set, looked at by every metric; resumable and in any pieces.

Pictures are worked off in chunks, each of which leaves one file: what was done before
an interruption is not done again. Of every picture some figures stay in memory, and its
features, 16 kB; the pictures themselves do not.
"""

import hashlib
import importlib.metadata
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from migan_jax.data.mask_sets import digest_of, digest_of_all
from migan_jax.files import reason, write_whole
from migan_jax.metrics.image import NAMES, image_metrics
from migan_jax.metrics.inception import inception_features
from migan_jax.metrics.lpips import lpips
from migan_jax.metrics.table import Table
from migan_jax.metrics.test_set import Pair, TestSet
from migan_jax.models.inception import FEATURES

CHUNK = 128  # pictures
# Chunks of other versions are not used; the first is that of what is in them.
VERSION = 1
PACKAGES = "jax", "numpy", "pillow", "dm-pix", "onnxruntime", "opencv-python-headless"

logger = logging.getLogger(__name__)

# Pictures uint8 [N, R, R, 3] and their holes bool [N, R, R] -> completed pictures.
Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Eyes:
    """Networks that look at pictures, of those whose weights are at hand."""

    inception: Any = None  # variables
    perceptual: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of each file

    @property
    def figures(self) -> tuple[str, ...]:
        return *NAMES, *(f"lpips_{name}" for name in self.perceptual)

    @property
    def features(self) -> int:
        return 0 if self.inception is None else FEATURES

    def look(
        self, truths: np.ndarray, results: np.ndarray, holes: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Figures and features of each pair."""
        seen = dict(image_metrics(truths, results, holes))
        truths, results = spread(truths), spread(results)
        for name, (variables, weights) in self.perceptual.items():
            distances = lpips(name, variables, weights, truths, results)
            seen[f"lpips_{name}"] = np.asarray(distances, np.float64)
        for name, pictures in (("real", truths), ("fake", results)):
            seen[name] = (
                np.zeros((len(pictures), 0), np.float32)
                if self.inception is None
                else np.asarray(inception_features(self.inception, pictures))
            )
        return seen


def spread(pictures: np.ndarray) -> jax.Array:
    """On all devices, a share of the pictures each."""
    mesh = Mesh(jax.local_devices(), ("data",))
    return jax.device_put(pictures, NamedSharding(mesh, PartitionSpec("data")))


def evaluate(
    test_set: TestSet,
    fill: Fill,
    eyes: Eyes,
    folder: Path,
    *,
    identity: Mapping[str, Any],
    batch_size: int,
    advance: Callable[[int], object] = lambda count: None,
) -> tuple[Table, str]:
    """The table of all pictures, and the digest of all holes.

    Args:
      folder: where chunks are kept; it exists.
      identity: of what fills the holes; chunks of something else are not used.
      batch_size: pictures at a time, rounded up to a multiple of the devices.
      advance: called with the number of pictures just done.
    """
    devices = jax.local_device_count()
    batch_size = -(-batch_size // devices) * devices  # each has as many
    about = {
        "version": VERSION,
        "packages": versions(PACKAGES),
        "test_set": test_set.identity,
        "eyes": eyes.sources,
        **identity,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    tables, digests = [Table.empty(eyes.figures, eyes.features)], []
    for start in range(0, len(test_set), CHUNK):
        numbers = range(start, min(start + CHUNK, len(test_set)))
        path = folder / f"{key[:16]}-{start:08d}.npz"
        content = _read(path)
        if content is None:
            content = _chunk(test_set, numbers, fill, eyes, batch_size)
            write_whole(path, lambda part, c=content: _save(part, c))
        tables.append(_table_of(content, eyes))
        digests += [str(digest) for digest in content["digests"]]
        advance(len(numbers))
    return Table.of(tables), digest_of_all(digests)


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Of those that are installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """A chunk that is there and whole; what is damaged is done again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            return dict(content)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged and done again: %s", path, reason(error))
        return None


def _chunk(
    test_set: TestSet, numbers: range, fill: Fill, eyes: Eyes, batch_size: int
) -> dict[str, np.ndarray]:
    """Everything about some pictures, an array of each kind."""
    parts: dict[str, list[np.ndarray]] = {}
    for pairs in _batches(test_set, numbers, batch_size):
        count = len(pairs)
        truths, holes = (
            _filled_up([getattr(pair, name) for pair in pairs], batch_size)
            for name in ("truth", "hole")
        )
        seen = eyes.look(truths, fill(truths, holes), holes)
        seen["names"] = np.array([pair.name for pair in pairs])
        seen["ratios"] = holes.mean(axis=(1, 2))
        seen["digests"] = np.array([digest_of(pair.hole) for pair in pairs])
        for name, values in seen.items():
            parts.setdefault(name, []).append(values[:count])
    return {name: np.concatenate(values) for name, values in parts.items()}


def _batches(
    test_set: TestSet, numbers: range, batch_size: int
) -> Iterator[list[Pair]]:
    for start in range(0, len(numbers), batch_size):
        yield test_set.batch(numbers[start : start + batch_size])


def _filled_up(arrays: list[np.ndarray], count: int) -> np.ndarray:
    """A whole batch, of which repeats of the last one are dropped again."""
    return np.stack([*arrays, *[arrays[-1]] * (count - len(arrays))])


def _save(path: Path, content: Mapping[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **content)


def _table_of(content: Mapping[str, np.ndarray], eyes: Eyes) -> Table:
    return Table(
        tuple(str(name) for name in content["names"]),
        content["ratios"],
        {name: content[name] for name in eyes.figures},
        content["real"],
        content["fake"],
    )
