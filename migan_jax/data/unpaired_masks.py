"""Sets of irregular masks that belong to no image: every image gets a random one.

A set is a folder or zip. Its masks are binned by hole ratio, in steps of 10 %; those
with more than 60 % are not used. A bin is drawn uniformly, then one of its masks, which
is rotated, flipped and dilated as long as it stays in the bin.
"""

import dataclasses
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from migan_jax.config import available_cores, progress
from migan_jax.data.containers import open_files
from migan_jax.data.examples import resize_hole
from migan_jax.data.image_files import decode_mask, open_image
from migan_jax.data.mask_samplers import HOLE_BINS, MAX_DILATION
from migan_jax.data.mask_sets import combine_hashes
from migan_jax.data.masks import MaskHole, check_mask_hole
from migan_jax.data.sources import DerivedSource, Source
from migan_jax.errors import UserError
from migan_jax.files import refuse_address
from migan_jax.geometry.fill import dilate

logger = logging.getLogger(__name__)

NEAREST = Image.Resampling.NEAREST
# Of a mask, with less and less dilation, to try before it is used as it is.
VARIATIONS = 10


class UnpairedMasks:
    """A distribution of holes, as `mask_samplers.HostSampler`; workers get a copy."""

    def __init__(self, location: Path, mask_hole: MaskHole, resolution: int):
        """List a folder or zip, and measure all hole ratios at the network's size.

        They may be higher than a file's own: pixels that a hole touches become hole.
        """
        check_mask_hole(mask_hole)
        refuse_address(location)
        self.location, self._mask_hole = location, mask_hole
        self._files = open_files(location)
        self.digest = combine_hashes([self._files.digest(), mask_hole])
        names, ratios = np.array(self._files.names), self._measure(resolution)
        bins = [(low / 100, high / 100) for low, high in HOLE_BINS]
        ratios[ratios == 0] = np.nan  # not in the first bin
        self._bins = [
            (low, high, names[inside])
            for low, high in bins
            if (inside := (ratios >= low) & (ratios < high)).any()
        ]
        self._check_unused(len(names) - sum(len(inside) for *_, inside in self._bins))

    def _measure(self, resolution: int) -> np.ndarray:
        """Return the hole ratio of each mask."""
        names, errors, ratios = self._files.names, [], []

        def measure(name: str) -> float | UserError:
            try:
                return _fit(self._read(name), resolution).mean()
            except UserError as error:
                return error

        workers = available_cores()
        with (
            progress(len(names), "mask") as advance,
            ThreadPoolExecutor(workers) as pool,
        ):
            for measured in pool.map(measure, names):
                failed = isinstance(measured, UserError)
                (errors if failed else ratios).append(measured)
                advance(1)
        if errors:
            raise UserError(
                f"{len(errors):,} of {len(names):,} masks in {self.location} cannot be "
                f"used: remove or repair them. The first: {errors[0]}"
            )
        return np.array(ratios)

    def _check_unused(self, unused: int) -> None:
        total, limit = len(self._files.names), HOLE_BINS[-1][1]
        other = "black" if self._mask_hole == "white" else "white"
        hint = f"If they are inverted, set mask_hole={other} (data.mask_hole)."
        if unused == total:
            raise UserError(
                f"None of the {total:,} masks in {self.location} has a hole of up to "
                f"{limit} % of the image. {hint}"
            )
        if unused:
            logger.warning(
                "%s of %s masks in %s are not used: they have no hole, or one of more "
                "than %d %% of the image.%s",
                *(f"{unused:,}", f"{total:,}", self.location, limit),
                f" {hint}" if unused > total / 2 else "",
            )

    def _read(self, name: str) -> np.ndarray:
        label = self.location / name
        with open_image(BytesIO(self._files.read(name)), label) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return decode_mask(image, self._mask_hole, label).hole

    def hole_on_host(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw a hole, bool [size, size]."""
        low, high, names = self._bins[rng.integers(len(self._bins))]
        hole = self._read(str(rng.choice(names)))
        for dilation in np.linspace(MAX_DILATION * size / 256, 0, VARIATIONS):
            varied = _vary(hole, rng, size, round(dilation))
            if varied.any() and low <= varied.mean() < high:
                return varied
        fitted = _fit(hole, size)
        if fitted.all():  # a stage at a lower resolution
            return np.asarray(Image.fromarray(hole).resize((size, size), NEAREST))
        return fitted


def _fit(hole: np.ndarray, size: int) -> np.ndarray:
    """Squeeze a hole into a square."""
    return resize_hole(hole, (0, 0, *hole.shape[::-1]), (size, size))


def _vary(
    hole: np.ndarray, rng: np.random.Generator, size: int, max_dilation: int
) -> np.ndarray:
    """Squeeze a hole into a square; flip, rotate and dilate it randomly.

    It is enlarged until the rotated square has no corners without mask.
    """
    height, width = hole.shape
    side = max(height, width, size)
    turn = rng.uniform(0, 2 * math.pi)
    sine, cosine = math.sin(turn), math.cos(turn)
    flip = rng.choice((1, -1))
    # From the square's pixels to the hole's, around both centres.
    matrix = np.array([[flip * cosine, -sine], [flip * sine, cosine]])
    matrix *= np.array([[width], [height]]) / (side * (abs(sine) + abs(cosine)))
    start = np.array([width, height]) / 2 - matrix.sum(axis=1) * side / 2
    turned = Image.fromarray(hole).transform(
        (side, side),
        Image.Transform.AFFINE,
        np.column_stack([matrix, start]).ravel().tolist(),
        NEAREST,
    )
    return dilate(_fit(np.asarray(turned), size), rng.integers(max_dilation + 1))


class UnpairedMaskSource(DerivedSource):
    """A source's images, for which masks are drawn from a set."""

    def __init__(self, source: Source, masks: UnpairedMasks):
        super().__init__(source)
        fingerprint = source.fingerprint
        if source.has_masks:
            raise UserError(
                f"{fingerprint.source} has a mask for each image, so none are drawn: "
                f"leave {masks.location} out, or prepare the images without masks."
            )
        inside = Path(os.path.realpath(masks.location))
        if inside.is_relative_to(os.path.realpath(fingerprint.source)):
            raise UserError(
                f"{masks.location} is inside {fingerprint.source}, so that masks would "
                f"be taken for images. Move them into another folder."
            )
        self.unpaired_masks = masks
        digest = combine_hashes([fingerprint.digest, masks.digest])
        self.fingerprint = dataclasses.replace(fingerprint, digest=digest)
