"""From `config.data` to sources: what to train on, and what is held out."""

import os
from typing import TYPE_CHECKING

import numpy as np

from migan_jax.config import check_numbers
from migan_jax.data.examples import Crop
from migan_jax.data.held_out import Part, hold_out
from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.data.sources import Source, open_source
from migan_jax.errors import UserError
from migan_jax.files import refuse_address

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def open_parts(config: "ConfigDict") -> tuple[Source, Source]:
    """What to train on, and what is held out."""
    check_settings(config)
    data = config.data
    _check_is_there(data.source, config.resolution)
    options = {"resolution": config.resolution, "seed": config.seed}
    source = open_source(
        data.source, masks=data.masks, mask_hole=data.mask_hole, **options
    )
    if data.validation:
        validation = open_source(
            data.validation, masks=None, mask_hole=data.mask_hole, **options
        )
        same = validation.fingerprint.digest == source.fingerprint.digest
        if same or _overlap(data.validation, data.source):  # own masks change a digest
            raise UserError(
                "data.validation holds pictures of data.source: name others, or leave "
                "it empty to hold some out."
            )
        count = min(data.held_out, len(validation))
        return source, Part(validation, np.arange(count))
    return hold_out(source, data.held_out, config.seed)


def _check_is_there(source: str, resolution: int) -> None:
    """Say how pictures get to where a recipe expects them."""
    drawn_or_catalogued = source.partition(":")[0] in ("scenes", "tfds")
    if drawn_or_catalogued or os.path.lexists(source):
        return
    refuse_address(source)
    raise UserError(
        f"data.source: there is nothing at {source!r}: bring pictures there (python -m "
        f"migan_jax.prepare PHOTOS {source} --size={resolution}), or name a folder or "
        f"zip with some (--config.data.source=PHOTOS)."
    )


def _overlap(one: str, other: str) -> bool:
    """Whether two places are the same, or folders of which one holds the other."""
    one, other = os.path.realpath(one), os.path.realpath(other)
    folders = os.path.isdir(one) and os.path.isdir(other)
    return one == other or (
        folders and os.path.commonpath([one, other]) in (one, other)
    )


def check_settings(config: "ConfigDict") -> None:
    """Refuse settings that make no sense, by their names."""
    data = config.data
    check_numbers(config)
    if data.mask_kind not in SAMPLERS:
        kinds = ", ".join(SAMPLERS)
        raise UserError(f"data.mask_kind is one of {kinds}, not {data.mask_kind!r}.")
    if data.draw_masks_on not in ("device", "host"):
        raise UserError(
            f"data.draw_masks_on is 'device' or 'host', not {data.draw_masks_on!r}."
        )
    Crop(config.resolution, data.crop, data.crop_scale)  # refuses what it cannot do
