"""Evaluation of a test set by all metrics, resumable and independent of batching.

Images are evaluated in chunks. Each chunk writes one file per method, so an interrupted
evaluation resumes after the last chunk, and no image stays in memory. The files of a
method are then read as one table: its metrics and 16 kB of features per image.
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

from migan_jax.data.mask_sets import combine_hashes, hash_hole
from migan_jax.errors import UserError
from migan_jax.files import reason, write_whole
from migan_jax.metrics.image import image_metrics
from migan_jax.metrics.inception import inception_features
from migan_jax.metrics.lpips import lpips
from migan_jax.metrics.table import Table
from migan_jax.metrics.test_set import TestSet

CHUNK_SIZE = 128  # images
VERSION = 4  # of the chunk files; raise it when their content changes
DIGEST_SIZE = hashlib.sha256().digest_size  # bytes, at the end of a chunk file
METRIC_PREFIX = "metric."  # of metric names in a chunk file
METRIC_PACKAGES = "jax numpy pillow dm-pix onnxruntime opencv-python-headless".split()

logger = logging.getLogger(__name__)

# Images uint8 [N, R, R, 3] and their holes bool [N, R, R] -> completed images.
Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Method(NamedTuple):
    """A way to fill holes."""

    fill: Fill
    identity: Mapping[str, str]  # differs between any two methods
    resolution: int | None = None  # None: any
    name: str = "A method"  # for messages


class NonFiniteError(UserError):
    """A network's output for an image contains NaN or infinity."""

    def __init__(self, index: int, image: str = "an image", method: str = "A network"):
        self.index = index  # of the image in its batch
        super().__init__(
            f"{method} outputs NaN or infinity for {image}: its training diverged, or "
            f"it needs a higher precision. Leave it out."
        )


@dataclass(frozen=True)
class FeatureNetworks:
    """The feature networks whose weights were found."""

    inception: Any = None  # variables
    perceptual: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of each file

    def compare(
        self, truths: np.ndarray, results: np.ndarray, holes: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the metrics of each pair by name, [N] each."""
        metrics = dict(image_metrics(truths, results, holes))
        for name, (variables, weights) in self.perceptual.items():
            distances = [
                lpips(
                    name,
                    variables,
                    weights,
                    shard_over_devices(truths[rows]),
                    shard_over_devices(results[rows]),
                )
                for rows in _device_batches(len(truths))
            ]
            metrics[f"lpips_{name}"] = np.concatenate(distances)[: len(truths)]
        return metrics

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return Inception features, [N, 2048]; [N, 0] without Inception."""
        if self.inception is None:
            return np.zeros((len(images), 0), np.float32)
        features = inception_features(self.inception, shard_over_devices(images))
        return np.asarray(features)[: len(images)]


def _device_batches(count: int) -> Iterator[slice]:
    """Yield slices of one image per device: VGG needs gigabytes for large ones."""
    step = jax.local_device_count()
    return (slice(start, start + step) for start in range(0, count, step))


def shard_over_devices(array: np.ndarray) -> jax.Array:
    """Split rows over this process's devices; repeat the last row to fill up."""
    padding = -len(array) % jax.local_device_count()
    array = np.concatenate([array, np.repeat(array[-1:], padding, axis=0)])
    return jax.device_put(array, _local_sharding("data"))


def replicate(tree: Any) -> Any:
    """Put weights on all of this process's devices."""
    return jax.device_put(tree, _local_sharding())


def _local_sharding(*axes: str) -> NamedSharding:
    return NamedSharding(Mesh(jax.local_devices(), ("data",)), PartitionSpec(*axes))


class Evaluation:
    """Methods on one test set; `folder` exists and caches the results."""

    def __init__(
        self, test_set: TestSet, feature_networks: FeatureNetworks, folder: Path
    ):
        self._test_set = test_set
        self._feature_networks = feature_networks
        self._folder = folder

    def run(
        self,
        methods: Sequence[Method],
        batch_size: int,
        advance: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Fill every hole by every method, and save the metrics.

        Args:
          batch_size: images at a time.
          advance: called with the number of completions just done.
        """
        paths = [self._paths(method) for method in methods]
        for index, chunk in enumerate(self._chunks()):
            missing = {}
            for method, path in zip(methods, (p[index] for p in paths), strict=True):
                # Two names of the same weights share a path.
                if path in missing or _read(path) is not None:
                    advance(len(chunk))
                else:
                    missing[path] = method
            for path, content in self._evaluate(chunk, missing, batch_size, advance):
                write_whole(path, lambda part, c=content: _save(part, c))

    def table(self, method: Method) -> tuple[Table, str]:
        """Return the table of all images after `run`, and the digest of all holes."""
        contents = []
        for path in self._paths(method):
            if (content := _read(path)) is None:
                raise UserError(f"{path} was changed meanwhile: run the command again.")
            contents.append(content)
        tables = [_table_of(content) for content in contents]
        digests = [str(digest) for c in contents for digest in c["digests"]]
        return Table.concatenate(tables), combine_hashes(digests)

    def _chunks(self) -> list[range]:
        count = len(self._test_set)
        return [
            range(start, min(start + CHUNK_SIZE, count))
            for start in range(0, count, CHUNK_SIZE)
        ]

    def _paths(self, method: Method) -> list[Path]:
        """Return one path per chunk; anything that affects the metrics changes them."""
        identity = {
            "version": VERSION,
            "packages": installed_versions(METRIC_PACKAGES),
            "test_set": self._test_set.identity,
            "feature_networks": self._feature_networks.sources,
            **method.identity,
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        starts = [chunk.start for chunk in self._chunks()]
        return [self._folder / f"{key[:16]}-{start:08d}.npz" for start in starts]

    def _evaluate(
        self,
        chunk: range,
        methods: Mapping[Path, Method],
        batch_size: int,
        advance: Callable[[int], object],
    ) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
        """Yield the content of each method's chunk file by its path."""
        batches: dict[Path, list[dict[str, np.ndarray]]] = {
            path: [] for path in methods
        }
        for start in range(0, len(chunk) if methods else 0, batch_size):
            pairs = self._test_set.batch(chunk[start : start + batch_size])
            names, truths, holes = zip(*pairs, strict=True)
            # Pad to a whole batch, so that nothing is compiled for another size.
            padding = batch_size - len(pairs)
            truths, holes = (np.stack(x + x[-1:] * padding) for x in (truths, holes))
            shared = {
                "names": np.array(names),
                "ratios": holes.mean(axis=(1, 2)),
                "digests": np.array([hash_hole(pair.hole) for pair in pairs]),
                "real": self._feature_networks.features(truths),
            }
            for path, method in methods.items():
                try:
                    results = method.fill(truths, holes)
                except NonFiniteError as error:
                    index = error.index
                    raise NonFiniteError(index, names[index], method.name) from error
                batch = {**shared, "fake": self._feature_networks.features(results)}
                metrics = self._feature_networks.compare(truths, results, holes)
                batch |= {METRIC_PREFIX + name: v for name, v in metrics.items()}
                batches[path].append({k: v[: len(pairs)] for k, v in batch.items()})
                advance(len(pairs))
        for path, parts in batches.items():
            yield path, {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


def make_protocol(
    test_set: TestSet, feature_networks: FeatureNetworks, holes: str
) -> dict[str, Any]:
    """Describe what must agree before metrics can be compared.

    Its hash excludes the versions.

    Args:
      holes: the digest of all holes.
    """
    protocol = {
        **test_set.description,
        "holes": holes,
        "network_weights": dict(feature_networks.sources),
        "inception": "299 pixels, bilinear between neighbours, 2015-12-05",
    }
    content = json.dumps(protocol, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()
    versions = installed_versions(METRIC_PACKAGES)
    return {**protocol, "hash": digest, "versions": versions}


def installed_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return each package's version; None if it is not installed."""
    versions: dict[str, str | None] = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """Read a chunk file; None if it is missing or damaged."""
    try:
        saved = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s is evaluated again: %s", path, reason(error))
        return None
    content, digest = saved[:-DIGEST_SIZE], saved[-DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("%s is damaged and is evaluated again.", path)
        return None
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _save(path: Path, content: Mapping[str, np.ndarray]) -> None:
    """Write a chunk file, with a digest at its end to detect damage."""
    buffer = BytesIO()
    np.savez(buffer, **content)
    saved = buffer.getvalue()
    path.write_bytes(saved + hashlib.sha256(saved).digest())


def _table_of(content: Mapping[str, np.ndarray]) -> Table:
    metrics = {
        name.removeprefix(METRIC_PREFIX): values
        for name, values in content.items()
        if name.startswith(METRIC_PREFIX)
    }
    names = tuple(str(name) for name in content["names"])
    return Table(names, content["ratios"], metrics, content["real"], content["fake"])
