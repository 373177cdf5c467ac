"""Report unusable images with the reason; too many of them are an error."""

import dataclasses
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from migan_jax.data.sources import Fingerprint, Source
from migan_jax.errors import UserError
from migan_jax.files import read_json, write_json

logger = logging.getLogger(__name__)

# The fraction of bad images is taken of at least this many, or of a whole small source.
MIN_IMAGES = 1000


class Rejects:
    """The unusable images of a source, and the report on them."""

    def __init__(self, source: Source, limit: float, report: Path | None):
        """Read an earlier report on the same source, if there is one.

        Args:
          limit: maximum fraction of bad images.
          report: a JSON file.
        """
        if not 0 <= limit <= 1:
            raise UserError(
                f"The maximum fraction of bad images must be from 0 to 1, not {limit}."
            )
        self._source, self._limit, self._report = source, limit, report
        self.reasons: dict[str, str] = {}
        if report is not None and os.path.isfile(report):
            self._read(report)

    def _read(self, report: Path) -> None:
        types = {"source": Fingerprint.__annotations__, "rejected": dict[str, str]}
        content = read_json(report, "remove it", **types)
        earlier = Fingerprint.from_json(content["source"])
        if change := self._source.fingerprint.change_since(earlier):
            logger.warning("%s Starting a new %s.", change, report)
        else:
            self.reasons = content["rejected"]

    def add(self, name: str, reason: str, seen: int) -> None:
        """Add an image; raise UserError if too many of the `seen` ones are bad."""
        if name not in self.reasons:
            self.reasons[name] = reason
            logger.warning("left out: %s", reason)
        self.check(seen)

    def check(self, seen: int) -> None:
        """Raise UserError if too many of the `seen` images are bad."""
        count = min(max(seen, MIN_IMAGES), len(self._source))
        if len(self.reasons) > self._limit * count:
            self.write()
            source = self._source.fingerprint.source
            last = next(reversed(self.reasons.values()))
            listed = f" {self._report} lists all of them." if self._report else ""
            raise UserError(
                f"{len(self.reasons):,} of {count:,} images of {source} cannot be "
                f"used, but the limit is {self._limit:.1%}. The last: {last}{listed}"
            )

    def merge(self, others: Iterable[dict[str, str]]) -> None:
        """Add what other processes have found, and write the report if it is new."""
        before = len(self.reasons)
        for reasons in others:
            self.reasons |= reasons
        if len(self.reasons) > before:
            self.write()

    def write(self) -> None:
        """Write the report."""
        if self._report is None:
            return
        content = {
            "source": dataclasses.asdict(self._source.fingerprint),
            "rejected_count": len(self.reasons),
            "rejected": self.reasons,
            "no_images": self._source.non_images,
        }
        write_json(self._report, content)
