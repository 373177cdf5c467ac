"""Folders of images for tests of the data."""

import zipfile

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from migan_jax.data.examples import CropSettings
from migan_jax.data.pipeline import Loader
from migan_jax.data.sources import FileSource, open_source
from migan_jax.errors import UserError

SETTINGS = {"masks": None, "mask_hole": "white", "resolution": 16, "seed": 0}


def save(folder, name, array, **options):
    """Write an array as an image file; return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def photo_folder(folder, count=12, height=40, width=56):
    """Write PNG files of different sizes, some in a subfolder."""
    for index in range(count):
        name = f"{'sub/' * (index % 3 == 0)}{index:02d}.png"
        save(folder, name, picture(height + index, width, seed=index))
    return folder


def mask_folder(folder, photos):
    """Write a mask for each photo: a white box, a quarter of the image."""
    for path in photos.rglob("*.png"):
        with Image.open(path) as image:
            mask = np.zeros((image.height, image.width), np.uint8)
        mask[image.height // 4 : 3 * image.height // 4, : image.width // 2] = 255
        save(folder, str(path.relative_to(photos).with_suffix(".bmp")), mask)
    return folder


def rows_of_process(batch_size, process, processes):
    rows = batch_size // processes
    return range(process * rows, (process + 1) * rows)


def small_loader(folder, rows=range(4), masks=None, seed=0):
    """Make a loader of batches of four random crops of 16 pixels."""
    crop = CropSettings(16, min_scale=0.5, smallest_side=16)
    return Loader(FileSource(folder, masks), crop, seed, batch_size=4, rows=rows)


def make_zip(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def open_small(path, **changed):
    """Open a source with a resolution of 16."""
    return open_source(str(path), **(SETTINGS | changed))


def open_error(path, **changed):
    """Open an invalid source; return the error message."""
    with pytest.raises(UserError) as caught:
        open_small(path, **changed)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message
