"""From a folder or zip of pictures to shards of ArrayRecord, which training reads fast.

Every picture is decoded once, so that what cannot be used is known before the training
is. A record is an image file's bytes: the original's, or a shrunk picture's as JPEG.
Shards are written whole, one after the other, each with a note of what went into it;
the index, written last, makes a folder of shards a dataset. So an interrupted run is
continued by the same command, from the first shard that has no note.
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

from migan_jax.data.containers import LARGEST_FILE
from migan_jax.data.examples import decode, shrink_hole, too_small
from migan_jax.data.rejects import Rejects
from migan_jax.data.sheets import contact_sheet, with_hole
from migan_jax.data.sources import (
    INDEX,
    PLAN,
    REPORT,
    SHARD_ENDING,
    ArrayRecordSource,
    FileSource,
    Fingerprint,
)
from migan_jax.errors import UserError
from migan_jax.files import held, read_json, reason, remove, write_json, write_whole

SHEET = "sheet.png"
REMEDY = "name another folder, or remove it"
PADDING = 1 << 17  # of a shard, at most
LONGEST_JPEG = 65_500
SHARD_BYTES = 256 << 20  # of source files; large enough to read, small enough to redo
JPEG_QUALITY = 95
# Pictures that are encoded to guess the size of all, and what the guess may be short.
SAMPLED, MARGIN = 32, 1.1
SHEET_PICTURES, SHEET_SIDE, SHEET_COLUMNS = 48, 128, 8


@dataclasses.dataclass(frozen=True)
class Options:
    """What becomes of a picture."""

    size: int | None  # shrink to this shorter side; None keeps the files as they are
    smallest_side: int
    shard_bytes: int = SHARD_BYTES


# What a plan says.
PLANNED = {"source": Fingerprint.__annotations__, "options": Options.__annotations__}


class Record(NamedTuple):
    """What is stored of a picture, or why it is not."""

    name: str
    image: bytes = b""
    mask: bytes | None = None  # PNG, white where the hole is
    rejected: str | None = None


class Preparation:
    """A source on its way into a folder."""

    def __init__(self, source: FileSource, output: Path, options: Options):
        self.source, self.output, self.options = source, output, options
        self._shards = _shards(source, options.shard_bytes)
        self._plan = {
            "source": dataclasses.asdict(source.fingerprint),
            "options": dataclasses.asdict(options),
        }

    def is_complete(self) -> bool:
        """Whether this very source is there already; UserError if something else is."""
        if os.path.lexists(self.output) and not os.path.isdir(self.output):
            raise UserError(f"{self.output} is no folder: name one.")
        names = os.listdir(self.output) if os.path.isdir(self.output) else []
        if INDEX in names:
            path = self.output / INDEX
            self._check_plan(read_json(path, REMEDY, plan=PLANNED)["plan"])
            ArrayRecordSource(self.output)  # are all of its shards there?
            self._remove_notes()
            return True
        if PLAN in names:
            path = self.output / PLAN
            self._check_plan(read_json(path, REMEDY, **PLANNED))
        elif any(not _is_leftover(name) for name in names):
            raise UserError(f"{self.output} holds something else: name another folder.")
        return False

    def _check_plan(self, begun: dict[str, Any]) -> None:
        """What is there already must be of the same files, with the same options."""
        earlier = Fingerprint.of_json(begun["source"])
        if change := self.source.fingerprint.change_since(earlier):
            raise UserError(f"{change} {self.output} was begun before that: {REMEDY}.")
        for name, value in self._plan["options"].items():
            before = begun["options"][name]
            if before != value:
                raise UserError(
                    f"{self.output} was begun with {name} {before}, not {value}: "
                    f"{REMEDY}."
                )

    def bytes_needed(self) -> int:
        """What the shards that are missing will take on disk; a guess if shrunk."""
        containers = filter(None, (self.source.files, self.source.masks))
        sizes = [size for files in containers for size in files.sizes.values()]
        files = sum(size for size in sizes if size <= LARGEST_FILE)
        if self.options.size is not None:
            count = len(self.source)
            sampled = range(0, count, max(count // SAMPLED, 1))
            records = [self._record(index) for index in sampled]
            kept = sum(len(r.image) + len(r.mask or b"") for r in records)
            files = MARGIN * count * kept / len(records)
        missing = len(self._missing())
        return int(files * missing / len(self._shards)) + PADDING * missing

    def run(
        self, rejects: Rejects, workers: int, advance: Callable[[int], object]
    ) -> None:
        """Write what is missing.

        Args:
          rejects: takes what is left out.
          workers: threads that decode.
          advance: told how many pictures are done, at the start and as they are.
        """
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.output} cannot be made: {reason(error)}."
            ) from error
        with held(self.output):
            self._run(rejects, workers, advance)

    def _run(
        self, rejects: Rejects, workers: int, advance: Callable[[int], object]
    ) -> None:
        missing = self._missing()
        advance(len(self.source) - sum(len(shard) for _, shard in missing))
        for path in self.output.iterdir():
            if _is_leftover(path.name):
                remove(path)
        write_json(self.output / PLAN, self._plan)
        pool = ThreadPoolExecutor(workers)
        try:
            for number, shard in missing:
                records = []
                for record in pool.map(self._record, shard):
                    records.append(record)
                    advance(1)
                self._write_shard(number, shard, records, rejects)
        finally:
            pool.shutdown(cancel_futures=True)
        self._finish()

    def _missing(self) -> list[tuple[int, range]]:
        numbered = enumerate(self._shards)
        return [
            (n, shard) for n, shard in numbered if not os.path.isfile(self._note(n))
        ]

    def _note(self, number: int) -> Path:
        return self.output / f"shard-{number:05d}.json"

    def _shard_name(self, kind: str, number: int) -> str:
        return f"{kind}-{number:05d}-of-{len(self._shards):05d}{SHARD_ENDING}"

    def _record(self, index: int) -> Record:
        """A picture as it will be stored; runs in threads."""
        source, size = self.source, self.options.size
        name = source.name(index)
        try:
            encoded = source.encoded(index)
            image, hole = decode(encoded, name, source.mask_hole)
            height, width = image.shape[:2]
            smallest = self.options.smallest_side
            if min(width, height) < smallest:
                raise too_small(name, width, height, smallest)
        except UserError as error:
            return Record(name, rejected=str(error))
        content = encoded.image
        scale = 1 if size is None else size / min(width, height)
        if scale < 1 and scale * max(width, height) < LONGEST_JPEG:
            extent = max(round(width * scale), size), max(round(height * scale), size)
            content = _shrunk(image, extent)
            if hole is not None:
                hole = shrink_hole(hole, (0, 0, width, height), extent)
        return Record(name, content, None if hole is None else _png(hole))

    def _write_shard(
        self, number: int, shard: range, records: list[Record], rejects: Rejects
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
                _write_records(self.output / self._shard_name(kind, number), blobs)
            note["bytes"] += sum(map(len, blobs))
            note["digests"] += [hashlib.sha256(blob).hexdigest() for blob in blobs]
        write_json(self._note(number), note)

    def _finish(self) -> None:
        """Make the shards a dataset, and a sheet to look at."""
        numbers = range(len(self._shards))
        notes = [self._read_note(number) for number in numbers]
        used = [number for number in numbers if notes[number]["names"]]
        if not used:
            raise UserError(
                f"None of the pictures of {self.source.fingerprint.source} can be "
                f"used: {self.output / REPORT} says why."
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
        write_sheet(self.source, index["names"], self.output / SHEET)
        write_json(self.output / INDEX, index)
        self._remove_notes()

    def _read_note(self, number: int) -> dict[str, Any]:
        path = self._note(number)
        kinds = {"names": list[str], "bytes": int, "digests": list[str]}
        note = read_json(path, REMEDY, **kinds)
        known = set(map(self.source.name, self._shards[number]))
        blobs = len(note["names"]) * (2 if self.source.has_masks else 1)
        if not known.issuperset(note["names"]) or len(note["digests"]) != blobs:
            raise UserError(f"{path} is not of these pictures: {REMEDY}.")
        return note

    def _remove_notes(self) -> None:
        """What the index, which is there, says too."""
        for path in (self.output / PLAN, *self.output.glob("shard-*.json")):
            remove(path)


def _is_leftover(name: str) -> bool:
    """Of a run that was killed while it wrote."""
    return name.startswith(".") and ".part-" in name


def _shards(source: FileSource, most: int) -> list[range]:
    """Runs of pictures, of about `most` bytes each."""
    shards, start, size = [], 0, 0
    for index, name in enumerate(source.files.names):
        size += source.files.sizes[name]
        if size >= most:
            shards.append(range(start, index + 1))
            start, size = index + 1, 0
    if start < len(source):
        shards.append(range(start, len(source)))
    return shards


def _shrunk(image: np.ndarray, extent: tuple[int, int]) -> bytes:
    picture = Image.fromarray(image).resize(extent, Image.Resampling.BICUBIC)
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    return buffer.getvalue()


def _png(hole: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(hole).save(buffer, "PNG")
    return buffer.getvalue()


def _write_records(path: Path, records: list[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    def write(part: Path) -> None:
        try:
            # Each record for itself, for random access; images are compressed already.
            writer = ArrayRecordWriter(str(part), "group_size:1,uncompressed")
            for record in records:
                writer.write(record)
            writer.close()
        except RuntimeError as error:  # what the library raises for anything
            raise OSError(reason(error)) from error

    write_whole(path, write)


def write_sheet(source: FileSource, names: list[str], path: Path) -> None:
    """Some of a source's pictures in one, spread over `names`, with their holes."""
    count = min(len(names), SHEET_PICTURES)
    numbers = {name: number for number, name in enumerate(source.files.names)}
    shown = [numbers[names[index * len(names) // count]] for index in range(count)]
    pictures = [with_hole(*source[number]) for number in shown]
    sheet = contact_sheet(pictures, SHEET_SIDE, min(SHEET_COLUMNS, count))
    write_whole(path, lambda part: sheet.save(part, "PNG"))
