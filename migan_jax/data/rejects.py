"""Pictures that cannot be used: named with the reason, counted, and limited."""

import dataclasses
import json
import logging
from pathlib import Path

from migan_jax.data.sources import Fingerprint, Source
from migan_jax.errors import UserError
from migan_jax.files import reason as reason_of
from migan_jax.files import write_whole

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
        self._source, self._limit, self._report = source, limit, report
        self.reasons: dict[str, str] = {}
        if report is not None and report.is_file():
            self._read(report)

    def _read(self, report: Path) -> None:
        try:
            content = json.loads(report.read_text())
            earlier = Fingerprint(**content["source"])
            reasons = dict(content["rejected"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{report} is no report of rejected pictures ({reason_of(error)}): "
                f"remove it."
            ) from error
        if change := self._source.fingerprint.change_since(earlier):
            logger.warning("%s %s is begun anew.", change, report)
        else:
            self.reasons = reasons

    def add(self, name: str, reason: str, seen: int) -> None:
        """Note a picture; UserError if they are too many of the `seen` ones."""
        if name in self.reasons:
            return
        self.reasons[name] = reason
        logger.warning("left out: %s", reason)
        judged = min(max(seen, JUDGED), len(self._source))
        if len(self.reasons) > self._limit * judged:
            self.write()
            where = f", all in {self._report}" if self._report else ""
            raise UserError(
                f"{len(self.reasons):,} pictures of {self._source.fingerprint.source} "
                f"cannot be used, which is more than {self._limit:.1%} of {judged:,}: "
                f"the last is {name} ({reason}){where}."
            )

    def write(self) -> None:
        """Bring the report up to date."""
        if self._report is None:
            return
        text = json.dumps(
            {
                "source": dataclasses.asdict(self._source.fingerprint),
                "rejected_count": len(self.reasons),
                "rejected": self.reasons,
                "no_images": self._source.others,
            },
            indent=1,
        )
        write_whole(self._report, lambda part: part.write_text(text + "\n"))
