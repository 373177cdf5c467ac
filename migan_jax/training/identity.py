"""A run's identity: the settings, data and frozen networks that must not change."""

import importlib.metadata
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from migan_jax.config import base_config, flat
from migan_jax.data.sources import Fingerprint
from migan_jax.errors import UserError
from migan_jax.families import Family
from migan_jax.settings import current_key
from migan_jax.systems.base import Frozen

if TYPE_CHECKING:
    from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

# Settings that may change on resume: they do not affect the result. Of sources and
# frozen networks the content is compared, not the path.
FREE = (
    "total_kimg",
    "patience_kimg",
    "networks.dtype",
    "networks.remat",
    "microbatches",
    "mesh.space",
    "data.source",
    "data.masks",
    "data.points",
    "data.validation",
    "data.validation_points",
    "data.max_rejected_fraction",
    "data.workers",
    "log_every_steps",
    "save_every_steps",
    "keep_last",
    "keep_best",
    "best_by",
    "nonfinite_steps",
    "profile",
    "hang_seconds",
)
EMA = "optimizer.ema_halflife_kimg"
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def run_identity(
    config: "ConfigDict",
    family: Family,
    data: Fingerprint,
    held_out: Fingerprint,
    frozen: Mapping[str, Frozen],
) -> dict[str, Any]:
    """Return the identity that is saved with each checkpoint, as JSON."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "config": flat(config),
        "data": vars(data),
        "validation": held_out.digest if config.data.validation else None,
        "versions": versions,
        **{
            name: frozen[name].digest if name in frozen else None
            for name in family.frozen
        },
    }


def check_resume(
    now: dict[str, Any], earlier: dict[str, Any], family: Family, force: bool
) -> None:
    """Raise UserError if resuming would mix two runs; log harmless changes."""
    # Checkpoints of earlier versions may lack settings; they had the defaults.
    settings, before = now["config"], flat(base_config())
    before |= {current_key(key): value for key, value in earlier["config"].items()}
    changed = [
        key
        for key in sorted(settings.keys() | before.keys())
        if settings.get(key) != before.get(key)
    ]
    free = {*FREE, *family.frozen.values()}
    fixed = [key for key in changed if key not in free]

    def describe(key: str) -> str:
        return f"{key} was {before.get(key)!r} and is now {settings.get(key)!r}"

    for key in changed:
        if key in free:
            logger.warning("changed since the checkpoint: %s", describe(key))
    problems = [describe(key) for key in fixed]
    data = Fingerprint(**now["data"]).change_since(Fingerprint(**earlier["data"]))
    if data is not None:
        problems.append(data.rstrip("."))
    if now["validation"] != earlier["validation"]:
        problems.append(
            f"data.validation holds other images, masks or keypoints (it was "
            f"{before['data.validation']!r} and is now {settings['data.validation']!r})"
        )
    for name, key in family.frozen.items():
        if now[name] != earlier.get(name):
            change = "have changed"
            if None in (now[name], earlier.get(name)):
                change = "are no longer used" if now[name] is None else "are new"
            problems.append(f"the {name}'s weights {change} ({describe(key)})")
    for name, version in now["versions"].items():
        if version != earlier["versions"].get(name):
            was = earlier["versions"].get(name)
            logger.warning("%s was %s and is now %s", name, was, version)
    if not problems:
        return
    listed = "; ".join(problems)
    shaping = {"system", *family.architecture}
    if not all(s.get(EMA, 1) for s in (settings, before)):  # only one has an EMA
        shaping.add(EMA)
    if mismatched := [key for key in fixed if key in shaping]:
        raise UserError(
            f"The run in this workdir has other networks: {listed}. Restore its "
            f"settings ({', '.join(mismatched)}), or use another --workdir."
        )
    if not force:
        raise UserError(
            f"The run in this workdir started differently: {listed}. Restore that, "
            f"use another --workdir, or resume anyway with --force-resume."
        )
    logger.warning("resuming anyway: %s", listed)
