"""Atomic writing, syncing, locking and checked reading of files.

Files written here survive a power cut as soon as they have their final name: contents
are synced first, then names. Until then the system may keep either in memory only, and
often writes names before contents.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from migan_jax.errors import UserError

CACHE = Path.home() / ".cache" / "migan_jax"
REASON_LENGTH = 200
# Errors where folders cannot be synced: on Windows, on some network file systems, and
# in folders that may be written to but not listed.
SYNC_ERRORS = errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF
SYNC_THREADS = 16  # disks write concurrently synced files together


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file or folder atomically: `write` makes it at a temporary path."""
    path = Path(os.path.abspath(path))  # "." has no name
    # A name that is short enough and unique to this process.
    partial = path.with_name(f".{path.name[:50]}.part-{secrets.token_hex(4)}")
    try:
        make_folder(path.parent)
        write(partial)
        sync_tree(partial)
        os.replace(partial, path)
        sync(path.parent)
    except (OSError, ValueError) as error:  # TensorStore raises ValueError
        raise UserError(f"{path} cannot be written: {reason(error)}.") from error
    finally:
        remove(partial)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and sync their names."""
    folder = folder.absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def sync_tree(path: Path) -> None:
    """Wait until a file, or a folder with all its contents, is on the disk."""
    files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    files = [file for file in files if file.is_file()]  # a pipe would block
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(sync, files))
    for folder, _, _ in os.walk(path, topdown=False):
        sync(Path(folder))
    if not path.is_dir():
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file's contents, or the names in a folder, are on the disk."""
    is_folder = path.is_dir()
    try:
        # Windows syncs only files that are open for writing.
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if is_folder and error.errno in SYNC_ERRORS:
            return
        raise OSError(error.errno, error.strerror, str(path)) from error


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text))


def read_json(path: Path, hint: str, **types: Any) -> dict[str, Any]:
    """Read a JSON object; raise UserError if a key is missing or has a wrong type.

    Args:
      path: the file.
      hint: what to do about a damaged file, to end the error message.
      types: the type of each required key. Supported are plain types (an int must not
        be negative), `list[...]`, `dict[str, ...]`, unions and literals; a dictionary
        of types stands for an object, which may have more keys.
    """
    try:
        content = json.loads(path.read_text())
        if not _has_type(content, types):
            raise ValueError
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not ours: {hint}.") from error
    return content


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(
            key in value and _has_type(value[key], inner) for key, inner in kind.items()
        )
    container, inner = get_origin(kind), get_args(kind)
    if container is Literal:
        return value in inner
    if container is list:
        return isinstance(value, list) and all(_has_type(v, inner[0]) for v in value)
    if container is dict:
        return isinstance(value, dict) and all(
            _has_type(v, inner[1]) for v in value.values()
        )
    if inner:
        return any(_has_type(value, one) for one in inner)
    return type(value) is kind and (kind is not int or 0 <= value < 2**63)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs; the lock ends with the process."""
    try:
        descriptor = _lock(folder)
    except BlockingIOError as error:
        raise UserError(
            f"{folder} is in use by another run: wait for it, or name another folder."
        ) from error
    except OSError as error:
        raise UserError(f"{folder} cannot be opened: {reason(error)}.") from error
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int:
    """Return a descriptor that locks the folder; BlockingIOError if it is locked."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows, which locks files only
        return _lock_on_windows(folder / ".lock")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _lock_on_windows(path: Path) -> int:
    import msvcrt

    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except PermissionError as error:  # already locked
        os.close(descriptor)
        raise BlockingIOError from error
    return descriptor


def refuse_address(location: str | Path) -> None:
    """Raise UserError for an address such as gs://bucket/x."""
    # pathlib merges the slashes; a single letter is a drive.
    found = re.match(r"(\w{2,}):/+([^/]*)(/.*)?", str(location))
    if found is None:
        return
    scheme, bucket, rest = found.groups(default="")
    address, folder = f"{scheme}://{bucket}{rest}", f"/mnt/{bucket}"
    if scheme not in ("gs", "s3"):
        raise UserError(
            f"{address} is an address, but only files and folders are supported: "
            f"download it, and name the file."
        )
    how = "for example with s3fs"
    if scheme == "gs":
        how = f"gcsfuse --implicit-dirs {bucket} {folder}"
    raise UserError(
        f"{address} is a bucket, but only files and folders are supported: mount it "
        f"({how}), and name {folder}{rest} instead."
    )


def refuse_undecodable(path: Path) -> None:
    """Raise UserError for a name that is not UTF-8, which C++ libraries cannot open."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The name of {path} or of its folder is not UTF-8, which some libraries "
            f"cannot open: rename it."
        ) from error


def remove(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def reason(error: Exception | str) -> str:
    """Return a library's error message, short enough for one sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}"
    return text.splitlines()[0][:REASON_LENGTH].rstrip(".")


def readable_size(count: float) -> str:
    """Format a number of bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            break
        count, unit = count / 1000, "TB"
    return f"{count:.3g} {unit}"
