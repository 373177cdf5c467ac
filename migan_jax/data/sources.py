"""Sources of images: random access to encoded images by index.

  a folder       any formats, recursively          `photos`
  a zip          likewise                          `photos.zip`
  ArrayRecord    written by `prepare`, or records that are image files
                                                   `prepared`, `images.array_record`
  TFDS           prepared as ArrayRecord; reading needs no TensorFlow
                                                   `tfds:places365_small[train]`
  scenes         drawn from a seed                 `scenes`, `scenes:leaves`

The images of a folder or zip may have masks in another folder or zip. They are matched
by name, without the extension. Masks without counterparts are in
`data/unpaired_masks.py`. Any images may have keypoints (`data.points`), which
`scenes:faces` bring themselves.
"""

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from migan_jax.data.containers import Files, open_files
from migan_jax.data.examples import Encoded, Example, decode
from migan_jax.data.masks import MaskHole, check_mask_hole, polarity_warning
from migan_jax.data.points import read_points
from migan_jax.data.scenes import (
    FACE_POINTS,
    FACES,
    SCENE_FAMILIES,
    draw_face,
    draw_scene,
)
from migan_jax.errors import UserError, missing_package
from migan_jax.files import read_json, reason, refuse_address, refuse_undecodable

if TYPE_CHECKING:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    from migan_jax.data.unpaired_masks import UnpairedMasks

logger = logging.getLogger(__name__)

# The files that `prepare` writes beside the shards.
INDEX_FILE, REPORT_FILE = "index.json", "rejected.json"
PLAN_FILE = "plan.json"  # without an index: `prepare` was interrupted
SHARD_SUFFIX = ".array_record"
MASKS_CHECKED = 8  # for inverted masks, before a run
SCENE_COUNT = 1_000_000  # until scenes repeat


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Identifies a source's content, to detect changes between runs."""

    source: str
    records: int
    bytes: int
    digest: str

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Fingerprint":
        """Make a fingerprint from the output of `dataclasses.asdict`."""
        return cls(**{key: content[key] for key in cls.__annotations__})

    def change_since(self, earlier: "Fingerprint") -> str | None:
        """Describe what changed, or return None. A new location is no change."""
        if self.digest == earlier.digest:
            return None
        if (self.records, self.bytes) == (earlier.records, earlier.bytes):
            what = (
                f"the contents or names of its {self.records:,} images differ, or "
                f"their masks or keypoints"
            )
        else:
            what = (
                f"it had {earlier.records:,} images of {earlier.bytes:,} bytes and now "
                f"has {self.records:,} of {self.bytes:,}"
            )
        moved = "" if self.source == earlier.source else f" (was {earlier.source})"
        return f"{self.source}{moved} has changed: {what}."


def _hash(*content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


class Source:
    """Images by index."""

    fingerprint: Fingerprint
    mask_hole: MaskHole = "white"
    has_masks = False  # every image has its own mask
    unpaired_masks: "UnpairedMasks | None" = None  # to draw from, without own masks
    points = 0  # keypoints of every image
    non_images: tuple[str, ...] = ()  # other files, by their suffix

    def __len__(self) -> int:
        return self.fingerprint.records

    def name(self, index: int) -> str:
        """Return an image's name for reports."""
        raise NotImplementedError

    def encoded(self, index: int) -> Encoded:
        """Return an image as it is stored."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Example:
        """Decode a whole image."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return decode(self.encoded(index), self.name(index), self.mask_hole)


class DerivedSource(Source):
    """Another source's images, changed or chosen."""

    def __init__(self, source: Source):
        self._source, self.fingerprint = source, source.fingerprint
        self.mask_hole, self.non_images = source.mask_hole, source.non_images
        self.has_masks, self.points = source.has_masks, source.points
        self.unpaired_masks = source.unpaired_masks

    def name(self, index: int) -> str:
        return self._source.name(index)

    def encoded(self, index: int) -> Encoded:
        return self._source.encoded(index)


class PointSource(DerivedSource):
    """A source's images, with keypoints from a file or folder."""

    def __init__(self, source: Source, location: Path):
        super().__init__(source)
        names = [source.name(index) for index in range(len(source))]
        self._points = read_points(location, names)
        self.points = self._points.shape[1]
        digest = hashlib.sha256(self._points).hexdigest()
        self.fingerprint = dataclasses.replace(
            source.fingerprint,
            digest=_hash(source.fingerprint.digest, self.points, digest),
        )

    def encoded(self, index: int) -> Encoded:
        return self._source.encoded(index)._replace(points=self._points[index])


class FileSource(Source):
    """A folder or zip of images, with or without masks."""

    def __init__(
        self, location: Path, masks: Path | None = None, mask_hole: MaskHole = "white"
    ):
        check_mask_hole(mask_hole)
        if masks is not None and os.path.realpath(masks) == os.path.realpath(location):
            raise UserError(
                f"{location} is given both for the images and for their masks. Put the "
                f"masks into another folder."
            )
        self.files = open_files(location, exclude=masks)
        self.masks = None if masks is None else open_files(masks)
        self.has_masks = masks is not None
        self.mask_hole = mask_hole
        self.non_images = self.files.non_images
        self._mask_names = _match_masks(self.files, self.masks) if self.masks else {}
        containers = [self.files, self.masks] if self.masks else [self.files]
        digests = [container.digest() for container in containers]
        self.fingerprint = Fingerprint(
            source=str(location),
            records=len(self.files.names),
            bytes=sum(container.total_bytes for container in containers),
            digest=_hash(*digests, masks and mask_hole),
        )
        if self.masks:
            self._check_polarity()

    def name(self, index: int) -> str:
        return self.files.names[index]

    def encoded(self, index: int) -> Encoded:
        name = self.name(index)
        mask = self.masks.read(self._mask_names[name]) if self.masks else None
        return Encoded(self.files.read(name), mask)

    def _check_polarity(self) -> None:
        """Warn if most of the first masks look inverted."""
        other = "black" if self.mask_hole == "white" else "white"
        warnings = []
        for index in range(min(len(self), MASKS_CHECKED)):
            try:
                hole = self[index].hole
            except UserError:  # is rejected when it is loaded
                continue
            hint = f"mask_hole={other} (the setting is data.mask_hole)"
            warnings.append(polarity_warning(hole, hint))
        if sum(map(bool, warnings)) > len(warnings) / 2:
            logger.warning("%s: %s", self.masks.location, next(filter(None, warnings)))


def _match_masks(images: Files, masks: Files) -> dict[str, str]:
    """Return the mask's name for each image's name."""
    image_names, mask_names = _names_by_stem(images), _names_by_stem(masks)
    for kind, files, names, other, other_names in (
        ("images", images, image_names, masks, mask_names),
        ("masks", masks, mask_names, images, image_names),
    ):
        unmatched = [name for stem, name in names.items() if stem not in other_names]
        if unmatched:
            raise UserError(
                f"{len(unmatched):,} {kind} in {files.location}, such as "
                f"{unmatched[0]}, have no counterpart in {other.location}. Every image "
                f"needs a mask of the same name, and every mask an image."
            )
    return {name: mask_names[stem] for stem, name in image_names.items()}


def _names_by_stem(files: Files) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in files.names:
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in names:
            raise UserError(
                f"{files.location} has both {names[stem]} and {name}. Rename one, so "
                f"that images and masks match by name."
            )
        names[stem] = name
    return names


class ArrayRecordSource(Source):
    """ArrayRecord files whose records are image files, with masks if there are any."""

    def __init__(self, location: Path):
        index = _read_index(location)
        self.mask_hole = index["mask_hole"]
        self._location, self._names = location, index["names"]
        self._images = _open_records(location, index["images"])
        self._masks = _open_records(location, index["masks"])
        self.has_masks = bool(self._masks)
        columns = self._names, self._images, self._masks
        counts = {len(column) for column in columns if column is not None}
        if self._images is None or len(counts) != 1:
            raise UserError(
                f"{location} has different numbers of images, names and masks. Prepare "
                f"it again."
            )
        self.fingerprint = Fingerprint(
            source=str(location),
            records=len(self._images),
            bytes=index["bytes"],
            digest=index["digest"],
        )

    def name(self, index: int) -> str:
        return self._names[index] if self._names else f"{self._location}[{index}]"

    def encoded(self, index: int) -> Encoded:
        try:
            mask = self._masks[index] if self._masks else None
            return Encoded(self._images[index], mask)
        except RuntimeError as error:  # any failure of the library
            raise UserError(
                f"{self.name(index)} cannot be read ({reason(error)})."
            ) from error


def _read_index(location: Path) -> dict[str, Any]:
    """Read the index that `prepare` wrote, or make one for other files."""
    path = location / INDEX_FILE
    if os.path.lexists(path):
        return read_json(
            path,
            f"prepare {location} again",
            names=list[str],
            images=list[str],
            masks=list[str],
            mask_hole=MaskHole,
            bytes=int,
            digest=str,
        )
    if os.path.lexists(location / PLAN_FILE):
        raise UserError(
            f"{location} is not finished. Run the command that prepares it again."
        )
    files = [location]
    if location.is_dir():
        files = [path for path in sorted(location.iterdir()) if _is_shard(path.name)]
    try:
        sizes = [(file.name, file.stat().st_size) for file in files]
    except OSError as error:
        raise UserError(f"{location} cannot be read: {reason(error)}.") from error
    return {
        "names": None,
        "images": [name for name, _ in sizes],
        "masks": [],
        "mask_hole": "white",
        "bytes": sum(size for _, size in sizes),
        "digest": _hash(*sizes),
    }


def _open_records(location: Path, names: list[str]) -> "ArrayRecordDataSource | None":
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
    except ModuleNotFoundError as error:
        raise missing_package("array_record", f"Reading {location}") from error
    folder = location if location.is_dir() else location.parent
    refuse_undecodable(folder)
    try:
        return (
            ArrayRecordDataSource([str(folder / n) for n in names]) if names else None
        )
    except RuntimeError as error:  # any failure of the library
        raise UserError(
            f"{location} cannot be read as ArrayRecord ({reason(error)}). Make its "
            f"shards again."
        ) from error


class TfdsSource(Source):
    """A dataset of the TFDS catalogue or in its format, prepared as ArrayRecord."""

    def __init__(self, dataset: str, split: str):
        """Open a split of NAME[/CONFIG][:VERSION], or of a folder in TFDS's format."""
        import tensorflow_datasets as tfds

        try:
            is_folder = os.path.isdir(dataset)
            open_builder = tfds.builder_from_directory if is_folder else tfds.builder
            builder = open_builder(dataset)
            self._feature = _image_feature(builder.info.features, tfds)
            decoders = {self._feature: tfds.decode.SkipDecoding()}
            self._records = builder.as_data_source(split, decoders=decoders)
            stored = builder.info.splits[re.split(r"[\[+]", split)[0]]
        except UserError:
            raise
        except NotImplementedError as error:  # other formats, or not prepared
            raise UserError(
                f"tfds:{dataset} is not prepared as ArrayRecord. Run `tfds build "
                f"{dataset} --file_format=array_record` once, which needs TensorFlow "
                f"(the extra tf)."
            ) from error
        except Exception as error:  # a builder may raise anything
            raise UserError(
                f"tfds:{dataset}[{split}] cannot be opened: {reason(error)}."
            ) from error
        self._label = f"tfds:{builder.info.full_name}[{split}]"
        self.fingerprint = Fingerprint(
            source=self._label,
            records=len(self._records),
            bytes=int(stored.num_bytes),
            digest=_hash(self._label, len(self._records), stored.shard_lengths),
        )

    def name(self, index: int) -> str:
        return f"{self._label} record {index}"

    def encoded(self, index: int) -> Encoded:
        try:
            return Encoded(self._records[index][self._feature])
        except Exception as error:  # damaged records raise anything
            raise UserError(
                f"{self.name(index)} cannot be read ({reason(error)})."
            ) from error


def _image_feature(features: Mapping[str, Any], tfds: ModuleType) -> str:
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            return name
    raise UserError(f"The dataset has no image feature, only {', '.join(features)}.")


class SceneSource(Source):
    """Scenes drawn from a seed, in any number; faces also with their keypoints."""

    def __init__(
        self,
        size: int,
        seed: int,
        family: str | None = None,
        with_points: bool = False,
    ):
        known = *SCENE_FAMILIES, FACES
        if family is not None and family not in known:
            families = ", ".join(f"scenes:{name}" for name in known)
            raise UserError(
                f"scenes:{family} does not exist. Use scenes, or one of {families}."
            )
        self._size, self._seed, self._family = size, seed, family
        label = "scenes" if family is None else f"scenes:{family}"
        if with_points and family != FACES:
            raise UserError(
                f"{label} has no keypoints. Use scenes:{FACES}, or leave data.points "
                f"empty (--config.data.points=none)."
            )
        self.points = FACE_POINTS if with_points else 0
        content = (label, size, seed) + ((FACE_POINTS,) if with_points else ())
        self.fingerprint = Fingerprint(
            source=label, records=SCENE_COUNT, bytes=0, digest=_hash(*content)
        )

    def name(self, index: int) -> str:
        return f"{self.fingerprint.source} {index}"

    def encoded(self, index: int) -> Encoded:
        rng = np.random.default_rng((self._seed, index))
        if self.points:
            image, points = draw_face(rng, self._size)
            return Encoded(image, points=points)
        return Encoded(draw_scene(rng, self._size, self._family))


def open_source(
    source: str,
    *,
    masks: str | None,
    mask_hole: MaskHole,
    resolution: int,
    seed: int,
    points: str | None = None,
) -> Source:
    """Open one of the sources that the module's docstring lists.

    Args:
      source: "scenes", "scenes:FAMILY", "tfds:NAME[SPLIT]", or a path.
      masks: a folder or zip of masks for a folder or zip of images.
      mask_hole: the hole's colour in these masks.
      resolution: of scenes.
      seed: of scenes.
      points: a file or folder of keypoints, or "scenes" for those of scenes:faces.
    """
    if not source:
        raise UserError("data.source is empty. Give a folder, a zip or scenes.")
    kind, _, rest = source.partition(":")
    path = Path(source)
    for location in filter(None, (source, masks, points)):
        if kind != "tfds":
            refuse_address(location)
    if kind == "scenes":
        opened: Source = SceneSource(
            resolution, seed, rest or None, with_points=points == "scenes"
        )
    elif kind == "tfds":
        dataset, _, split = rest.partition("[")
        opened = TfdsSource(dataset, split.removesuffix("]") or "train")
    elif _is_shard(path.name) or has_shards(path):
        opened = ArrayRecordSource(path)
    else:
        opened = FileSource(path, Path(masks) if masks else None, mask_hole)
    if masks and not isinstance(opened, FileSource):
        raise UserError(
            f"data.masks needs a folder or zip of images, which {source} is not. "
            f"Prepare both together, or leave data.masks empty."
        )
    if points and not opened.points:
        return PointSource(opened, Path(points))
    return opened


def has_shards(path: Path) -> bool:
    """Return whether a folder contains ArrayRecord files, or output of `prepare`."""
    if not os.path.isdir(path):
        return False
    names = os.listdir(path)
    is_prepared = PLAN_FILE in names or {INDEX_FILE, REPORT_FILE} <= set(names)
    return is_prepared or any(map(_is_shard, names))


def _is_shard(name: str) -> bool:
    return re.search(rf"{re.escape(SHARD_SUFFIX)}(-\d+-of-\d+)?$", name) is not None
