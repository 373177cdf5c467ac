"""Files in buckets, gs:// and s3://, through fsspec.

Objects are written whole, never appended to or renamed, so that a reader sees all of
one or nothing.
"""

import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from migan_jax.errors import UserError, missing_extra
from migan_jax.files import reason

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SILENCE = 120  # seconds after which a request has failed; S3's library has a limit
PAUSE_LIMIT = 30.0  # seconds between attempts
logger = logging.getLogger(__name__)

Result = TypeVar("Result")
EXTRAS = {"gs": ("gcs", "gcsfs"), "s3": ("s3", "s3fs")}  # and their libraries


def bucket_address(location: str | Path) -> str | None:
    """Return gs://bucket/folder for an address of a bucket, None for other paths."""
    # pathlib merges the slashes.
    found = re.fullmatch(r"(gs|s3):/+([^/]+)(/.*?)?/*", str(location))
    return found and f"{found[1]}://{found[2]}{found[3] or ''}"


class Bucket:
    """A folder in a bucket. Names are relative to it.

    Attributes:
      patience: seconds for which failing requests are repeated, beyond the libraries'
        own attempts.
    """

    def __init__(self, address: str):
        self.address, self.patience = address, 0.0
        scheme, _, self._root = address.partition("://")
        self._files = _open(scheme, address)

    def names(self, folder: str = "") -> dict[str, int]:
        """Return the names and sizes of all objects in a folder, and in its folders.

        If the address is an object's, its name is empty.
        """
        path = self._path(folder).rstrip("/")
        found = self._try("read", lambda: self._files.find(path, detail=True))
        start = len(self._root) + 1
        return {
            path[start:]: entry["size"]
            for path, entry in found.items()
            # Consoles and mounts write empty objects in place of folders.
            if entry["size"] or not (path.endswith("/") or _is_parent(path, found))
        }

    def read(self, name: str) -> bytes | None:
        """Return an object's content, or None if it does not exist."""

        def read() -> bytes | None:
            try:
                return self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None

        return self._try("read", read)

    def write(self, name: str, content: bytes) -> None:
        """Write an object, in place of an existing one."""
        path = self._path(name)
        self._try("written", lambda: self._files.pipe_file(path, content))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless it exists; return whether it was written."""
        path = self._path(name)

        def create() -> bool:
            try:
                self._files.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            return True

        return self._try("written", create)

    def upload(self, files: Mapping[str, Path]) -> None:
        """Write objects from local files, several at a time."""
        paths = list(map(str, files.values())), list(map(self._path, files))
        self._try("written", lambda: self._files.put(*paths))

    def copy(self, names: Mapping[str, str]) -> None:
        """Copy objects to other names."""
        paths = list(map(self._path, names)), list(map(self._path, names.values()))
        self._try("written", lambda: self._files.copy(*paths))

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Copy objects to files of these names in a local folder, each atomically."""
        names = list(names)
        paths = list(map(self._path, names))

        def download() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
                targets = [Path(part, name) for name in names]
                for target in targets:
                    target.parent.mkdir(parents=True, exist_ok=True)
                self._files.get(paths, list(map(str, targets)))
                for name, target in zip(names, targets, strict=True):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(target, folder / name)

        self._try("read", download)

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects; some may not exist."""
        paths = list(map(self._path, names))

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm(paths)

        if paths:
            self._try("written", remove)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _try(self, done: str, request: Callable[[], Result]) -> Result:
        """Return a request's result; repeat it for `patience` seconds if it fails."""
        start, pause = time.monotonic(), 1.0
        while True:
            try:
                return request()
            except FileNotFoundError as error:
                raise UserError(f"There is nothing at {self.address}.") from error
            except Exception as error:  # the libraries raise any
                message = f"{self.address} cannot be {done}: {reason(error)}."
                if time.monotonic() + pause > start + self.patience:
                    raise UserError(message) from error
                logger.warning("%s Trying again.", message)
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_LIMIT)


def _is_parent(path: str, others: Iterable[str]) -> bool:
    return any(other.startswith(f"{path}/") for other in others)


def _open(scheme: str, address: str) -> "AbstractFileSystem":
    options: dict[str, object] = {
        "use_listings_cache": False,
        "skip_instance_cache": True,
    }
    try:
        if scheme == "gs":
            from aiohttp import ClientTimeout
            from gcsfs.core import GCSFileSystem

            # Every failed attempt is logged, with a traceback.
            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
            emulated = "STORAGE_EMULATOR_HOST" in os.environ
            options |= {"token": "anon"} if emulated else {}
            timeout = ClientTimeout(total=None, sock_connect=30, sock_read=SILENCE)
            return GCSFileSystem(requests_timeout=timeout, **options)
        from s3fs import S3FileSystem

        return S3FileSystem(**options)
    except ModuleNotFoundError as error:
        extra, library = EXTRAS[scheme]
        raise missing_extra(library, extra, f"Reading {address}") from error
