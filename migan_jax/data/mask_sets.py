"""Sets of masks on disk, so that evaluations use the same masks.

A set is a folder of images, white in the hole, drawn on the host from a seed.
`masks.json` has the settings and a hash of each mask, to detect changes. The hash of
all hashes identifies the set.
"""

import hashlib
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from migan_jax.data.image_files import decode_mask, open_image
from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host
from migan_jax.errors import UserError
from migan_jax.files import read_json, reason, remove, write_json, write_whole

DESCRIPTION_FILE = "masks.json"
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
    """Draw masks and write them atomically.

    A mask depends only on the kind, resolution, seed and its index, so a smaller set is
    the start of a larger one. `advance` is called with 1 after each mask.
    """

    def write(partial: Path) -> None:
        partial.mkdir()
        digests = []
        for index in range(count):
            rng = np.random.default_rng((seed, index))
            hole = mask_on_host(SAMPLERS[kind], rng, resolution) == 0
            Image.fromarray(hole).save(partial / _file_name(index))
            digests.append(hash_hole(hole))
            advance(1)
        description = {
            **dict(zip(SETTINGS, (kind, count, resolution, seed), strict=True)),
            "mask_hole": "white",
            "sha256": combine_hashes(digests),
            "sha256_of_each": digests,
        }
        write_json(partial / DESCRIPTION_FILE, description)

    for leftover in folder.absolute().parent.glob(f".{folder.name[:50]}.part-*"):
        remove(leftover)  # from a killed run
    write_whole(folder, write)


def is_mask_set(folder: Path) -> bool:
    return os.path.isfile(folder / DESCRIPTION_FILE)


class MaskSet:
    """A set's masks by index; each is checked when it is read."""

    def __init__(self, folder: Path):
        self.folder = folder
        if not is_mask_set(folder):
            raise UserError(
                f"{folder} is not a set of masks: it has no {DESCRIPTION_FILE}."
            )
        description = read_json(
            folder / DESCRIPTION_FILE,
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
        is_complete = len(self._digests) == description["count"]
        if not is_complete or combine_hashes(self._digests) != self.digest:
            raise UserError(
                f"{folder / DESCRIPTION_FILE} was changed after it was written."
            )

    def __len__(self) -> int:
        return len(self._digests)

    def check(self) -> None:
        """Raise UserError if any mask was changed."""
        for index in range(len(self)):
            self[index]

    def __getitem__(self, index: int) -> np.ndarray:
        """Read a mask: uint8 [resolution, resolution], 1 where known."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        digest = self._digests[index]
        path = self.folder / _file_name(index)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {reason(error)}.") from error
        with open_image(BytesIO(content), path) as image:
            hole = decode_mask(image, "white", path).hole
        size = self.settings["resolution"]
        if hole.shape != (size, size) or hash_hole(hole) != digest:
            raise UserError(
                f"{path} was changed after it was written. Draw the set again."
            )
        return np.uint8(1) - hole


def _file_name(index: int) -> str:
    return f"{index:06d}.png"


def hash_hole(hole: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(hole).tobytes()).hexdigest()


def combine_hashes(digests: list[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
