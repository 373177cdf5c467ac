"""Folders of pictures that tests of the data share."""

import zipfile

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from migan_jax.data.examples import Crop
from migan_jax.data.pipeline import Loader
from migan_jax.data.sources import FileSource, open_source
from migan_jax.errors import UserError

SETTINGS = {"masks": None, "mask_hole": "white", "resolution": 16, "seed": 0}


def save(folder, name, array, **options):
    """Write an array as an image file; returns its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def photo_folder(folder, count=12, height=40, width=56):
    """PNG pictures, no two of the same size, some in a subfolder."""
    for index in range(count):
        name = f"{'sub/' * (index % 3 == 0)}{index:02d}.png"
        save(folder, name, picture(height + index, width, seed=index))
    return folder


def mask_folder(folder, photos):
    """For every picture of `photos` a mask: a white box, a quarter of it."""
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
    """Batches of four random crops of 16 pixels."""
    crop = Crop(16, smallest_share=0.5, smallest_side=16)
    return Loader(FileSource(folder, masks), crop, seed, batch_size=4, rows=rows)


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def opened(path, **changed):
    return open_source(str(path), **(SETTINGS | changed))


def refused(path, **changed):
    with pytest.raises(UserError) as caught:
        opened(path, **changed)
    sentence = str(caught.value)
    assert "\n" not in sentence and str(path) in sentence
    return sentence
