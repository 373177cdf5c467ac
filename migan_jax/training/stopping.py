"""Being told to stop: a scheduler's SIGTERM, or Ctrl-C."""

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

# JAX's key for "one of the processes was told", in what they all can look up.
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"
_POLLED = 0.3  # seconds
# What Python writes on a signal: its number.
_SIGNALS = b"", bytes([signal.SIGTERM]), bytes([signal.SIGINT])
# The first process, through which the others learn of it, ends so much later.
_AFTER_OTHERS = 2.0


class Stopping:
    """Notices signals, so that a run can save before it ends. To be used in a `with`.

    Until something is trained there is nothing to save, and much to wait for: programs
    are compiled, held-out pictures measured. Then a signal ends the process at once,
    from a thread of its own, since the main one may be inside XLA for minutes.

    The second signal is no longer held back. Of several processes, JAX sees to it that
    all stop at the same step, whichever was told.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._trained = False
        self.told = False
        self._handlers: dict[int, object] = {}

    def hold_back(self) -> None:
        """From now on there is something to save."""
        self._trained = True

    def asked(self, step: int) -> bool:
        """Whether to stop before this step; several processes ask at each."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self.told = True
        return self.told

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        self._restore()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _watch(self) -> None:
        """End the process if it is told before anything is trained."""
        if self._several:
            while not self._trained and not _all_are_told():
                time.sleep(_POLLED)
        else:
            while self._told_by.recv(1) not in _SIGNALS:  # waits; b"" is the end
                pass
        if self._trained:
            return
        if jax.process_index() == 0:
            print("stopped: nothing was trained that is not saved", flush=True)
            time.sleep(_AFTER_OTHERS if self._several else 0)
        os._exit(0)

    def __enter__(self) -> Self:
        if self._several:  # SIGTERM is JAX's own to notice
            handler = signal.signal(signal.SIGINT, self._pass_on)
            self._handlers = {signal.SIGINT: handler}
        else:
            self._told_by, self._tells = socket.socketpair()
            self._tells.setblocking(False)
            signal.set_wakeup_fd(self._tells.fileno())
            self._handlers = {
                number: signal.signal(number, self._tell)
                for number in (signal.SIGTERM, signal.SIGINT)
            }
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._restore()
        self._trained = True  # which ends the watch of several processes
        if not self._several:
            signal.set_wakeup_fd(-1)
            self._tells.close()  # which ends that of one
        self._watcher.join()
        if not self._several:
            self._told_by.close()


def _all_are_told() -> bool:
    try:
        global_state.client.key_value_try_get(_NOTICE)
    except jax.errors.JaxRuntimeError:  # there is no such key yet
        return False
    return True
