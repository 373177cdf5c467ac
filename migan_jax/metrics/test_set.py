"""Test sets: images, each with a fixed hole."""

from typing import Any, NamedTuple

import numpy as np

from migan_jax.data.examples import CropKind, CropSettings, decode_crop
from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host
from migan_jax.data.mask_sets import MaskSet
from migan_jax.data.masks import MaskHole
from migan_jax.data.sources import Source
from migan_jax.errors import UserError

DEFAULT_MASK_KIND, MASK_SEED = "free_form", 0
RESIZING = "bicubic; a hole takes every pixel that it touches"


class Pair(NamedTuple):
    """An image uint8 [R, R, 3] and its hole bool [R, R]."""

    name: str
    truth: np.ndarray
    hole: np.ndarray


class TestSet:
    """Square crops of a source's first images, each with a hole.

    Crops are central, shifted where needed to include part of the source's own mask.
    Holes are the source's own masks, else those of `masks`, a set drawn by `prepare
    --masks`, else the ones that such a set of this kind and seed 0 would have, else, of
    an `UnpairedMaskSource`, drawn from its masks with that seed.
    """

    __test__ = False  # pytest collects classes of such names

    def __init__(
        self,
        source: Source,
        *,
        resolution: int,
        crop: CropKind = "square",
        masks: MaskSet | None = None,
        kind: str = DEFAULT_MASK_KIND,
        count: int | None = None,
    ):
        self._source, self._kind = source, kind
        self._crop = CropSettings(resolution, crop)
        self._masks = masks
        self._count = len(source) if count is None else min(count, len(source))
        if masks is None:
            return
        size = masks.settings["resolution"]
        if size != resolution:
            raise UserError(
                f"{masks.folder} has masks of {size} pixels, not {resolution}. Draw "
                f"others with prepare --masks --resolution={resolution}."
            )
        if len(masks) < self._count:
            raise UserError(
                f"{masks.folder} has {len(masks)} masks for {self._count} images. Draw "
                f"more, or evaluate fewer images with --samples."
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Pair:
        """Return one pair; raise UserError if the image cannot be used."""
        name = self._source.name(index)
        encoded = self._source.encoded(index)
        example = decode_crop(
            encoded, name, self._source.mask_hole, self._crop, rng=None
        )
        if example.hole is not None:
            return Pair(name, example.image, example.hole)
        if self._masks is not None:
            return Pair(name, example.image, self._masks[index] == 0)
        rng = np.random.default_rng((MASK_SEED, index))
        sampler = self._source.unpaired_masks or SAMPLERS[self._kind]
        known = mask_on_host(sampler, rng, self._crop.resolution)
        return Pair(name, example.image, known == 0)

    @property
    def description(self) -> dict[str, Any]:
        """Everything that determines the images and holes."""
        fingerprint = self._source.fingerprint
        own_masks: MaskHole | None = None
        kind = "unpaired" if self._source.unpaired_masks else self._kind
        drawn_masks: dict[str, Any] | None = {"kind": kind, "seed": MASK_SEED}
        if self._source.has_masks:
            own_masks, drawn_masks = self._source.mask_hole, None
        elif self._masks is not None:
            drawn_masks = {k: self._masks.settings[k] for k in ("kind", "seed")}
        return {
            "pictures": {"count": len(self), "digest": fingerprint.digest},
            "resolution": self._crop.resolution,
            "crop": self._crop.kind,
            "resizing": RESIZING,
            "own_masks": own_masks,
            "drawn_masks": drawn_masks,
        }

    @property
    def identity(self) -> dict[str, Any]:
        """The description and the digest of the mask set, without reading its masks."""
        mask_set = None if self._masks is None else self._masks.digest
        return {**self.description, "mask_set": mask_set}

    def batch(self, indices: range) -> list[Pair]:
        return [self[index] for index in indices]
