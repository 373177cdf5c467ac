"""Write a folder or zip of images as ArrayRecord shards, which load fast in training.

Every image is decoded once, so that unusable ones are known before training. A record
is an image file: the original, or a smaller JPEG. Shards are written atomically, each
with a note of its content. The index is written last, from the notes, and makes the
folder a dataset. The same command resumes an interrupted run at the first shard
without a note.

Several machines may write the shards of one folder, since a shard depends on nothing
but the source and the options, and so has the same bytes wherever it is written.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from migan_jax.data.containers import MAX_FILE_BYTES
from migan_jax.data.examples import decode, resize_hole, too_small_error
from migan_jax.data.rejects import Rejects
from migan_jax.data.sheets import contact_sheet, paint_hole
from migan_jax.data.sources import (
    INDEX_FILE,
    PLAN_FILE,
    REPORT_FILE,
    SHARD_SUFFIX,
    ArrayRecordSource,
    FileSource,
    Fingerprint,
)
from migan_jax.errors import UserError
from migan_jax.files import (
    lock_folder,
    read_json,
    reason,
    remove,
    write_json,
    write_whole,
)

SHEET_FILE = "sheet.png"
HINT = "name another folder, or remove it"
SHARD_PADDING = 1 << 17  # bytes, at most
MAX_JPEG_SIDE = 65_500
SHARD_BYTES = 256 << 20  # of source files; fast to read, and quick to redo
JPEG_QUALITY = 95
# Images to encode for an estimate of the disk space, and the estimate's margin.
SAMPLE_COUNT, MARGIN = 32, 1.1
SHEET_IMAGES, SHEET_SIDE, SHEET_COLUMNS = 48, 128, 8


@dataclasses.dataclass(frozen=True)
class ShardOptions:
    """Which images to store, and how."""

    size: int | None  # shrink to this shorter side; None: store the files unchanged
    smallest_side: int  # reject images with a shorter side
    shard_bytes: int = SHARD_BYTES


PLAN_TYPES = {
    "source": Fingerprint.__annotations__,
    "options": ShardOptions.__annotations__,
}
Advance = Callable[[int], object]  # is given the number of images just done


class Record(NamedTuple):
    """A stored image, or why it is rejected."""

    name: str
    image: bytes = b""
    mask: bytes | None = None  # PNG, white where the hole is
    rejected: str | None = None


class ShardWriter:
    """Writes a source's shards into a folder.

    The share (i, n) is shards i, i + n, i + 2n, ..., without the index.
    """

    def __init__(
        self,
        source: FileSource,
        output: Path,
        options: ShardOptions,
        share: tuple[int, int] | None = None,
    ):
        self.source, self.output, self.options = source, output, options
        self.share, self._shards = share, _split_source(source, options.shard_bytes)
        first, count = share or (0, 1)
        self._mine = range(first, len(self._shards), count)
        self.image_count = sum(len(self._shards[index]) for index in self._mine)
        self._plan = {
            "source": dataclasses.asdict(source.fingerprint),
            "options": dataclasses.asdict(options),
        }
        # What determines a shard's bytes: without the source's location.
        self._identity = json.dumps([source.fingerprint.digest, self._plan["options"]])

    def is_complete(self) -> bool:
        """Return whether the shards exist; raise UserError if others or files do."""
        if os.path.lexists(self.output) and not os.path.isdir(self.output):
            raise UserError(f"{self.output} is not a folder. Name a folder.")
        names = self._file_names()
        if INDEX_FILE in names:
            path = self.output / INDEX_FILE
            self._check_plan(read_json(path, HINT, plan=PLAN_TYPES)["plan"])
            ArrayRecordSource(self.output)  # fails if shards are missing
            if self.share is None:
                self._remove_notes()
            return True
        if PLAN_FILE in names:
            self.check()
        elif any(not _is_leftover(name) for name in names):
            raise UserError(f"{self.output} contains other files. Name another folder.")
        return False

    def _file_names(self) -> list[str]:
        return os.listdir(self.output) if os.path.isdir(self.output) else []

    def check(self) -> None:
        """Raise UserError if the folder has no plan, or that of other images."""
        self._check_plan(read_json(self.output / PLAN_FILE, HINT, **PLAN_TYPES))

    def _check_plan(self, plan: dict[str, Any]) -> None:
        """Raise UserError if the folder's plan has other files or options."""
        earlier = Fingerprint.from_json(plan["source"])
        if change := self.source.fingerprint.change_since(earlier):
            raise UserError(
                f"{change} {self.output} was prepared before the change: {HINT}."
            )
        for name, value in self._plan["options"].items():
            before = plan["options"][name]
            if before != value:
                raise UserError(
                    f"{self.output} was prepared with {name} {before}, not {value}: "
                    f"{HINT}."
                )

    def bytes_needed(self) -> int:
        """Estimate the disk space of the missing shards."""
        containers = filter(None, (self.source.files, self.source.masks))
        sizes = [size for files in containers for size in files.sizes.values()]
        total = sum(size for size in sizes if size <= MAX_FILE_BYTES)
        if self.options.size is not None:
            count = len(self.source)
            sample = range(0, count, max(count // SAMPLE_COUNT, 1))
            records = [self._make_record(index) for index in sample]
            stored = sum(len(r.image) + len(r.mask or b"") for r in records)
            total = MARGIN * count * stored / len(records)
        missing = len(self.missing())
        return int(total * missing / len(self._shards)) + SHARD_PADDING * missing

    def run(self, rejects: Rejects, workers: int, advance: Advance) -> None:
        """Write the missing shards, then the index.

        Args:
          rejects: collects unusable images.
          workers: number of decoding threads.
          advance: called with the number of images done, before and during the run.
        """
        with self.opened():
            pool = ThreadPoolExecutor(workers)
            try:
                self._run(rejects, pool, advance)
            finally:
                pool.shutdown(cancel_futures=True)

    def _run(self, rejects: Rejects, pool: Executor, advance: Advance) -> None:
        missing = set(self.missing())
        seen = 0
        for index in self._mine:
            if index not in missing:
                rejects.reasons |= self._read_note(index)["rejected"]
                seen += len(self._shards[index])
        rejects.check(seen)
        if seen:
            advance(seen)
        for index in sorted(missing.intersection(self._mine)):
            rejected = self.write_shard(index, pool.map, advance)
            seen += len(self._shards[index])
            for name, why in rejected.items():
                rejects.add(name, why, seen)
            rejects.write()
        if self.share is None:
            self._finish(rejects)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Make and lock the folder, remove what killed runs left, write the plan."""
        folder, whole = self.output, self.share is None
        if not whole:
            folder /= ".share-{}-of-{}".format(*self.share)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.output} cannot be created: {reason(error)}."
            ) from error
        # A run of all shards takes the locks of the shares, too.
        with contextlib.ExitStack() as locks:
            for locked in (folder, *folder.glob(".share-*")):
                locks.enter_context(lock_folder(locked))
            for name in self._file_names():
                # Other shares may be writing their files.
                if _is_leftover(name) and (whole or _shard_of(name) in self._mine):
                    remove(self.output / name)
            if PLAN_FILE not in self._file_names():
                write_json(self.output / PLAN_FILE, self._plan)
            self.check()
            yield

    def missing(self) -> list[int]:
        """Return the shards without a note, also those of other shares."""
        names = set(self._file_names())
        indices = range(len(self._shards))
        return [i for i in indices if self._note_path(i).name not in names]

    def missing_shares(self) -> list[tuple[int, int]]:
        """Return the shares of the missing shards, if the folder has been shared."""
        found = (re.fullmatch(r"\.share-\d+-of-(\d+)", n) for n in self._file_names())
        if not (counts := [int(match[1]) for match in found if match]):
            return []
        count = statistics.mode(counts)
        return [(i, count) for i in sorted({index % count for index in self.missing()})]

    def _note_path(self, index: int) -> Path:
        return self.output / f"shard-{index:05d}.json"

    def _shard_name(self, kind: str, index: int) -> str:
        return f"{kind}-{index:05d}-of-{len(self._shards):05d}{SHARD_SUFFIX}"

    def _make_record(self, index: int) -> Record:
        """Decode an image and encode it for storage; runs in threads."""
        source, size = self.source, self.options.size
        name = source.name(index)
        try:
            encoded = source.encoded(index)
            image, hole, _ = decode(encoded, name, source.mask_hole)
            height, width = image.shape[:2]
            min_side = self.options.smallest_side
            if min(width, height) < min_side:
                raise too_small_error(name, width, height, min_side)
        except UserError as error:
            return Record(name, rejected=str(error))
        content = encoded.image
        scale = 1 if size is None else size / min(width, height)
        if scale < 1 and scale * max(width, height) < MAX_JPEG_SIDE:
            extent = max(round(width * scale), size), max(round(height * scale), size)
            content = _shrink_to_jpeg(image, extent)
            if hole is not None:
                hole = resize_hole(hole, (0, 0, width, height), extent)
        return Record(name, content, None if hole is None else _encode_png(hole))

    def write_shard(
        self,
        index: int,
        map_images: Callable[..., Iterable[Record]] = map,
        advance: Advance = lambda count: None,
    ) -> dict[str, str]:
        """Write a shard with its note; return the rejected images with the reasons."""
        kept, rejected = [], {}
        for record in map_images(self._make_record, self._shards[index]):
            if record.rejected is None:
                kept.append(record)
            else:
                rejected[record.name] = record.rejected
            advance(1)
        contents = {"images": [r.image for r in kept]}
        if self.source.masks is not None:
            contents["masks"] = [r.mask for r in kept]
        note = {
            "plan": self._identity,
            "names": [r.name for r in kept],
            "rejected": rejected,
            "bytes": 0,
            "digests": [],
        }
        for kind, blobs in contents.items():
            if blobs:
                _write_records(self.output / self._shard_name(kind, index), blobs)
            note["bytes"] += sum(map(len, blobs))
            note["digests"] += [hashlib.sha256(blob).hexdigest() for blob in blobs]
        write_json(self._note_path(index), note)
        return rejected

    def _finish(self, rejects: Rejects) -> None:
        """Write the report, the contact sheet and the index, and remove the notes."""
        rejects.reasons = dict(sorted(rejects.reasons.items()))  # the images' order
        rejects.write()
        notes = [self._read_note(index) for index in range(len(self._shards))]
        used = [index for index, note in enumerate(notes) if note["names"]]
        if not used:
            raise UserError(
                f"None of the images of {self.source.fingerprint.source} can be used. "
                f"{self.output / REPORT_FILE} has the reasons."
            )
        with_masks = self.source.masks is not None
        content = [(note["names"], note["digests"]) for note in notes]
        index = {
            "plan": self._plan,
            "images": [self._shard_name("images", n) for n in used],
            "masks": [self._shard_name("masks", n) for n in used if with_masks],
            "mask_hole": "white",
            "bytes": sum(note["bytes"] for note in notes),
            "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            "names": [name for note in notes for name in note["names"]],
        }
        write_sheet(self.source, index["names"], self.output / SHEET_FILE)
        write_json(self.output / INDEX_FILE, index)
        self._remove_notes()

    def _read_note(self, index: int) -> dict[str, Any]:
        path = self._note_path(index)
        types = {"names": list[str], "bytes": int, "digests": list[str]}
        note = read_json(path, HINT, **types)
        if "rejected" in note:
            types |= {"rejected": dict[str, str], "plan": str}
            note = read_json(path, HINT, **types)
        else:  # of an earlier version, which had the reasons in the report only
            note |= {"rejected": {}, "plan": self._identity}
        names = set(map(self.source.name, self._shards[index]))
        count = len(note["names"]) * (2 if self.source.has_masks else 1)
        is_ours = note["plan"] == self._identity and names.issuperset(note["names"])
        if not is_ours or len(note["digests"]) != count:
            raise UserError(f"{path} belongs to other images: {HINT}.")
        return note

    def _remove_notes(self) -> None:
        """Remove the plan and the notes, which the index replaces."""
        for path in (self.output / PLAN_FILE, *self.output.glob("shard-*.json")):
            remove(path)


def _is_leftover(name: str) -> bool:
    """Return whether a file is from a killed run, or the lock of a share."""
    return name.startswith(".share-") or (name.startswith(".") and ".part-" in name)


def _shard_of(name: str) -> int:
    """Return the shard that a temporary file is of; -1 if it is of none."""
    match = re.match(r"\.(?:images|masks|shard)-(\d+)", name)
    return int(match[1]) if match else -1


def _split_source(source: FileSource, shard_bytes: int) -> list[range]:
    """Return ranges of images of about `shard_bytes` each."""
    shards, start, size = [], 0, 0
    for index, name in enumerate(source.files.names):
        size += source.files.sizes[name]
        if size >= shard_bytes:
            shards.append(range(start, index + 1))
            start, size = index + 1, 0
    if start < len(source):
        shards.append(range(start, len(source)))
    return shards


def _shrink_to_jpeg(image: np.ndarray, extent: tuple[int, int]) -> bytes:
    shrunk = Image.fromarray(image).resize(extent, Image.Resampling.BICUBIC)
    buffer = BytesIO()
    shrunk.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    return buffer.getvalue()


def _encode_png(hole: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(hole).save(buffer, "PNG")
    return buffer.getvalue()


def _write_records(path: Path, records: list[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    def write(partial: Path) -> None:
        try:
            # Groups of one for random access; images are compressed already.
            writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
            for record in records:
                writer.write(record)
            writer.close()
        except RuntimeError as error:  # any failure of the library
            raise OSError(reason(error)) from error

    write_whole(path, write)


def write_sheet(source: FileSource, names: list[str], path: Path) -> None:
    """Write a contact sheet of images evenly spread over `names`, with their holes."""
    count = min(len(names), SHEET_IMAGES)
    indices = {name: index for index, name in enumerate(source.files.names)}
    shown = [
        indices[names[position * len(names) // count]] for position in range(count)
    ]
    images = [paint_hole(*source[index][:2]) for index in shown]
    sheet = contact_sheet(images, SHEET_SIDE, min(SHEET_COLUMNS, count))
    write_whole(path, lambda partial: sheet.save(partial, "PNG"))
