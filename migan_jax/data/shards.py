"""Write a folder or zip of images as ArrayRecord shards, which load fast in training.

Every image is decoded once, so that unusable ones are known before training. A record
is an image file: the original, or a smaller JPEG. Shards are written atomically, one
after the other, each with a note of its content. The index is written last and makes
the folder a dataset. The same command resumes an interrupted run at the first shard
without a note.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


class Record(NamedTuple):
    """A stored image, or why it is rejected."""

    name: str
    image: bytes = b""
    mask: bytes | None = None  # PNG, white where the hole is
    rejected: str | None = None


class ShardWriter:
    """Writes a source's shards into a folder."""

    def __init__(self, source: FileSource, output: Path, options: ShardOptions):
        self.source, self.output, self.options = source, output, options
        self._shards = _split_source(source, options.shard_bytes)
        self._plan = {
            "source": dataclasses.asdict(source.fingerprint),
            "options": dataclasses.asdict(options),
        }

    def is_complete(self) -> bool:
        """Return whether the shards exist; raise UserError if others or files do."""
        if os.path.lexists(self.output) and not os.path.isdir(self.output):
            raise UserError(f"{self.output} is not a folder. Name a folder.")
        names = os.listdir(self.output) if os.path.isdir(self.output) else []
        if INDEX_FILE in names:
            path = self.output / INDEX_FILE
            self._check_plan(read_json(path, HINT, plan=PLAN_TYPES)["plan"])
            ArrayRecordSource(self.output)  # fails if shards are missing
            self._remove_notes()
            return True
        if PLAN_FILE in names:
            path = self.output / PLAN_FILE
            self._check_plan(read_json(path, HINT, **PLAN_TYPES))
        elif any(not _is_leftover(name) for name in names):
            raise UserError(f"{self.output} contains other files. Name another folder.")
        return False

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
        missing = len(self._missing_shards())
        return int(total * missing / len(self._shards)) + SHARD_PADDING * missing

    def run(
        self, rejects: Rejects, workers: int, advance: Callable[[int], object]
    ) -> None:
        """Write the missing shards, then the index.

        Args:
          rejects: collects unusable images.
          workers: number of decoding threads.
          advance: called with the number of images done, before and during the run.
        """
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.output} cannot be created: {reason(error)}."
            ) from error
        with lock_folder(self.output):
            self._run(rejects, workers, advance)

    def _run(
        self, rejects: Rejects, workers: int, advance: Callable[[int], object]
    ) -> None:
        missing = self._missing_shards()
        advance(len(self.source) - sum(len(shard) for _, shard in missing))
        for path in self.output.iterdir():
            if _is_leftover(path.name):
                remove(path)
        write_json(self.output / PLAN_FILE, self._plan)
        pool = ThreadPoolExecutor(workers)
        try:
            for index, shard in missing:
                records = []
                for record in pool.map(self._make_record, shard):
                    records.append(record)
                    advance(1)
                self._write_shard(index, shard, records, rejects)
        finally:
            pool.shutdown(cancel_futures=True)
        self._finish()

    def _missing_shards(self) -> list[tuple[int, range]]:
        return [
            (index, shard)
            for index, shard in enumerate(self._shards)
            if not os.path.isfile(self._note_path(index))
        ]

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
            image, hole = decode(encoded, name, source.mask_hole)
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

    def _write_shard(
        self, index: int, shard: range, records: list[Record], rejects: Rejects
    ) -> None:
        for record in records:
            if record.rejected is not None:
                rejects.add(record.name, record.rejected, shard.stop)
        rejects.write()
        kept = [record for record in records if record.rejected is None]
        contents = {"images": [r.image for r in kept]}
        if self.source.masks is not None:
            contents["masks"] = [r.mask for r in kept]
        note = {"names": [r.name for r in kept], "bytes": 0, "digests": []}
        for kind, blobs in contents.items():
            if blobs:
                _write_records(self.output / self._shard_name(kind, index), blobs)
            note["bytes"] += sum(map(len, blobs))
            note["digests"] += [hashlib.sha256(blob).hexdigest() for blob in blobs]
        write_json(self._note_path(index), note)

    def _finish(self) -> None:
        """Write the contact sheet and the index, and remove the notes."""
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
        names = set(map(self.source.name, self._shards[index]))
        count = len(note["names"]) * (2 if self.source.has_masks else 1)
        if not names.issuperset(note["names"]) or len(note["digests"]) != count:
            raise UserError(f"{path} belongs to other images: {HINT}.")
        return note

    def _remove_notes(self) -> None:
        """Remove the plan and the notes, which the index replaces."""
        for path in (self.output / PLAN_FILE, *self.output.glob("shard-*.json")):
            remove(path)


def _is_leftover(name: str) -> bool:
    """Return whether a file is from a run that was killed while writing it."""
    return name.startswith(".") and ".part-" in name


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
    images = [paint_hole(*source[index]) for index in shown]
    sheet = contact_sheet(images, SHEET_SIDE, min(SHEET_COLUMNS, count))
    write_whole(path, lambda partial: sheet.save(partial, "PNG"))
