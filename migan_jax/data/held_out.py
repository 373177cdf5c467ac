"""Pictures that are never trained on, with masks that never change.

They are what a run is watched by: of a source of their own, or a few of the training
source's, chosen by the seed.
"""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from migan_jax.data.examples import Crop, Encoded, decode_crop
from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host
from migan_jax.data.sources import Source
from migan_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

# Of a small source no more than this share is held out, but one picture at least.
LARGEST_SHARE = 0.1


class Part(Source):
    """Some pictures of a source, which keeps its fingerprint."""

    def __init__(self, whole: Source, numbers: np.ndarray):
        self._whole, self._numbers = whole, numbers
        self.fingerprint = whole.fingerprint
        self.mask_hole, self.others = whole.mask_hole, whole.others
        self.has_masks = whole.has_masks

    def __len__(self) -> int:
        return len(self._numbers)

    def name(self, index: int) -> str:
        return self._whole.name(int(self._numbers[index]))

    def encoded(self, index: int) -> Encoded:
        return self._whole.encoded(int(self._numbers[index]))


def hold_out(source: Source, count: int, seed: int) -> tuple[Source, Source]:
    """A source without `count` of its pictures, and these."""
    count = min(count, max(int(LARGEST_SHARE * len(source)), 1), len(source) - 1)
    rng = np.random.default_rng((seed, 3))
    chosen = np.sort(rng.choice(len(source), count, replace=False))
    rest = np.delete(np.arange(len(source), dtype=np.uint32), chosen)
    return Part(source, rest), Part(source, chosen)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Pictures uint8 [N, R, R, 3] and masks uint8 [N, R, R, 1], 1 where known."""

    images: np.ndarray
    masks: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def load_held_out(source: Source, config: "ConfigDict") -> HeldOut | None:
    """The middles of the pictures, with their own masks or drawn ones; None if none."""
    if not len(source):
        return None
    size = config.resolution
    crop = Crop(size, config.data.crop, 1.0, smallest_side=1)
    sampler = SAMPLERS[config.data.mask_kind]
    images, masks = [], []
    for index in range(len(source)):
        rng = np.random.default_rng((config.seed, index, 4))
        try:
            example = decode_crop(
                source.encoded(index), source.name(index), source.mask_hole, crop, None
            )
        except UserError as error:
            logger.warning("not among the samples: %s", error)
            continue
        images.append(example.image)
        if example.hole is None:
            masks.append(mask_on_host(sampler, rng, size))
        else:
            masks.append(1 - example.hole.astype(np.uint8))
    if not images:
        where = Path(source.fingerprint.source).name
        raise UserError(
            f"None of the {len(source)} pictures held out of {where} can be used, as "
            f"said above: remove them, or train without samples (data.held_out=0)."
        )
    return HeldOut(np.stack(images), np.stack(masks)[..., None])
