"""Pictures that cannot be used: named with the reason, counted, and limited."""

import dataclasses
import logging
import os
from pathlib import Path

from migan_jax.data.sources import Fingerprint, Source
from migan_jax.errors import UserError
from migan_jax.files import read_json, write_json

logger = logging.getLogger(__name__)

# The share of bad ones is judged by at least so many, or by all of a small source.
JUDGED = 1000


class Rejects:
    """What was left out of a source, in a report that survives interruptions."""

    def __init__(self, source: Source, limit: float, report: Path | None):
        """
        Args:
          source: of the pictures.
          limit: the largest share of them that may be bad.
          report: a JSON file; what it says already of this very source is kept.
        """
        if not 0 <= limit <= 1:
            raise UserError(f"The share of bad pictures is from 0 to 1, not {limit}.")
        self._source, self._limit, self._report = source, limit, report
        self.reasons: dict[str, str] = {}
        if report is not None and os.path.isfile(report):
            self._read(report)

    def _read(self, report: Path) -> None:
        kinds = {"source": Fingerprint.__annotations__, "rejected": dict[str, str]}
        content = read_json(report, "remove it", **kinds)
        earlier = Fingerprint.of_json(content["source"])
        if change := self._source.fingerprint.change_since(earlier):
            logger.warning("%s %s is begun anew.", change, report)
        else:
            self.reasons = content["rejected"]

    def add(self, name: str, reason: str, seen: int) -> None:
        """Note a picture; UserError if they are too many of the `seen` ones."""
        if name not in self.reasons:
            self.reasons[name] = reason
            logger.warning("left out: %s", reason)
        judged = min(max(seen, JUDGED), len(self._source))
        if len(self.reasons) > self._limit * judged:
            self.write()
            source = self._source.fingerprint.source
            named = f" {self._report} names all of them." if self._report else ""
            raise UserError(
                f"Of {judged:,} pictures of {source}, {len(self.reasons):,} cannot be "
                f"used, more than the {self._limit:.1%} that may be; the last: {reason}"
                f"{named}"
            )

    def write(self) -> None:
        """Bring the report up to date."""
        if self._report is None:
            return
        content = {
            "source": dataclasses.asdict(self._source.fingerprint),
            "rejected_count": len(self.reasons),
            "rejected": self.reasons,
            "no_images": self._source.others,
        }
        write_json(self._report, content)
