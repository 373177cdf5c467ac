"""Files in buckets, gs:// and s3://, through fsspec.

Objects are written whole, never appended to or renamed, so that a reader sees all of
one or nothing. Failed requests are repeated by the libraries.
"""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from migan_jax.errors import UserError, missing_extra
from migan_jax.files import reason

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

REQUEST_TIMEOUT = 120  # seconds; S3's library has one
EXTRAS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}  # and their libraries


def bucket_address(location: str | Path) -> str | None:
    """Return gs://bucket/folder for an address of a bucket, None for other paths."""
    # pathlib merges the slashes.
    found = re.fullmatch(r"(gs|s3):/+([^/]+)(/.*?)?/*", str(location))
    return found and f"{found[1]}://{found[2]}{found[3] or ''}"


class Bucket:
    """A folder in a bucket. Names are relative to it."""

    def __init__(self, address: str):
        self.address = address
        scheme, _, self._root = address.partition("://")
        self._files = _open(scheme, address)

    def names(self, folder: str = "") -> dict[str, int]:
        """Return the names and sizes of all objects in a folder, and in its folders."""
        with self._explain("read"):
            found = self._files.find(self._path(folder).rstrip("/"), detail=True)
        start = len(self._root) + 1
        return {path[start:]: entry["size"] for path, entry in found.items()}

    def read(self, name: str) -> bytes | None:
        """Return an object's content, or None if it does not exist."""
        with self._explain("read"):
            try:
                return self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object, in place of an existing one."""
        with self._explain("written"):
            self._files.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless it exists; return whether it was written."""
        with self._explain("written"):
            try:
                self._files.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            return True

    def upload(self, files: Mapping[str, Path]) -> None:
        """Write objects from local files, several at a time."""
        with self._explain("written"):
            self._files.put(
                list(map(str, files.values())), list(map(self._path, files))
            )

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Copy objects to files of these names in a local folder, each atomically."""
        names = list(names)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
            targets = [Path(part, name) for name in names]
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            with self._explain("read"):
                self._files.get(list(map(self._path, names)), list(map(str, targets)))
            for name, target in zip(names, targets, strict=True):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(target, folder / name)

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects."""
        if names := list(names):
            with self._explain("written"):
                self._files.rm(list(map(self._path, names)))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _explain(self, done: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(f"There is nothing at {self.address}.") from error
        except Exception as error:  # the libraries raise any
            raise UserError(
                f"{self.address} cannot be {done}: {reason(error)}."
            ) from error


def _open(scheme: str, address: str) -> "AbstractFileSystem":
    options: dict[str, object] = {
        "use_listings_cache": False,
        "skip_instance_cache": True,
    }
    try:
        if scheme == "gs":
            from gcsfs.core import GCSFileSystem

            # Every failed attempt is logged, with a traceback.
            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
            emulated = "STORAGE_EMULATOR_HOST" in os.environ
            options |= {"token": "anon"} if emulated else {}
            return GCSFileSystem(requests_timeout=REQUEST_TIMEOUT, **options)
        from s3fs import S3FileSystem

        return S3FileSystem(**options)
    except ModuleNotFoundError as error:
        extra, library = EXTRAS[scheme]
        raise missing_extra(library, extra, f"Reading {address}") from error
