"""Masks written once, so that every evaluation has the same ones.

A set is a folder of pictures, white where the hole is, drawn on the host from a seed,
and `masks.json`, which says how they were drawn and holds a hash of each: evaluations
name the set by the hash of all of them, and notice when a mask is not what it was.
"""

import hashlib
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from migan_jax.data.decoding import mask_of, open_image
from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host
from migan_jax.errors import UserError
from migan_jax.files import read_json, reason, remove, write_json, write_whole

DESCRIPTION = "masks.json"
SETTINGS = "kind", "count", "resolution", "seed"


def write_mask_set(
    folder: Path,
    *,
    kind: str,
    count: int,
    resolution: int,
    seed: int,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Draw `count` masks of one of SAMPLERS.

    Mask number i depends on kind, resolution, seed and i alone, so that a smaller set
    is the start of a larger one. The folder appears whole or not at all; `advance` is
    called with 1 for every mask.
    """

    def write(part: Path) -> None:
        part.mkdir()
        digests = []
        for number in range(count):
            rng = np.random.default_rng((seed, number))
            hole = mask_on_host(SAMPLERS[kind], rng, resolution) == 0
            Image.fromarray(hole).save(part / _file_name(number))
            digests.append(digest_of(hole))
            advance(1)
        description = {
            **dict(zip(SETTINGS, (kind, count, resolution, seed), strict=True)),
            "mask_hole": "white",
            "sha256": digest_of_all(digests),
            "sha256_of_each": digests,
        }
        write_json(part / DESCRIPTION, description)

    for leftover in folder.absolute().parent.glob(f".{folder.name[:50]}.part-*"):
        remove(leftover)  # of a run that was killed
    write_whole(folder, write)


def is_mask_set(folder: Path) -> bool:
    return os.path.isfile(folder / DESCRIPTION)


class MaskSet:
    """A set's masks by number, each checked when it is read."""

    def __init__(self, folder: Path):
        self.folder = folder
        if not is_mask_set(folder):
            raise UserError(f"{folder} is no set of masks: it has no {DESCRIPTION}.")
        description = read_json(
            folder / DESCRIPTION,
            "draw the set again, into another folder",
            kind=str,
            count=int,
            resolution=int,
            seed=int,
            sha256=str,
            sha256_of_each=list[str],
        )
        self.settings = {key: description[key] for key in SETTINGS}
        self._digests: list[str] = description["sha256_of_each"]
        self.digest: str = description["sha256"]
        whole = len(self._digests) == description["count"]
        if not whole or digest_of_all(self._digests) != self.digest:
            raise UserError(f"{folder / DESCRIPTION} was changed after it was written.")

    def __len__(self) -> int:
        return len(self._digests)

    def check(self) -> None:
        """UserError if any mask is not what was written."""
        for number in range(len(self)):
            self[number]

    def __getitem__(self, number: int) -> np.ndarray:
        """uint8 [resolution, resolution], 1 where known."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        digest = self._digests[number]
        path = self.folder / _file_name(number)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {reason(error)}.") from error
        with open_image(BytesIO(content), path) as image:
            hole = mask_of(image, "white", path).hole
        size = self.settings["resolution"]
        if hole.shape != (size, size) or digest_of(hole) != digest:
            raise UserError(
                f"{path} is not the mask that was written: draw the set again."
            )
        return np.uint8(1) - hole


def _file_name(number: int) -> str:
    return f"{number:06d}.png"


def digest_of(hole: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(hole).tobytes()).hexdigest()


def digest_of_all(digests: list[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
