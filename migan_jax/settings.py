"""A ConfigDict that also takes settings by their earlier names."""

import functools
import logging
from typing import Any

from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

# The last parts of earlier keys, which are read until version 0.2.
RENAMED = {"parts": "microbatches", "bad_share": "max_rejected_fraction"}


def current_key(key: str) -> str:
    """Return the key of a setting that may be given by an earlier name."""
    section, dot, name = key.rpartition(".")
    return f"{section}{dot}{RENAMED.get(name, name)}"


@functools.cache  # once a process
def warn_of_renamed(key: str) -> None:
    """Warn if this is the earlier name of a setting."""
    if (current := current_key(key)) != key:
        logger.warning(
            "%s is now called %s; the old name will stop working in version 0.2.",
            key,
            current,
        )


class Settings(ConfigDict):
    """Settings or a section of them."""

    def __setitem__(self, key: str, value: Any) -> None:
        warn_of_renamed(key)
        if isinstance(value, dict | ConfigDict) and not isinstance(value, Settings):
            value = Settings(value)
        super().__setitem__(current_key(key), value)

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(current_key(key))
