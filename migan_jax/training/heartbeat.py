"""A watch over a run's processes: one that hangs ends the run, and is named.

JAX notices processes that have ended, but waits for one that hangs, such as in reading
a file from a dead disk: the others stop in their next collective. All processes do the
same things in the same order, so that the one which is behind is the one to name.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

import jax
from jax._src.distributed import global_state

_FOLDER = "migan_jax/heartbeat"
POLL_SECONDS = 5.0


class Heartbeat:
    """Publishes what this process is doing; process 0 watches all. A context manager.

    Args:
      limit: seconds without news after which a process hangs.
    """

    def __init__(self, limit: float):
        self._limit = limit
        self._count, self._doing = 0, "starting"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def beat(self, doing: str) -> None:
        """Say what this process does from now on."""
        self._count, self._doing = self._count + 1, doing

    def _run(self) -> None:
        watch = Watch(self._limit)
        while not self._ended.wait(POLL_SECONDS):
            news = f"{self._count}|{socket.gethostname()}|{self._doing}"
            try:
                global_state.client.key_value_set(
                    f"{_FOLDER}/{jax.process_index()}", news, allow_overwrite=True
                )
                if jax.process_index() != 0:
                    continue
                found = global_state.client.key_value_dir_get(_FOLDER)
            except jax.errors.JaxRuntimeError:  # a lost coordinator, JAX itself notices
                continue
            if hanging := watch.look(dict(found)):
                print(f"error: {hanging}", file=sys.stderr, flush=True)
                os._exit(1)  # then JAX ends the others

    def __enter__(self) -> Self:
        if jax.process_count() > 1:
            self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()


class Watch:
    """Finds processes that are behind the others, and have not moved for too long."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic):
        self._limit, self._clock = limit, clock
        self._seen: dict[str, tuple[str, float]] = {}

    def look(self, news: Mapping[str, str]) -> str | None:
        """Return a sentence that names the processes which hang, or None.

        Args:
          news: of each process: its number of beats, its host, what it is doing.
        """
        now = self._clock()
        for process, text in news.items():
            if self._seen.get(process, ("", 0))[0] != text:
                self._seen[process] = text, now
        beats = {process: int(text.partition("|")[0]) for process, text in news.items()}
        if not beats:
            return None
        last = min(beats.values())
        behind = [process for process, count in beats.items() if count == last]
        seconds = now - max(self._seen[process][1] for process in behind)
        if seconds < self._limit:
            return None
        _, _, doing = news[behind[0]].split("|", 2)
        if len(behind) == len(news):
            return (
                f"All processes have been {doing} for {seconds:.0f} seconds. A device, "
                f"or the network between them, hangs. Run the same command to resume."
            )
        hosts = ", ".join(
            f"process {process.rpartition('/')[2]} on {news[process].split('|')[1]}"
            for process in sorted(behind)
        )
        return (
            f"The run hangs: {hosts} has been {doing} for {seconds:.0f} seconds, and "
            f"the others wait. Check that host, then run the same command to resume."
        )
