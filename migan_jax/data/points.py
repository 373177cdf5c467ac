"""Keypoints of images, such as an eye or an ear: K points (x, y) for each image.

  a .json file   {"NAME": [[x, y], ...], ...}   NAME as in the source, or without suffix
  a .npy file    [images, K, 2]                 in the order of the images
  a folder       NAME.json or NAME.npy per image, which may be in the same folder

They are in pixels of the upright image, from its top left corner; of images that
`prepare` has shrunk, in theirs. The order of images is that of their names, but that of
their numbers if all names are numbers, as in FDF.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from migan_jax.data.containers import Folder
from migan_jax.errors import UserError
from migan_jax.files import reason

SUFFIXES = ".json", ".npy"


def read_points(location: Path, names: Sequence[str]) -> np.ndarray:
    """Read the points of images of these names: float32 [N, K, 2]."""
    is_folder, suffix = os.path.isdir(location), location.suffix.lower()
    if is_folder:
        files = Folder(location).non_images
        entries = {_stem(n): location / n for n in files if n.endswith(SUFFIXES)}
    elif suffix == ".json":
        entries = _read(location)
        if not isinstance(entries, dict):
            raise UserError(f'{location} must hold {{"NAME": [[x, y], ...], ...}}.')
    elif suffix == ".npy":
        entries = _rows_by_name(location, names)
    else:
        raise UserError(
            f"{location} is not a .json file, a .npy file or a folder of keypoints. "
            f"Check the path."
        )
    keys = [name if name in entries else _stem(name) for name in names]
    pairs = zip(names, keys, strict=True)
    if missing := [name for name, key in pairs if key not in entries]:
        raise UserError(
            f"{location} has no keypoints for {len(missing):,} of {len(names):,} "
            f"images, such as {missing[0]}. Add them, or leave these images out."
        )
    points = []
    for name, key in zip(names, keys, strict=True):
        entry = _read(entries[key]) if is_folder else entries[key]
        points.append(_to_array(entry, name, location))
        if len(points[-1]) != len(points[0]):
            raise UserError(
                f"{location} has {len(points[0])} keypoints for {names[0]}, but "
                f"{len(points[-1])} for {name}. Give all images the same ones."
            )
    array = np.stack(points)
    if np.median(np.abs(array)) <= 1:
        raise UserError(
            f"{location} has keypoints as fractions, but they must be pixels. Multiply "
            f"x by the image's width and y by its height."
        )
    return array


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _read(path: Path) -> Any:
    """Read a .json or .npy file; nothing in it is executed."""
    try:
        if path.suffix.lower() == ".json":
            return json.loads(path.read_bytes())
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from error
    # Of damaged files, and of sizes that they only claim to have.
    except (ValueError, EOFError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{path} is damaged ({reason(error)}). Make it again."
        ) from error


def _rows_by_name(location: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    array = _read(location)
    if np.ndim(array) != 3 or len(array) != len(names):
        raise UserError(
            f"{location} is {list(np.shape(array))}, but must be [{len(names)}, K, 2] "
            f"for {len(names):,} images."
        )
    if all(_stem(name).isdecimal() for name in names):
        names = sorted(names, key=lambda name: int(_stem(name)))
    return dict(zip(names, array, strict=True))


def _to_array(points: Any, name: str, location: Path) -> np.ndarray:
    try:
        array = np.asarray(points)
    except (ValueError, OverflowError):  # uneven rows, huge numbers
        array = np.empty(0)
    is_valid = array.ndim == 2 and array.shape[1] == 2 and array.dtype.kind in "iuf"
    with np.errstate(over="ignore"):
        array = array.astype(np.float32) if is_valid and array.size else np.empty(0)
    if not array.size or not np.isfinite(array).all():
        raise UserError(
            f"{location}: the keypoints of {name} must be finite numbers [[x, y], ...]."
        )
    return array
