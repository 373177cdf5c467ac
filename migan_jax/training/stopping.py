"""Being told to stop: a scheduler's SIGTERM, or Ctrl-C."""

import os
import signal
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils


class Stopping:
    """Notices signals, so that a run can save before it ends. To be used in a `with`.

    The second one is no longer held back. Of several processes, JAX sees to it that all
    stop at the same step, whichever was told.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self.told = False
        self._handlers: dict[int, object] = {}

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

    def __enter__(self) -> Self:
        if self._several:  # SIGTERM is JAX's own to notice
            handler = signal.signal(signal.SIGINT, self._pass_on)
            self._handlers = {signal.SIGINT: handler}
        else:
            self._handlers = {
                number: signal.signal(number, self._tell)
                for number in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(self, *raised: object) -> None:
        self._restore()
