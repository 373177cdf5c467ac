"""How figures were measured: what must be the same for them to be compared."""

import hashlib
import json
from typing import Any

from migan_jax.metrics.evaluator import PACKAGES, Eyes, versions
from migan_jax.metrics.test_set import TestSet


def protocol_of(test_set: TestSet, eyes: Eyes, holes: str) -> dict[str, Any]:
    """With its own hash, in which versions have no part.

    Args:
      holes: the digest of all of them.
    """
    protocol = {
        **test_set.description,
        "holes": holes,
        "network_weights": dict(eyes.sources),
        "inception": "299 pixels, bilinear between neighbours, 2015-12-05",
    }
    content = json.dumps(protocol, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()
    return {**protocol, "hash": digest, "versions": versions(PACKAGES)}
