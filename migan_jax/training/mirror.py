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
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import jax

from migan_jax.buckets import Bucket, bucket_address
from migan_jax.errors import UserError
from migan_jax.files import CACHE, make_folder, reason, remove
from migan_jax.training.processes import barrier, lock_workdir
from migan_jax.weights.locations import CHECKPOINTS, MANIFEST

logger = logging.getLogger(__name__)

LOCK = "lock.json"
# What a resumed run reads, beside its checkpoints and compiled programs.
NEEDED = "metrics.jsonl", "rejected.json", "samples/beginning.png"
COMPILED = "compiled"  # JAX's compilation cache, for all processes
# A run refreshes its lock; one that is as old as the second number belongs to none.
REFRESH_SECONDS, STALE_SECONDS = 30, 120
PATIENCE = 600  # seconds for which a run repeats failing requests


class Lock:
    """The right to write to a bucket's folder. A context manager.

    The run that has it refreshes it, so that a killed run does not block the next one.
    """

    def __init__(self, bucket: Bucket):
        self._bucket, self._token = bucket, secrets.token_hex(8)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def check(self) -> None:
        """Raise UserError if another run has taken the lock."""
        if self._owner().get("token", self._token) != self._token:
            raise UserError(
                f"Another run has taken over {self._bucket.address}: this one had not "
                f"refreshed its lock for {STALE_SECONDS} seconds. It stops."
            )

    def _content(self) -> bytes:
        owner = {"host": socket.gethostname(), **_this_process()}
        return json.dumps({**owner, "token": self._token, "time": time.time()}).encode()

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            try:
                self.check()
                self._bucket.write(LOCK, self._content())
            except UserError as error:  # before it writes more, the run checks again
                logger.warning("%s", error)

    def _owner(self) -> dict[str, Any]:
        content = self._bucket.read(LOCK)
        try:
            return {} if content is None else dict(json.loads(content))
        except ValueError:
            return {"host": "an unknown host"}

    def __enter__(self) -> Self:
        while not self._bucket.create(LOCK, self._content()):
            owner = self._owner()
            # A repeated request may find what the first one has written.
            if owner.get("token") == self._token:
                break
            if self._is_stale(owner) and self._owner() == owner:
                self._bucket.remove([LOCK])
        self._thread.start()
        return self

    def _is_stale(self, owner: dict[str, Any]) -> bool:
        """Return whether the lock is of a run that has ended, or False if it is gone.

        Wait to find out; raise UserError if the owner is running.
        """
        if not owner or _has_ended(owner):
            return bool(owner)
        logger.info(
            "%s was locked by %s: waiting %d seconds to see whether it still runs",
            self._bucket.address,
            owner.get("host"),
            STALE_SECONDS,
        )
        since = time.monotonic()
        while time.monotonic() < since + STALE_SECONDS:
            time.sleep(min(1, STALE_SECONDS / 10))
            now = self._owner()
            if not now:
                return False  # the lock is gone
            if now != owner:
                raise UserError(
                    f"{self._bucket.address} is in use by a run on {now.get('host')}: "
                    f"wait for it, or name another --workdir."
                )
        return True

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            if self._owner().get("token") == self._token:
                self._bucket.remove([LOCK])
        except UserError as error:  # an earlier error takes precedence
            logger.warning("%s", error)


def _this_process() -> dict[str, Any]:
    """Identify this process; two machines, or containers, may have the same names."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        return {}
    return {"boot": boot, "namespace": namespace, "process": os.getpid()}


def _has_ended(owner: dict[str, Any]) -> bool:
    """Return whether the owner was a process of this system, and has ended."""
    ours = _this_process()
    if not ours or any(owner.get(key) != ours[key] for key in ("boot", "namespace")):
        return False
    return (
        owner["process"] == os.getpid()
        or not Path("/proc", str(owner["process"])).exists()
    )


@contextlib.contextmanager
def open_workdir(location: Path, clear: bool) -> Iterator[tuple[Path, "Mirror | None"]]:
    """Lock a workdir; return its folder, and its mirror if it is in a bucket.

    `clear` empties a folder first.
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
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            remove(folder)
            make_folder(folder / CHECKPOINTS)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {reason(error)}.") from error
        mirror = Mirror(bucket, folder, lock)
        if is_first:
            mirror.download_run()
        else:
            mirror.download_compiled()
        bucket.patience = PATIENCE
        try:
            yield folder, mirror
        except BaseException:
            bucket.patience = 0
            with contextlib.suppress(UserError, OSError):  # the first is the cause
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
        """Download what a run resumes from: no unfinished checkpoints."""
        names, wanted = self._bucket.names(), []
        for name in names:
            if found := re.match(rf"{CHECKPOINTS}/[0-9]+/", name):
                if found[0] + MANIFEST in names:
                    wanted.append(name)
            elif name in NEEDED or name.startswith(f"{COMPILED}/"):
                wanted.append(name)
        self._download(wanted)

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
            path.relative_to(self._folder).as_posix(): path
            for folder in self._folder.iterdir()
            if folder.name != CHECKPOINTS  # which changes in the background
            for path in (folder, *folder.rglob("*"))
            if path.is_file()
        }
        states = {name: _state(path) for name, path in files.items()}
        changed = dict(states.items() - self._uploaded.items())
        if changed:
            self._bucket.upload({name: files[name] for name in changed})
            self._uploaded |= changed

    def upload_checkpoint(self, folder: Path, step: int) -> None:
        """Upload a checkpoint from its unfinished folder; its manifest comes last."""
        self._lock.check()
        target = f"{CHECKPOINTS}/{step}/"
        files = {target + name: path for name, path in _files_in(folder).items()}
        manifest = {target + MANIFEST: files.pop(target + MANIFEST)}
        self._bucket.remove(self._bucket.names(target))  # of a run that was killed
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

    def set_aside_checkpoint(self, step: int, name: str) -> None:
        """Rename a damaged checkpoint."""
        target = f"{CHECKPOINTS}/{step}/"
        found = self._bucket.names(target)
        renamed = f"{CHECKPOINTS}/{name}/"
        self._bucket.copy({n: renamed + n.removeprefix(target) for n in found})
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
