"""What an evaluation is about: pictures, each with one hole that never changes."""

from typing import Any, NamedTuple

import numpy as np

from migan_jax.data.examples import Crop, CropKind, decode_crop
from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host
from migan_jax.data.masks import MaskHole
from migan_jax.data.sources import Source

RESIZING = "bicubic, holes by nearest pixels"


class Pair(NamedTuple):
    """A picture uint8 [R, R, 3] and its hole bool [R, R]."""

    name: str
    truth: np.ndarray
    hole: np.ndarray


class TestSet:
    """The middles of a source's first pictures, with their own masks or drawn ones.

    Drawn mask number i is that of `prepare --masks` with the same seed.
    """

    __test__ = False  # pytest looks for classes of such names

    def __init__(
        self,
        source: Source,
        *,
        resolution: int,
        crop: CropKind = "square",
        mask_kind: str = "free_form",
        seed: int = 0,
        count: int | None = None,
    ):
        self._source = source
        self._crop = Crop(resolution, crop)
        self._mask_kind, self._seed = mask_kind, seed
        self._count = len(source) if count is None else min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Pair:
        """UserError for a picture that cannot be used: none is left out silently."""
        name = self._source.name(number)
        encoded = self._source.encoded(number)
        example = decode_crop(
            encoded, name, self._source.mask_hole, self._crop, rng=None
        )
        if example.hole is not None:
            return Pair(name, example.image, example.hole)
        rng = np.random.default_rng((self._seed, number))
        sampler = SAMPLERS[self._mask_kind]
        known = mask_on_host(sampler, rng, self._crop.resolution)
        return Pair(name, example.image, known == 0)

    @property
    def description(self) -> dict[str, Any]:
        """What decides which pictures and holes these are."""
        fingerprint = self._source.fingerprint
        own: MaskHole | None = None
        drawn: dict[str, Any] | None = None
        if self._source.has_masks:
            own = self._source.mask_hole
        else:
            drawn = {"kind": self._mask_kind, "seed": self._seed}
        return {
            "pictures": {"count": len(self), "digest": fingerprint.digest},
            "resolution": self._crop.resolution,
            "crop": self._crop.kind,
            "resizing": RESIZING,
            "own_masks": own,
            "drawn_masks": drawn,
        }

    def batch(self, numbers: range) -> list[Pair]:
        return [self[number] for number in numbers]
