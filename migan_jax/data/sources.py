"""What pictures are learned from: random access to encoded pictures, by number.

  a folder       any formats, with subfolders      `photos`
  a zip          likewise                          `photos.zip`
  ArrayRecord    what the verb prepare has written, or records that are image files
                                                   `prepared`, `images.array_record`
  TFDS           prepared as ArrayRecord; reading needs no TensorFlow
                                                   `tfds:places365_small[train]`
  scenes         drawn from a seed                 `scenes`, `scenes:leaves`

Folders and zips may have own masks beside them, in a folder or zip of their own: every
picture then has the mask of its name, whatever their endings.
"""

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from migan_jax.data.containers import Files, open_files
from migan_jax.data.examples import Encoded, Example, decode
from migan_jax.data.masks import MaskHole, doubt_about
from migan_jax.data.scenes import FAMILIES, draw_scene
from migan_jax.errors import UserError, missing_here
from migan_jax.files import read_json, reason, refuse_address, refuse_undecodable

if TYPE_CHECKING:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

logger = logging.getLogger(__name__)

# What the verb prepare leaves in its folder, beside the shards.
INDEX, REPORT = "index.json", "rejected.json"
PLAN = "plan.json"  # without an index: it was interrupted
SHARD_ENDING = ".array_record"
# Own masks that are looked at before a run, to see whether they are inverted.
DOUBTED = 8
# Scenes until they repeat.
SCENES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a source holds, so that a change between two runs is noticed."""

    source: str
    records: int
    bytes: int
    digest: str

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> "Fingerprint":
        """What `dataclasses.asdict` made of one, read from a file."""
        return cls(**{key: content[key] for key in cls.__annotations__})

    def change_since(self, earlier: "Fingerprint") -> str | None:
        """A sentence that names what changed, or None. A move alone is no change."""
        if self.digest == earlier.digest:
            return None
        if (self.records, self.bytes) == (earlier.records, earlier.bytes):
            what = f"its {self.records:,} pictures have other contents or names"
        else:
            what = (
                f"it had {earlier.records:,} pictures of {earlier.bytes:,} bytes, and "
                f"has {self.records:,} of {self.bytes:,}"
            )
        moved = "" if self.source == earlier.source else f" (then {earlier.source})"
        return f"{self.source}{moved} has changed: {what}."


def _hash(*content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


class Source:
    """Pictures by number."""

    fingerprint: Fingerprint
    mask_hole: MaskHole = "white"
    has_masks = False  # own ones, of every picture
    others: tuple[str, ...] = ()  # files that are no images by their ending

    def __len__(self) -> int:
        return self.fingerprint.records

    def name(self, index: int) -> str:
        """What to call a picture in a report."""
        raise NotImplementedError

    def encoded(self, index: int) -> Encoded:
        """A picture as it is stored."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Example:
        """A whole picture, decoded."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return decode(self.encoded(index), self.name(index), self.mask_hole)


class FileSource(Source):
    """A folder or zip of pictures, with their own masks or without."""

    def __init__(
        self,
        location: Path,
        masks: Path | None = None,
        mask_hole: MaskHole = "white",
    ):
        if mask_hole not in get_args(MaskHole):
            raise UserError(f"mask_hole is 'white' or 'black', not {mask_hole!r}.")
        if masks is not None and os.path.realpath(masks) == os.path.realpath(location):
            raise UserError(
                f"{location} is named for the pictures and for their masks: put the "
                f"masks into a folder of their own."
            )
        self.files = open_files(location, without=masks)
        self.masks = None if masks is None else open_files(masks)
        self.has_masks = masks is not None
        self.mask_hole = mask_hole
        self.others = self.files.others
        self._mask_of = _pair(self.files, self.masks) if self.masks else {}
        containers = [self.files, self.masks] if self.masks else [self.files]
        digests = [container.digest() for container in containers]
        self.fingerprint = Fingerprint(
            source=str(location),
            records=len(self.files.names),
            bytes=sum(container.total_bytes for container in containers),
            digest=_hash(*digests, masks and mask_hole),
        )
        if self.masks:
            self._doubt_masks()

    def name(self, index: int) -> str:
        return self.files.names[index]

    def encoded(self, index: int) -> Encoded:
        name = self.name(index)
        mask = self.masks.read(self._mask_of[name]) if self.masks else None
        return Encoded(self.files.read(name), mask)

    def _doubt_masks(self) -> None:
        """Say so if most of the first masks look inverted."""
        doubts = []
        for index in range(min(len(self), DOUBTED)):
            try:
                hole = self[index].hole
            except UserError:  # will be rejected wherever it is used
                continue
            other = "black" if self.mask_hole == "white" else "white"
            doubts.append(doubt_about(hole, f"mask_hole is {other}"))
        if sum(map(bool, doubts)) > len(doubts) / 2:
            logger.warning("%s: %s", self.masks.location, next(filter(None, doubts)))


def _pair(images: Files, masks: Files) -> dict[str, str]:
    """The mask of each image: that of its name."""

    def by_stem(files: Files) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in files.names:
            stem = str(PurePosixPath(name).with_suffix(""))
            if stem in found:
                raise UserError(
                    f"{files.location} has {found[stem]} and {name}: which of them "
                    f"belongs to a mask or picture named {stem} is unclear."
                )
            found[stem] = name
        return found

    image_of, mask_of = by_stem(images), by_stem(masks)
    ours = images.location, image_of, "pictures without a mask"
    others = masks.location, mask_of, "masks without a picture"
    for (here, names, what), (there, partners, _) in (ours, others), (others, ours):
        alone = [name for stem, name in names.items() if stem not in partners]
        if alone:
            raise UserError(
                f"{here} has {what} of the same name in {there} ({len(alone):,}, such "
                f"as {alone[0]}): every picture needs its mask, and every mask its "
                f"picture."
            )
    return {name: mask_of[stem] for stem, name in image_of.items()}


class ArrayRecordSource(Source):
    """Records that are image files, and where there are any their masks' records."""

    def __init__(self, location: Path):
        index = _read_index(location)
        self.mask_hole = index["mask_hole"]
        self._location, self._names = location, index["names"]
        self._images = _open_records(location, index["images"])
        self._masks = _open_records(location, index["masks"])
        self.has_masks = bool(self._masks)
        parts = self._names, self._images, self._masks
        counts = {len(part) for part in parts if part is not None}
        if self._images is None or len(counts) != 1:
            raise UserError(
                f"{location} does not hold as many pictures as names or masks: prepare "
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
        except RuntimeError as error:  # what the library raises for anything
            raise UserError(
                f"{self.name(index)} cannot be read ({reason(error)})."
            ) from error


def _read_index(location: Path) -> dict[str, Any]:
    """What `prepare` says about a folder, or what there is to say about other files."""
    path = location / INDEX
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
    if os.path.lexists(location / PLAN):
        raise UserError(
            f"{location} is not finished: run the command that prepares it again."
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
        raise missing_here("array_record", f"Reading {location}") from error
    folder = location if location.is_dir() else location.parent
    refuse_undecodable(folder)
    try:
        return (
            ArrayRecordDataSource([str(folder / n) for n in names]) if names else None
        )
    except RuntimeError as error:  # what the library raises for anything
        raise UserError(
            f"{location} cannot be read as ArrayRecord ({reason(error)}): make its "
            f"shards again."
        ) from error


class TfdsSource(Source):
    """A dataset of the TFDS catalogue or in its format, prepared as ArrayRecord."""

    def __init__(self, dataset: str, split: str):
        """`dataset`: NAME[/CONFIG][:VERSION], or a folder with dataset_info.json."""
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
        except NotImplementedError as error:  # of other formats, and of nothing at all
            raise UserError(
                f"tfds:{dataset} is not prepared as ArrayRecord: run `tfds build "
                f"{dataset} --file_format=array_record` once, which needs TensorFlow "
                f"(the extra tf)."
            ) from error
        except Exception as error:  # builders are anyone's code and fail in any way
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
        except Exception as error:  # damage may surface as anything
            raise UserError(
                f"{self.name(index)} cannot be read ({reason(error)})."
            ) from error


def _image_feature(features: Mapping[str, Any], tfds: ModuleType) -> str:
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            return name
    raise UserError(f"The dataset has no images, but {', '.join(features)}.")


class SceneSource(Source):
    """Pictures drawn from a seed: nothing to download, and as many as one likes."""

    def __init__(self, size: int, seed: int, family: str | None = None):
        if family is not None and family not in FAMILIES:
            families = ", ".join(f"scenes:{name}" for name in FAMILIES)
            raise UserError(f"There is no scenes:{family}, but scenes, {families}.")
        self._size, self._seed, self._family = size, seed, family
        label = "scenes" if family is None else f"scenes:{family}"
        self.fingerprint = Fingerprint(
            source=label,
            records=SCENES,
            bytes=0,
            digest=_hash(label, size, seed),
        )

    def name(self, index: int) -> str:
        return f"{self.fingerprint.source} {index}"

    def encoded(self, index: int) -> Encoded:
        rng = np.random.default_rng((self._seed, index))
        return Encoded(draw_scene(rng, self._size, self._family))


def open_source(
    source: str,
    *,
    masks: str | None,
    mask_hole: MaskHole,
    resolution: int,
    seed: int,
) -> Source:
    """The source that a configuration names, as the module's head lists them.

    Args:
      source: "scenes", "scenes:FAMILY", "tfds:NAME[SPLIT]", or a path.
      masks: own masks for a folder or zip: a folder or zip.
      mask_hole: what they show the hole in.
      resolution: at which scenes are drawn.
      seed: of the scenes.
    """
    if not source:
        raise UserError("data.source is empty: name a folder, a zip or scenes.")
    kind, _, rest = source.partition(":")
    path = Path(source)
    for location in filter(None, (source, masks)):
        if kind != "tfds":
            refuse_address(location)
    if kind == "scenes":
        found: Source = SceneSource(resolution, seed, rest or None)
    elif kind == "tfds":
        dataset, _, split = rest.partition("[")
        found = TfdsSource(dataset, split.removesuffix("]") or "train")
    elif _is_shard(path.name) or has_shards(path):
        found = ArrayRecordSource(path)
    else:
        return FileSource(path, Path(masks) if masks else None, mask_hole)
    if masks:
        raise UserError(
            f"Own masks go with a folder or zip, and {source} is none: prepare both "
            f"together, or leave data.masks empty."
        )
    return found


def has_shards(path: Path) -> bool:
    """Whether a folder holds ArrayRecord, or what prepare has left there."""
    if not os.path.isdir(path):
        return False
    names = os.listdir(path)
    prepared = PLAN in names or {INDEX, REPORT} <= set(names)
    return prepared or any(map(_is_shard, names))


def _is_shard(name: str) -> bool:
    return re.search(rf"{re.escape(SHARD_ENDING)}(-\d+-of-\d+)?$", name) is not None
