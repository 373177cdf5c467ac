"""Writing files whole or not at all, reading our own, and saying why it failed.

What is written here outlives a power cut from the moment that it has its name on: until
they are synced, names and contents of files are in the memory only, the names often
less long than the contents.
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

REASON_LENGTH = 200
# What is said where folders cannot be synced: by Windows, by some disks of other
# machines, and where a folder may be written to but not be listed.
UNSYNCED_FOLDERS = errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF
SYNCED_AT_ONCE = 16  # files; a disk that is told of many together writes once for all


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or folder that appears at `path` whole or not at all."""
    path = Path(os.path.abspath(path))  # "." has no name
    # No name too long, and one that no other process has.
    part = path.with_name(f".{path.name[:50]}.part-{secrets.token_hex(4)}")
    try:
        make_folder(path.parent)
        write(part)
        sync_tree(part)
        os.replace(part, path)
        sync(path.parent)
    except (OSError, ValueError) as error:  # TensorStore has only ValueError
        raise UserError(f"{path} cannot be written: {reason(error)}.") from error
    finally:
        remove(part)


def make_folder(folder: Path) -> None:
    """Make a folder with its parents, where they are missing."""
    folder = folder.absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def sync_tree(path: Path) -> None:
    """Wait until a file is on the disk, or a folder with all that it holds."""
    found = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    found = [name for name in found if name.is_file()]  # a pipe would wait for ever
    with ThreadPoolExecutor(SYNCED_AT_ONCE) as pool:
        list(pool.map(sync, found))
    for folder, _, _ in os.walk(path, topdown=False):
        sync(Path(folder))
    if not path.is_dir():
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file's contents are on the disk, or the names in a folder."""
    is_folder = path.is_dir()
    try:
        # Windows wants to be allowed to write what it syncs.
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if is_folder and error.errno in UNSYNCED_FOLDERS:
            return
        raise OSError(error.errno, error.strerror, str(path)) from error


def sha256_of(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON, whole or not at all."""
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda part: part.write_text(text))


def read_json(path: Path, remedy: str, **kinds: Any) -> dict[str, Any]:
    """An object of ours; UserError if a key is missing or not of its kind.

    Kinds are types, of which int counts from 0 up, `list[...]`, `dict[str, ...]`,
    unions, literals, and for an object a dictionary of its keys' kinds; it may have
    more keys. `remedy` ends the sentence on a damaged file.
    """
    try:
        content = json.loads(path.read_text())
        if not _is_of_kind(content, kinds):
            raise ValueError("its content is not what is written here")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not ours: {remedy}.") from error
    return content


def _is_of_kind(value: Any, kind: Any) -> bool:
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(
            key in value and _is_of_kind(value[key], inner)
            for key, inner in kind.items()
        )
    container, inner = get_origin(kind), get_args(kind)
    if container is Literal:
        return value in inner
    if container is list:
        return isinstance(value, list) and all(_is_of_kind(v, inner[0]) for v in value)
    if container is dict:
        return isinstance(value, dict) and all(
            _is_of_kind(v, inner[1]) for v in value.values()
        )
    if inner:
        return any(_is_of_kind(value, one) for one in inner)
    return type(value) is kind and (kind is not int or 0 <= value < 2**63)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; the lock ends with the process, however."""
    try:
        descriptor = _locked(folder)
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


def _locked(folder: Path) -> int:
    """A descriptor that holds a folder's lock; BlockingIOError if another one does."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows, which locks files only
        return _locked_on_windows(folder / ".lock")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _locked_on_windows(path: Path) -> int:
    import msvcrt

    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except PermissionError as error:  # what it raises for a lock that is taken
        os.close(descriptor)
        raise BlockingIOError from error
    return descriptor


def refuse_address(location: str | Path) -> None:
    """UserError for an address such as gs://bucket/x: only paths can be used."""
    # pathlib makes one slash of two; of one letter it is a drive.
    found = re.match(r"(\w{2,}):/+([^/]*)(/.*)?", str(location))
    if found is None:
        return
    scheme, bucket, rest = found.groups(default="")
    address, folder = f"{scheme}://{bucket}{rest}", f"/mnt/{bucket}"
    if scheme not in ("gs", "s3"):
        raise UserError(
            f"{address} is an address, and only files and folders can be used: "
            f"download it, and name the file."
        )
    how = "for example with s3fs"
    if scheme == "gs":
        how = f"gcsfuse --implicit-dirs {bucket} {folder}"
    raise UserError(
        f"{address} is a bucket, and only files and folders can be used: mount it "
        f"({how}), and name {folder}{rest} instead."
    )


def refuse_undecodable(path: Path) -> None:
    """UserError for a name that is not UTF-8, which libraries in C++ cannot open."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path} has a name or is in a folder whose name is not UTF-8, and cannot "
            f"be opened by all libraries: rename it."
        ) from error


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def reason(error: Exception | str) -> str:
    """What a library's error says, short enough for one sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}"
    return text.splitlines()[0][:REASON_LENGTH].rstrip(".")


def readable_size(count: float) -> str:
    """Bytes, for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            break
        count, unit = count / 1000, "TB"
    return f"{count:.3g} {unit}"
