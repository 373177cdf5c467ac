"""What an evaluation is about: pictures, each with one hole that never changes."""

from typing import Any, NamedTuple

import numpy as np

from migan_jax.data.examples import Crop, CropKind, decode_crop
from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host
from migan_jax.data.mask_sets import MaskSet
from migan_jax.data.masks import MaskHole
from migan_jax.data.sources import Source
from migan_jax.errors import UserError

KIND, SEED = "free_form", 0  # of masks, where nothing is said of them
RESIZING = "bicubic; a hole takes every pixel that it touches"


class Pair(NamedTuple):
    """A picture uint8 [R, R, 3] and its hole bool [R, R]."""

    name: str
    truth: np.ndarray
    hole: np.ndarray


class TestSet:
    """Squares of a source's first pictures, each with a hole.

    The central ones, moved where that is needed to have some of an own hole inside.

    Holes are the pictures' own, or those of a set that `prepare --masks` has drawn, by
    number; or else those of a kind that such a set of seed 0 would have.
    """

    __test__ = False  # pytest looks for classes of such names

    def __init__(
        self,
        source: Source,
        *,
        resolution: int,
        crop: CropKind = "square",
        masks: MaskSet | None = None,
        kind: str = KIND,
        count: int | None = None,
    ):
        self._source, self._kind = source, kind
        self._crop = Crop(resolution, crop)
        self._masks = masks
        self._count = len(source) if count is None else min(count, len(source))
        if masks is None:
            return
        drawn_at = masks.settings["resolution"]
        if drawn_at != resolution:
            raise UserError(
                f"{masks.folder} has masks of {drawn_at} pixels, not {resolution}: "
                f"draw others with prepare --masks --resolution={resolution}."
            )
        if len(masks) < self._count:
            raise UserError(
                f"{masks.folder} has {len(masks)} masks for {self._count} pictures: "
                f"draw more, or evaluate fewer with --samples."
            )

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
        if self._masks is not None:
            return Pair(name, example.image, self._masks[number] == 0)
        rng = np.random.default_rng((SEED, number))
        known = mask_on_host(SAMPLERS[self._kind], rng, self._crop.resolution)
        return Pair(name, example.image, known == 0)

    @property
    def description(self) -> dict[str, Any]:
        """What decides which pictures and holes these are."""
        fingerprint = self._source.fingerprint
        own: MaskHole | None = None
        drawn: dict[str, Any] | None = {"kind": self._kind, "seed": SEED}
        if self._source.has_masks:
            own, drawn = self._source.mask_hole, None
        elif self._masks is not None:
            drawn = {name: self._masks.settings[name] for name in ("kind", "seed")}
        return {
            "pictures": {"count": len(self), "digest": fingerprint.digest},
            "resolution": self._crop.resolution,
            "crop": self._crop.kind,
            "resizing": RESIZING,
            "own_masks": own,
            "drawn_masks": drawn,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """The same, and which set the masks are from, before they are read."""
        given = None if self._masks is None else self._masks.digest
        return {**self.description, "mask_set": given}

    def batch(self, numbers: range) -> list[Pair]:
        return [self[number] for number in numbers]
