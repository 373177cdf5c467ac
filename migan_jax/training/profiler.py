"""A trace of some steps by JAX's profiler, to open in xprof or TensorBoard."""

import logging
import re
from pathlib import Path
from typing import Any, Self

import jax

from migan_jax.errors import UserError

logger = logging.getLogger(__name__)

PROFILE_FOLDER = "profile"


def profiled_steps(setting: str | None) -> range:
    """Return the steps of a setting such as "10:15", whose end is excluded."""
    if setting is None:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", setting)
    steps = range(*map(int, found.groups())) if found else range(0)
    if not steps:
        raise UserError(
            f"profile is {setting!r}, but must be FIRST:END, such as 10:15 for steps "
            f"10 to 14, or none."
        )
    return steps


class Profile:
    """Traces the steps of process 0. A context manager."""

    def __init__(self, setting: str | None, workdir: Path):
        self._steps = profiled_steps(setting if jax.process_index() == 0 else None)
        self._folder, self._is_open = workdir / PROFILE_FOLDER, False

    def before(self, step: int, state: Any) -> None:
        """Start or end the trace, if a range of steps starts or ends here."""
        if step in self._steps and not self._is_open:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._is_open = True
        elif self._is_open and step not in self._steps:
            jax.block_until_ready(state)
            self._close()
            first, last = self._steps[0], self._steps[-1]
            logger.info("traced steps %d to %d into %s/", first, last, PROFILE_FOLDER)

    def _close(self) -> None:
        jax.profiler.stop_trace()
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._is_open:
            self._close()
