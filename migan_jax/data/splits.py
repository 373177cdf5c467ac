"""The training and validation splits of a run's data (`config.data`).

The validation split comes from a source of its own, or is a few images of the training
source, chosen by the seed. Its crops and masks never change.
"""

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from migan_jax.config import check_choices, check_numbers
from migan_jax.data.examples import CropSettings, Encoded, decode_crop
from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host
from migan_jax.data.masks import MaskPairing
from migan_jax.data.sources import DerivedSource, Source, open_source
from migan_jax.data.unpaired_masks import UnpairedMasks, UnpairedMaskSource
from migan_jax.errors import UserError
from migan_jax.files import refuse_address

if TYPE_CHECKING:
    from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

MAX_HELD_OUT_FRACTION = 0.1  # of a small source; but always at least one image


def open_splits(
    config: "ConfigDict", resolution: int | None = None
) -> tuple[Source, Source]:
    """Open the training and validation splits.

    Args:
      resolution: the largest at which images are loaded; default: the configuration's.
    """
    check_settings(config)
    data, resolution = config.data, resolution or config.resolution
    _check_source_exists(data.source, resolution)
    options = {"resolution": resolution, "seed": config.seed}
    is_paired = data.mask_pairing == "names"
    source = open_source(
        data.source,
        masks=data.masks if is_paired else None,
        mask_hole=data.mask_hole,
        points=data.points,
        **options,
    )
    if not is_paired:
        masks = UnpairedMasks(Path(data.masks), data.mask_hole, resolution)
        source = UnpairedMaskSource(source, masks)
    if not data.validation:
        return hold_out(source, data.held_out, config.seed)
    validation = open_source(
        data.validation,
        masks=None,
        mask_hole=data.mask_hole,
        points=data.validation_points,
        **options,
    )
    if not is_paired:
        validation = UnpairedMaskSource(validation, masks)
    if validation.points != source.points:
        raise UserError(
            f"data.validation has {validation.points} keypoints per image, but "
            f"data.source has {source.points}: give the same ones for both "
            f"(data.points, data.validation_points)."
        )
    same = validation.fingerprint.digest == source.fingerprint.digest
    if same or _overlap(data.validation, data.source):  # masks change the digest
        raise UserError(
            f"data.validation={data.validation} contains images of data.source. Name "
            f"other images, or leave it empty to hold some out."
        )
    count = min(data.held_out, len(validation))
    return source, Subset(validation, np.arange(count))


def check_settings(config: "ConfigDict") -> None:
    """Raise UserError for invalid settings of the data."""
    data = config.data
    check_numbers(config)
    if data.mask_kind not in SAMPLERS:
        raise UserError(
            f"data.mask_kind is {data.mask_kind!r}, but must be one of "
            f"{', '.join(SAMPLERS)}."
        )
    if data.draw_masks_on not in ("device", "host"):
        raise UserError(
            f"data.draw_masks_on is {data.draw_masks_on!r}, but must be 'device' or "
            f"'host'."
        )
    check_choices(config, {"data.mask_pairing": get_args(MaskPairing)})
    if data.mask_pairing == "random" and not data.masks:
        raise UserError(
            "data.mask_pairing is random, but there are no masks to draw from: name a "
            "folder or zip of them with data.masks."
        )
    CropSettings(config.resolution, data.crop, data.crop_scale)  # checks them


def _check_source_exists(source: str, resolution: int) -> None:
    """Raise UserError if nothing is there, with the command that prepares images."""
    is_path = source.partition(":")[0] not in ("scenes", "tfds")
    if not is_path or os.path.lexists(source):
        return
    refuse_address(source)
    raise UserError(
        f"data.source: {source!r} does not exist. Put images there (python -m "
        f"migan_jax.prepare PHOTOS {source} --size={resolution}), or name a folder or "
        f"zip of images (--config.data.source=PHOTOS)."
    )


def _overlap(one: str, other: str) -> bool:
    """Return whether two paths are the same, or one folder contains the other."""
    one, other = os.path.realpath(one), os.path.realpath(other)
    folders = os.path.isdir(one) and os.path.isdir(other)
    return one == other or (
        folders and os.path.commonpath([one, other]) in (one, other)
    )


def hold_out(source: Source, count: int, seed: int) -> tuple[Source, Source]:
    """Split `count` random images off a source; return the rest and these."""
    limit = max(int(MAX_HELD_OUT_FRACTION * len(source)), 1)
    count = min(count, limit, len(source) - 1)
    rng = np.random.default_rng((seed, 3))
    chosen = np.sort(rng.choice(len(source), count, replace=False))
    rest = np.delete(np.arange(len(source), dtype=np.uint32), chosen)
    return Subset(source, rest), Subset(source, chosen)


class Subset(DerivedSource):
    """Some images of a source; it keeps the source's fingerprint."""

    def __init__(self, source: Source, indices: np.ndarray):
        super().__init__(source)
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))

    def encoded(self, index: int) -> Encoded:
        return self._source.encoded(int(self._indices[index]))


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The loaded validation split."""

    images: np.ndarray  # uint8 [N, R, R, 3]
    masks: np.ndarray  # uint8 [N, R, R, 1], 1 where known
    points: np.ndarray | None = None  # float32 [N, K, 2], if the source has them

    def __len__(self) -> int:
        return len(self.images)


def load_held_out(source: Source, config: "ConfigDict") -> HeldOut | None:
    """Load central crops, with the images' own masks or drawn ones; None if empty."""
    if not len(source):
        return None
    size = config.resolution
    crop = CropSettings(size, config.data.crop, 1.0, smallest_side=1)
    sampler = source.unpaired_masks or SAMPLERS[config.data.mask_kind]
    images, masks, points = [], [], []
    for index in range(len(source)):
        rng = np.random.default_rng((config.seed, index, 4))
        try:
            example = decode_crop(
                source.encoded(index), source.name(index), source.mask_hole, crop, None
            )
        except UserError as error:
            logger.warning("skipped a held-out image: %s", error)
            continue
        images.append(example.image)
        points.append(example.points)
        if example.hole is None:
            masks.append(mask_on_host(sampler, rng, size))
        else:
            masks.append(1 - example.hole.astype(np.uint8))
    if not images:
        name = Path(source.fingerprint.source).name
        raise UserError(
            f"None of the {len(source)} images held out of {name} can be used; see the "
            f"warnings above. Remove them, or hold none out (data.held_out=0)."
        )
    keypoints = np.stack(points) if source.points else None
    return HeldOut(np.stack(images), np.stack(masks)[..., None], keypoints)
