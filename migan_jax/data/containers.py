"""Where image files lie: in a folder with its subfolders, or in a zip.

Both list their files once, sorted by name, and read one whole at random. Names are
relative, with slashes. Objects travel to worker processes, which open what they need.
"""

import functools
import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from migan_jax.data.decoding import READABLE_ENDINGS, unreadable
from migan_jax.errors import UserError
from migan_jax.files import reason

# No picture that may be decoded has so large a file.
LARGEST_FILE = 1 << 29
# How a zip's entry may be compressed; what bzip2 and LZMA unpack to has no bound.
UNPACKED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
# A folder up to this size is known by its files' contents, a larger one by their names
# and sizes: reading it would take minutes each time.
HASHED_BYTES = 1 << 30


class Files:
    """Image files by name: `sizes`, in the names' order, and how to read one."""

    location: Path
    sizes: dict[str, int]
    others: tuple[str, ...]  # what is there but no image by its ending

    def read(self, name: str) -> bytes:
        """All of a file's bytes."""
        raise NotImplementedError

    def content_digests(self) -> Iterable[bytes]:
        """Something that changes with a file's content, for each file; maybe less."""
        raise NotImplementedError

    @functools.cached_property
    def names(self) -> list[str]:
        return list(self.sizes)

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())

    def digest(self) -> str:
        """A hash of names, sizes and `content_digests`; not of where the files lie."""
        digest = hashlib.sha256()
        for name, size in self.sizes.items():
            digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        for content in self.content_digests():
            digest.update(content)
        return digest.hexdigest()

    def _keep(self, found: Iterable[tuple[str, int]]) -> None:
        """Sort what was found into images and others; hidden files count as neither."""
        sizes, others = {}, []
        for name, size in sorted(found):
            parts = PurePosixPath(name).parts
            hidden = (part.startswith(".") or part == "__MACOSX" for part in parts)
            if not parts or any(hidden):
                continue
            if name.lower().endswith(READABLE_ENDINGS):
                sizes[name] = size
            else:
                others.append(name)
        self.sizes, self.others = sizes, tuple(others)

    def _check_size(self, name: str) -> None:
        if self.sizes[name] > LARGEST_FILE:
            raise UserError(f"{name} has more than {LARGEST_FILE >> 20} megabytes.")
        if self.sizes[name] == 0:
            raise UserError(f"{name} is empty.")


class Folder(Files):
    """A folder's files, subfolders included; links to folders are not followed."""

    def __init__(self, location: Path, without: Path | None = None):
        """`without`: a folder inside, for something else."""
        self.location = location
        self._without = without and os.path.realpath(without)
        self._keep(self._walk())

    def _walk(self) -> Iterator[tuple[str, int]]:
        """Names with sizes; what is no file or cannot be looked at ends in a slash."""
        folders = [(str(self.location), "")]
        while folders:
            folder, prefix = folders.pop()
            if os.path.realpath(folder) == self._without:
                continue
            try:
                entries = list(os.scandir(folder))
            except OSError as error:
                if not prefix:
                    raise unreadable(folder, error) from error
                yield prefix, 0
                continue
            for entry in entries:
                name = prefix + entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith("."):
                            folders.append((entry.path, f"{name}/"))
                        continue
                    size = entry.stat().st_size if entry.is_file() else None
                except OSError:  # a loop of links, a folder that may not be entered
                    size = None
                yield (f"{name}/", 0) if size is None else (name, size)

    def read(self, name: str) -> bytes:
        self._check_size(name)
        try:
            return (self.location / name).read_bytes()
        except OSError as error:
            raise unreadable(name, error) from error

    def content_digests(self) -> Iterator[bytes]:
        if self.total_bytes > HASHED_BYTES:
            return
        for name in self.names:
            try:
                yield hashlib.sha256(self.read(name)).digest()
            except UserError:  # will be rejected wherever it is used
                yield b"unreadable"


class Zip(Files):
    """A zip's files, read without unpacking it."""

    def __init__(self, location: Path):
        self.location = location
        self._lock = threading.Lock()
        self._open: zipfile.ZipFile | None = None
        found = {entry.filename: entry for entry in self._zip.infolist()}
        for name in found:
            if name.startswith("/") or ".." in re.split(r"[/\\]", name):
                raise UserError(
                    f"{location} has an entry outside itself ({name}): it was made to "
                    f"do harm, or damaged; zip its pictures again."
                )
        self._keep((name, e.file_size) for name, e in found.items() if name[-1:] != "/")
        self._checksums = {name: found[name].CRC for name in self.sizes}

    @property
    def _zip(self) -> zipfile.ZipFile:
        with self._lock:
            if self._open is None:
                try:
                    self._open = zipfile.ZipFile(self.location)
                except Exception as error:  # damage may surface as anything
                    raise UserError(
                        f"{self.location} cannot be read as a zip ({reason(error)}): "
                        f"name a folder or a zip."
                    ) from error
            return self._open

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def read(self, name: str) -> bytes:
        self._check_size(name)
        try:
            entry = self._zip.getinfo(name)
            if entry.compress_type not in UNPACKED:
                raise UserError(f"{name} is neither stored nor deflated in its zip.")
            with self._zip.open(entry) as file:
                return file.read(self.sizes[name])
        except UserError:
            raise
        except Exception as error:  # damage may surface as anything
            raise UserError(f"{name} cannot be unpacked ({reason(error)}).") from error

    def content_digests(self) -> Iterator[bytes]:
        for name in self.names:
            yield self._checksums[name].to_bytes(4, "little")


def open_files(location: Path, without: Path | None = None) -> Files:
    """The images in a folder or a zip."""
    if os.path.isdir(location):
        files = Folder(location, without)
    elif os.path.isfile(location):
        files = Zip(location)
    else:
        raise UserError(f"There is no folder or zip at {location}: check the name.")
    if not files.sizes:
        kinds = ", ".join(ending[1:] for ending in READABLE_ENDINGS)
        raise UserError(f"{location} holds no images (looked for {kinds}).")
    return files
