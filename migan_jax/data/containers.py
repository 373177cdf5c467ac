"""Image files in a folder (recursively) or a zip archive.

Files are listed once, sorted by name, and read in any order. Names are relative paths
with slashes. Objects are pickled to worker processes, which open archives themselves.
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

from migan_jax.data.image_files import READABLE_SUFFIXES, unreadable_error
from migan_jax.errors import UserError
from migan_jax.files import reason

MAX_FILE_BYTES = 1 << 29  # more than any image within Pillow's limit of pixels
# bzip2 and LZMA are refused: a small entry may unpack to any size.
ZIP_COMPRESSIONS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
# Larger folders are fingerprinted by names and sizes only: reading all files would take
# minutes each time.
MAX_HASHED_BYTES = 1 << 30


class Files:
    """Image files by name."""

    location: Path
    sizes: dict[str, int]  # in bytes, sorted by name
    non_images: tuple[str, ...]  # other files, by their suffix

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        raise NotImplementedError

    def content_digests(self) -> Iterable[bytes]:
        """Yield a hash or checksum per file, or nothing if that takes too long."""
        raise NotImplementedError

    @functools.cached_property
    def names(self) -> list[str]:
        return list(self.sizes)

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes.values())

    def digest(self) -> str:
        """Hash names, sizes and `content_digests`, but not the location."""
        digest = hashlib.sha256()
        for name, size in self.sizes.items():
            digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        for content in self.content_digests():
            digest.update(content)
        return digest.hexdigest()

    def _set_files(self, files: Iterable[tuple[str, int]]) -> None:
        """Split names with sizes into images and others; skip hidden files."""
        sizes, non_images = {}, []
        for name, size in sorted(files):
            parts = PurePosixPath(name).parts
            hidden = (part.startswith(".") or part == "__MACOSX" for part in parts)
            if not parts or any(hidden):
                continue
            if name.lower().endswith(READABLE_SUFFIXES):
                sizes[name] = size
            else:
                non_images.append(name)
        self.sizes, self.non_images = sizes, tuple(non_images)

    def _check_size(self, name: str) -> None:
        if self.sizes[name] > MAX_FILE_BYTES:
            raise UserError(f"{name} has more than {MAX_FILE_BYTES >> 20} megabytes.")
        if self.sizes[name] == 0:
            raise UserError(f"{name} is empty.")


class Folder(Files):
    """A folder's files, recursively; links to folders are not followed."""

    def __init__(self, location: Path, exclude: Path | None = None):
        """List the files, except those in the folder `exclude`."""
        self.location = location
        self._exclude = exclude and os.path.realpath(exclude)
        self._set_files(self._walk())

    def _walk(self) -> Iterator[tuple[str, int]]:
        """Yield names with sizes; non-files and unreadable folders end in a slash."""
        folders = [(str(self.location), "")]
        while folders:
            folder, prefix = folders.pop()
            if os.path.realpath(folder) == self._exclude:
                continue
            try:
                entries = list(os.scandir(folder))
            except OSError as error:
                if not prefix:
                    raise unreadable_error(folder, error) from error
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
                except OSError:  # a loop of links, or no permission
                    size = None
                yield (f"{name}/", 0) if size is None else (name, size)

    def read(self, name: str) -> bytes:
        self._check_size(name)
        try:
            return (self.location / name).read_bytes()
        except OSError as error:
            raise unreadable_error(name, error) from error

    def content_digests(self) -> Iterator[bytes]:
        if self.total_bytes > MAX_HASHED_BYTES:
            return
        for name in self.names:
            try:
                yield hashlib.sha256(self.read(name)).digest()
            except UserError:  # is rejected when it is loaded
                yield b"unreadable"


class Zip(Files):
    """The files of a zip, which is not unpacked."""

    def __init__(self, location: Path):
        self.location = location
        self._lock = threading.Lock()
        self._open: zipfile.ZipFile | None = None
        entries = {entry.filename: entry for entry in self._zip.infolist()}
        for name in entries:
            if name.startswith("/") or ".." in re.split(r"[/\\]", name):
                raise UserError(
                    f"{location} has an entry outside the archive ({name}), so it is "
                    f"malicious or damaged. Zip the images again."
                )
        self._set_files(
            (name, entry.file_size)
            for name, entry in entries.items()
            if not name.endswith("/")
        )
        self._checksums = {name: entries[name].CRC for name in self.sizes}

    @property
    def _zip(self) -> zipfile.ZipFile:
        with self._lock:
            if self._open is None:
                try:
                    self._open = zipfile.ZipFile(self.location)
                except Exception as error:  # damaged files raise anything
                    raise UserError(
                        f"{self.location} cannot be read as a zip ({reason(error)}). "
                        f"Give a folder or a zip."
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
            if entry.compress_type not in ZIP_COMPRESSIONS:
                raise UserError(f"{name} is neither stored nor deflated in its zip.")
            with self._zip.open(entry) as file:
                return file.read(self.sizes[name])
        except UserError:
            raise
        except Exception as error:  # damaged files raise anything
            raise UserError(f"{name} cannot be unpacked ({reason(error)}).") from error

    def content_digests(self) -> Iterator[bytes]:
        for name in self.names:
            yield self._checksums[name].to_bytes(4, "little")


def open_files(location: Path, exclude: Path | None = None) -> Files:
    """List the images of a folder or zip; `exclude` is a folder to skip."""
    if os.path.isdir(location):
        files = Folder(location, exclude)
    elif os.path.isfile(location):
        files = Zip(location)
    else:
        raise UserError(f"{location} is not a folder or zip. Check the path.")
    if not files.sizes:
        suffixes = ", ".join(suffix[1:] for suffix in READABLE_SUFFIXES)
        raise UserError(f"{location} contains no images (looked for {suffixes}).")
    return files
