"""A workdir in a bucket: the run works in a local copy, which process 0 uploads.

A checkpoint counts once its manifest, which is uploaded last, is there; metrics and
grids that belong to it are uploaded before. A run that starts downloads what it resumes
from. So a run that is killed at any time resumes as on a disk, on any machine.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import jax

from migan_jax.buckets import Bucket, bucket_address
from migan_jax.errors import UserError
from migan_jax.files import CACHE, make_folder, remove
from migan_jax.training.processes import barrier, lock_workdir
from migan_jax.weights.locations import CHECKPOINTS, MANIFEST

logger = logging.getLogger(__name__)

LOCK = "lock.json"
# Only uploaded: event files are of one process, and grids are not read again.
UPLOADED_ONLY = "tensorboard/", "samples/step_", "profile/"
COMPILED = "compiled"  # JAX's compilation cache, for all processes
# A run refreshes its lock; one that is as old as the second number belongs to none.
REFRESH_SECONDS, STALE_SECONDS = 30, 120


class Lock:
    """The right to write to a bucket's folder. A context manager.

    The run that has it refreshes it, so that a killed run does not block the next one.
    """

    def __init__(self, bucket: Bucket):
        self._bucket, self._token = bucket, secrets.token_hex(8)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)
        self._error: UserError | None = None

    def check(self) -> None:
        """Raise UserError if another run has taken the lock."""
        if self._error is not None:
            raise self._error

    def _content(self) -> bytes:
        owner = {"host": socket.gethostname(), "process": os.getpid()}
        return json.dumps({**owner, "token": self._token, "time": time.time()}).encode()

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS) and self._error is None:
            try:
                if self._owner().get("token") == self._token:
                    self._bucket.write(LOCK, self._content())
                    continue
            except UserError as error:  # it may be reached again in time
                logger.warning("%s", error)
                continue
            self._error = UserError(
                f"Another run has taken over {self._bucket.address}: this one had not "
                f"refreshed its lock for {STALE_SECONDS} seconds. It stops."
            )

    def _owner(self) -> dict[str, object]:
        content = self._bucket.read(LOCK)
        return {} if content is None else json.loads(content)

    def __enter__(self) -> Self:
        while not self._bucket.create(LOCK, self._content()):
            # A repeated request may find what the first one has written.
            if self._owner().get("token") == self._token:
                break
            self._wait_until_stale()
            self._bucket.remove([LOCK])
        self._thread.start()
        return self

    def _wait_until_stale(self) -> None:
        """Return if the owner is gone; raise UserError if it is running."""
        owner, since = self._owner(), time.monotonic()
        if not owner or _has_ended(owner):
            return
        logger.info(
            "%s was locked by %s: waiting %d seconds to see whether it still runs",
            self._bucket.address,
            owner.get("host"),
            STALE_SECONDS,
        )
        while time.monotonic() < since + STALE_SECONDS:
            time.sleep(min(1, STALE_SECONDS / 10))
            if (now := self._owner()) != owner:
                if not now:
                    return
                raise UserError(
                    f"{self._bucket.address} is in use by a run on {now.get('host')}: "
                    f"wait for it, or name another --workdir."
                )

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._error is None:
            self._bucket.remove([LOCK])


def _has_ended(owner: dict[str, object]) -> bool:
    """Return whether the lock is of a process of this host that has ended."""
    if owner.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(str(owner.get("process"))), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):  # of another user
        return False
    return False


@contextlib.contextmanager
def open_workdir(location: Path, clear: bool) -> Iterator[tuple[Path, "Mirror | None"]]:
    """Lock a workdir; return its folder, and its mirror if it is in a bucket.

    `clear` empties it first.
    """
    address = bucket_address(location)
    if address is None:
        with lock_workdir(location, clear):
            yield location, None
        return
    with contextlib.ExitStack() as stack:
        bucket, is_first = Bucket(address), jax.process_index() == 0
        lock = stack.enter_context(Lock(bucket)) if is_first else None
        barrier("bucket is locked")
        digest = hashlib.sha256(address.encode()).hexdigest()[:16]
        folder = CACHE / "workdirs" / f"{digest}-{jax.process_index()}"
        stack.callback(remove, folder)
        remove(folder)
        make_folder(folder / CHECKPOINTS)
        mirror = Mirror(bucket, folder, lock)
        if not is_first:
            mirror.download_compiled()
        elif clear:
            mirror.clear()
        else:
            mirror.download_run()
        try:
            yield folder, mirror
        except BaseException:
            with contextlib.suppress(UserError):  # the first error is the cause
                mirror.upload()
            raise
        mirror.upload()


class Mirror:
    """The local copy of a workdir in a bucket."""

    def __init__(self, bucket: Bucket, folder: Path, lock: Lock | None):
        """
        Args:
          lock: None in processes other than 0, which upload nothing.
        """
        self._bucket, self._folder, self._lock = bucket, folder, lock
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and time of change

    def __str__(self) -> str:
        return self._bucket.address

    def download_run(self) -> None:
        """Download what a run resumes from, and delete unfinished checkpoints."""
        names = self._bucket.names()
        unfinished, wanted = [], []
        for name in names:
            if found := re.match(rf"{CHECKPOINTS}/([^/]*)/", name):
                if not found[1].isdecimal():  # set aside
                    continue
                is_complete = found[0] + MANIFEST in names
                (wanted if is_complete else unfinished).append(name)
            elif name != LOCK and not name.startswith(UPLOADED_ONLY):
                wanted.append(name)
        self._bucket.remove(unfinished)
        self._download(wanted)

    def clear(self) -> None:
        """Delete everything but the lock."""
        self._bucket.remove(name for name in self._bucket.names() if name != LOCK)

    def download_compiled(self) -> None:
        """Download the compiled programs, which process 0 has uploaded."""
        self._download(self._bucket.names(f"{COMPILED}/"))

    def download_checkpoint(self, step: int) -> None:
        """Download a checkpoint unless it is there."""
        if not (self._folder / CHECKPOINTS / str(step)).exists():
            self._download(self._bucket.names(f"{CHECKPOINTS}/{step}/"))

    def _download(self, names: Iterable[str]) -> None:
        if names := list(names):
            self._bucket.download(names, self._folder)
            self._uploaded |= {name: _state(self._folder / name) for name in names}

    def upload(self) -> None:
        """Upload the files that have changed, but for checkpoints, from process 0."""
        if self._lock is None:
            return
        self._lock.check()
        files = {
            name: path
            for name, path in _files_in(self._folder).items()
            if not name.startswith(f"{CHECKPOINTS}/")
            and self._uploaded.get(name) != _state(path)
        }
        states = {name: _state(path) for name, path in files.items()}
        if files:
            self._bucket.upload(files)
            self._uploaded |= states

    def upload_checkpoint(self, folder: Path, step: int) -> None:
        """Upload a checkpoint from its unfinished folder; its manifest comes last."""
        self._lock.check()
        target = f"{CHECKPOINTS}/{step}/"
        files = {target + name: path for name, path in _files_in(folder).items()}
        manifest = {target + MANIFEST: files.pop(target + MANIFEST)}
        self._bucket.upload(files)
        sizes = self._bucket.names(target)
        for name, path in files.items():
            if sizes.get(name) != path.stat().st_size:
                raise UserError(f"{self._bucket.address}/{name} is incomplete.")
        self._lock.check()
        self._bucket.upload(manifest)

    def remove_checkpoint(self, step: int) -> None:
        """Delete a checkpoint, its manifest first."""
        self._lock.check()
        target = f"{CHECKPOINTS}/{step}/"
        self._bucket.remove([target + MANIFEST])
        self._bucket.remove(self._bucket.names(target))

    def set_aside_checkpoint(self, step: int, renamed: Path) -> None:
        """Replace a damaged checkpoint by its renamed local copy."""
        files = _files_in(renamed)
        target = f"{CHECKPOINTS}/{renamed.name}/"
        self._bucket.upload({target + name: path for name, path in files.items()})
        self.remove_checkpoint(step)


def _files_in(folder: Path) -> dict[str, Path]:
    """Return the files in a folder and its folders, by relative name."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file()
    }


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
