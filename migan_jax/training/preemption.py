"""Stopping on signals: a scheduler's SIGTERM, or Ctrl-C."""

import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Self

import jax
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

# JAX sets this key, visible to all processes, when one of them receives SIGTERM.
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"
_POLL_SECONDS = 0.3
# What the wakeup socket receives: b"" when it is closed, or a signal's number.
_WAKEUPS = b"", bytes([signal.SIGTERM]), bytes([signal.SIGINT])
# Process 0 hosts the coordinator, so it exits this many seconds after the others.
_EXIT_DELAY = 2.0


class StopSignals:
    """A context manager that turns signals into requests to save and stop.

    Before the first step there is nothing to save, and the main thread may be inside
    XLA for minutes. Until then a signal ends the process at once, from a thread.

    A second signal is not intercepted. With several processes, JAX makes all of them
    stop at the same step, whichever received the signal.
    """

    def __init__(self) -> None:
        self._is_distributed = jax.process_count() > 1
        self._is_deferred = False
        self.requested = False
        self._previous_handlers: dict[int, object] = {}

    def defer(self) -> None:
        """From now on, do not exit at once but wait for `should_stop`."""
        self._is_deferred = True

    def should_stop(self, step: int) -> bool:
        """Return whether to stop before this step; call it at every step."""
        if self._is_distributed and multihost_utils.reached_preemption_sync_point(step):
            self.requested = True
        return self.requested

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore_handlers()

    def _forward_as_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._restore_handlers()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore_handlers(self) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def _watch(self) -> None:
        """Exit the process if a signal comes before `defer`."""
        if self._is_distributed:
            while not self._is_deferred and not _notice_exists():
                time.sleep(_POLL_SECONDS)
        else:
            while self._reader.recv(1) not in _WAKEUPS:
                pass
        if self._is_deferred:
            return
        if jax.process_index() == 0:
            print("stopped: nothing was trained that is not saved", flush=True)
            time.sleep(_EXIT_DELAY if self._is_distributed else 0)
        os._exit(0)

    def __enter__(self) -> Self:
        if self._is_distributed:  # JAX handles SIGTERM itself
            handler = signal.signal(signal.SIGINT, self._forward_as_sigterm)
            self._previous_handlers = {signal.SIGINT: handler}
        else:
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            signal.set_wakeup_fd(self._writer.fileno())
            self._previous_handlers = {
                signum: signal.signal(signum, self._request)
                for signum in (signal.SIGTERM, signal.SIGINT)
            }
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._restore_handlers()
        self._is_deferred = True  # ends the watcher if distributed
        if not self._is_distributed:
            signal.set_wakeup_fd(-1)
            self._writer.close()  # ends the watcher otherwise
        self._watcher.join()
        if not self._is_distributed:
            self._reader.close()


def _notice_exists() -> bool:
    try:
        global_state.client.key_value_try_get(_NOTICE)
    except jax.errors.JaxRuntimeError:  # no such key yet
        return False
    return True
