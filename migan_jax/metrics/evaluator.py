"""Completions of a test set, looked at by every metric; resumable and in any pieces.

Pictures are worked off in chunks, each of which leaves one file for every method: what
was done before an interruption is not done again, and no picture stays in memory. Then
the files of a method are read as a table: some figures and 16 kB of features for each
picture.
"""

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from migan_jax.data.mask_sets import digest_of, digest_of_all
from migan_jax.errors import UserError
from migan_jax.files import reason, write_whole
from migan_jax.metrics.image import image_metrics
from migan_jax.metrics.inception import inception_features
from migan_jax.metrics.lpips import lpips
from migan_jax.metrics.table import Table
from migan_jax.metrics.test_set import TestSet

CHUNK = 128  # pictures
# Chunks of other versions are not used; the first is that of what is in them.
VERSION = 3
DIGEST = hashlib.sha256().digest_size  # bytes, at the end of a chunk's file
FIGURE = "figure."  # before their names, in a chunk's file
PACKAGES = "jax", "numpy", "pillow", "dm-pix", "onnxruntime", "opencv-python-headless"

logger = logging.getLogger(__name__)

# Pictures uint8 [N, R, R, 3] and their holes bool [N, R, R] -> completed pictures.
Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Method(NamedTuple):
    """What fills holes, and what tells it from all others."""

    fill: Fill
    identity: Mapping[str, str]
    resolution: int | None = None  # that it was made for; None for any
    name: str = "A method"  # in sentences


class NotFinite(UserError):
    """A network makes NaN or infinity of one of the pictures that it was given."""

    def __init__(self, place: int, of: str = "a picture", method: str = "A network"):
        self.place = place  # of that picture
        super().__init__(
            f"{method} makes NaN or infinity of {of}: its run has diverged, or it "
            f"needs a higher precision, so leave it out."
        )


@dataclass(frozen=True)
class Eyes:
    """Networks that look at pictures, of those whose weights are at hand."""

    inception: Any = None  # variables
    perceptual: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of each file

    def compare(
        self, truths: np.ndarray, results: np.ndarray, holes: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Figures of each pair, [N] of each name."""
        figures = dict(image_metrics(truths, results, holes))
        for name, (variables, weights) in self.perceptual.items():
            distances = [
                lpips(
                    name, variables, weights, spread(truths[few]), spread(results[few])
                )
                for few in _few_by_few(len(truths))
            ]
            figures[f"lpips_{name}"] = np.concatenate(distances)[: len(truths)]
        return figures

    def features(self, pictures: np.ndarray) -> np.ndarray:
        """Of each picture, [N, 2048]; [N, 0] without Inception."""
        if self.inception is None:
            return np.zeros((len(pictures), 0), np.float32)
        features = inception_features(self.inception, spread(pictures))
        return np.asarray(features)[: len(pictures)]


def _few_by_few(count: int) -> Iterator[slice]:
    """A picture for each device: of large ones VGG makes gigabytes."""
    step = jax.local_device_count()
    return (slice(start, start + step) for start in range(0, count, step))


def spread(array: np.ndarray) -> jax.Array:
    """On all devices of this process, as many rows each: more of the last fill up."""
    more = -len(array) % jax.local_device_count()
    array = np.concatenate([array, np.repeat(array[-1:], more, axis=0)])
    return jax.device_put(array, _over_devices("data"))


def on_every_device(tree: Any) -> Any:
    """Weights, for what is spread."""
    return jax.device_put(tree, _over_devices())


def _over_devices(*axes: str) -> NamedSharding:
    return NamedSharding(Mesh(jax.local_devices(), ("data",)), PartitionSpec(*axes))


class Evaluation:
    """Methods on one test set, with what is known of them in a folder that exists."""

    def __init__(self, test_set: TestSet, eyes: Eyes, folder: Path):
        self._test_set, self._eyes, self._folder = test_set, eyes, folder

    def work_off(
        self,
        methods: Sequence[Method],
        batch_size: int,
        advance: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Let every method fill every hole, and look at that.

        Args:
          batch_size: pictures at a time.
          advance: called with the number of completions just done.
        """
        paths = [self._paths(method) for method in methods]
        for number, chunk in enumerate(self._chunks()):
            missing = {}
            for method, path in zip(methods, (p[number] for p in paths), strict=True):
                # Of the same weights by two names there is one.
                if path in missing or _read(path) is not None:
                    advance(len(chunk))
                else:
                    missing[path] = method
            for path, content in self._look(chunk, missing, batch_size, advance):
                write_whole(path, lambda part, c=content: _save(part, c))

    def table(self, method: Method) -> tuple[Table, str]:
        """Of all pictures, once they are worked off; and the digest of all holes."""
        contents = []
        for path in self._paths(method):
            if (content := _read(path)) is None:
                raise UserError(f"{path} was changed meanwhile: run the command again.")
            contents.append(content)
        tables = [_table_of(content) for content in contents]
        digests = [str(digest) for c in contents for digest in c["digests"]]
        return Table.of(tables), digest_of_all(digests)

    def _chunks(self) -> list[range]:
        count = len(self._test_set)
        return [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]

    def _paths(self, method: Method) -> list[Path]:
        """One for each chunk. Those of anything else have other names."""
        about = {
            "version": VERSION,
            "packages": versions(PACKAGES),
            "test_set": self._test_set.identity,
            "eyes": self._eyes.sources,
            **method.identity,
        }
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        starts = [chunk.start for chunk in self._chunks()]
        return [self._folder / f"{key[:16]}-{start:08d}.npz" for start in starts]

    def _look(
        self,
        chunk: range,
        methods: Mapping[Path, Method],
        batch_size: int,
        advance: Callable[[int], object],
    ) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
        """All that is to be known about a chunk's pictures, by path of each method."""
        parts: dict[Path, list[dict[str, np.ndarray]]] = {path: [] for path in methods}
        for start in range(0, len(chunk) if methods else 0, batch_size):
            pairs = self._test_set.batch(chunk[start : start + batch_size])
            names, truths, holes = zip(*pairs, strict=True)
            # A whole batch, of which repeats of the last one are dropped again.
            repeats = batch_size - len(pairs)
            truths, holes = (np.stack(x + x[-1:] * repeats) for x in (truths, holes))
            shared = {
                "names": np.array(names),
                "ratios": holes.mean(axis=(1, 2)),
                "digests": np.array([digest_of(pair.hole) for pair in pairs]),
                "real": self._eyes.features(truths),
            }
            for path, method in methods.items():
                try:
                    results = method.fill(truths, holes)
                except NotFinite as error:
                    where = error.place
                    raise NotFinite(where, names[where], method.name) from error
                seen = {**shared, "fake": self._eyes.features(results)}
                for name, values in self._eyes.compare(truths, results, holes).items():
                    seen[FIGURE + name] = values
                parts[path].append({k: v[: len(pairs)] for k, v in seen.items()})
                advance(len(pairs))
        for path, seen in parts.items():
            yield path, {k: np.concatenate([part[k] for part in seen]) for k in seen[0]}


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
        saved = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s is done again: %s", path, reason(error))
        return None
    content, digest = saved[:-DIGEST], saved[-DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("%s is damaged and done again.", path)
        return None
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _save(path: Path, content: Mapping[str, np.ndarray]) -> None:
    """With a digest after it, by which any damage is told."""
    buffer = BytesIO()
    np.savez(buffer, **content)
    saved = buffer.getvalue()
    path.write_bytes(saved + hashlib.sha256(saved).digest())


def _table_of(content: Mapping[str, np.ndarray]) -> Table:
    figures = {
        name.removeprefix(FIGURE): values
        for name, values in content.items()
        if name.startswith(FIGURE)
    }
    names = tuple(str(name) for name in content["names"])
    return Table(names, content["ratios"], figures, content["real"], content["fake"])
