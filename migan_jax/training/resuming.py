"""Whether a run may go on with what it is given: settings, data, frozen networks."""

import importlib.metadata
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from migan_jax.config import base_config, flat
from migan_jax.data.sources import Fingerprint
from migan_jax.errors import UserError
from migan_jax.families import Family
from migan_jax.systems.base import Frozen

if TYPE_CHECKING:
    from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

# Settings that say how a run is done, not what it computes. The contents of sources are
# compared, wherever they are, and those of frozen networks, whose settings join these.
FREE = (
    "total_kimg",
    "patience_kimg",
    "networks.dtype",
    "networks.remat",
    "parts",
    "mesh.space",
    "data.source",
    "data.masks",
    "data.validation",
    "data.bad_share",
    "data.workers",
    "log_every_steps",
    "save_every_steps",
    "keep_last",
    "keep_best",
    "best_by",
    "nonfinite_steps",
)
EMA = "optimizer.ema_halflife_kimg"
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def identity(
    config: "ConfigDict",
    family: Family,
    data: Fingerprint,
    held_out: Fingerprint,
    frozen: Mapping[str, Frozen],
) -> dict[str, Any]:
    """What a checkpoint notes of its run, as JSON."""
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


def check(
    now: dict[str, Any], earlier: dict[str, Any], family: Family, force: bool
) -> None:
    """UserError if going on would mix two runs; what is harmless is said."""
    # A setting that came with a later version had its default before.
    settings, before = now["config"], flat(base_config()) | earlier["config"]
    changed = [
        key
        for key in sorted(settings.keys() | before.keys())
        if settings.get(key) != before.get(key)
    ]
    free = {*FREE, *family.frozen.values()}
    grave = [key for key in changed if key not in free]

    def told(key: str) -> str:
        return f"{key} was {before.get(key)!r} and is {settings.get(key)!r}"

    for key in changed:
        if key in free:
            logger.warning("changed since the checkpoint: %s", told(key))
    problems = [told(key) for key in grave]
    data = Fingerprint(**now["data"]).change_since(Fingerprint(**earlier["data"]))
    if data is not None:
        problems.append(data.rstrip("."))
    if now["validation"] != earlier["validation"]:
        problems.append(
            f"data.validation holds other pictures (it was "
            f"{before['data.validation']!r} and is {settings['data.validation']!r})"
        )
    for name, key in family.frozen.items():
        if now[name] != earlier.get(name):
            problems.append(f"the {name}'s weights are others ({told(key)})")
    for name, version in now["versions"].items():
        if version != earlier["versions"].get(name):
            was = earlier["versions"].get(name)
            logger.warning("%s was %s and is %s", name, was, version)
    if not problems:
        return
    listed = "; ".join(problems)
    arrays = {"system", *family.architecture}
    if not all(s.get(EMA, 1) for s in (settings, before)):  # one has no average
        arrays.add(EMA)
    if unfit := [key for key in grave if key in arrays]:
        raise UserError(
            f"The run in this workdir cannot go on with other networks: {listed}. Use "
            f"the settings it began with ({', '.join(unfit)}), or another --workdir."
        )
    if not force:
        raise UserError(
            f"The run in this workdir began otherwise: {listed}. Use what it began "
            f"with, another --workdir, or --force-resume to go on all the same."
        )
    logger.warning("going on all the same: %s", listed)
