"""Reading and writing photos and masks as files, with everything that is not pixels.

A photo keeps its own pixels (grey, CMYK, 16 bits, alpha) beside the RGB that networks
see, and takes over from a completion only what that changes. Metadata, colour profile
and the way it was compressed are carried to the written file.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import re
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin

from migan_jax.data.decoding import (
    WITH_ALPHA,
    Mask,
    mask_of,
    open_image,
    pixels_of,
    to_rgb,
    unreadable,
)
from migan_jax.data.masks import MaskHole
from migan_jax.errors import UserError
from migan_jax.files import readable_size, reason, write_whole
from migan_jax.metadata import Metadata, metadata_of, writer_options

logger = logging.getLogger(__name__)

WRITABLE = {
    ".bmp": "BMP",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
# How a file is compressed that was not read from one of the same format.
COMPRESSION = {
    "BMP": {},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True, "exact": True},  # exact: colours under alpha 0 too
}
LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate")
# Our pixels, and the modes that a format cannot hold as they are.
CANNOT_HOLD = {
    "BMP": ("CMYK", "I;16", "LA", "RGBA"),
    "JPEG": ("I;16", "LA", "RGBA"),
    "PNG": ("CMYK",),
    "TIFF": (),
    "WEBP": ("CMYK", "I;16"),
}
MODE_NAMES = {"CMYK": "CMYK", "I;16": "16 bits", "LA": "transparency"}
MODE_NAMES["RGBA"] = MODE_NAMES["LA"]
# What completing a photo takes of the memory, and reading a mask, for each pixel.
# Measured as the peak of `inpaint` above that of a tiny photo, with 12 and 100 million
# pixels and holes of any size: JPEG and PNG take 15 to 20, grey ones 10 to 14, TIFF and
# CMYK up to 25, WebP 30 and lossless 52; --raw takes 7 more. A mask takes 3 to 13.
PHOTO_BYTES, MASK_BYTES = 18, 12
LARGER = {"CMYK": 25, "TIFF": 25, "WEBP": 52}
# How files end that are there to their end. WebP's length is in its beginning.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "WEBP": b""}


@dataclasses.dataclass(frozen=True)
class Photo:
    """An upright photo: `pixels` in its own mode, as Pillow names it."""

    pixels: np.ndarray  # uint8 or uint16 [H, W] or [H, W, C]
    mode: str  # L, LA, RGB, RGBA, CMYK or I;16
    metadata: Metadata
    format: str
    compression: dict[str, Any]  # arguments that make a file of the same format alike

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        height, width = self.pixels.shape[:2]
        return width, height

    @functools.cached_property
    def rgb(self) -> np.ndarray:
        """What a network sees, uint8 [H, W, 3]."""
        return to_rgb(self.pixels, self.mode)

    def to_pillow(self) -> Image.Image:
        pixels = np.ascontiguousarray(self.pixels)
        return Image.frombuffer(self.mode, self.size, pixels)

    def with_rgb(self, rgb: np.ndarray) -> "Photo":
        """This photo where `rgb` equals its own, and `rgb` in its mode elsewhere."""
        pixels = self.pixels.copy()
        if self.mode in ("RGB", "RGBA"):
            pixels[..., :3] = rgb
            return dataclasses.replace(self, pixels=pixels)
        # Row by row: the places of all changed pixels would be larger than the photo.
        for row, before, after in zip(pixels, self.rgb, rgb, strict=True):
            changed = (after != before).any(axis=-1)
            colours = after[changed]
            if self.mode == "I;16":
                row[changed] = _rgb_to_grey(colours).astype(np.uint16) * 257
            elif self.mode == "L":
                row[changed] = _rgb_to_grey(colours)
            elif self.mode == "LA":
                row[changed, 0] = _rgb_to_grey(colours)
            else:  # CMYK, here without black, which Pillow reads as these colours
                row[changed] = np.insert(255 - colours, 3, 0, axis=-1)
        return dataclasses.replace(self, pixels=pixels)

    def opaque(self) -> "Photo":
        """Without its alpha channel."""
        if self.mode not in WITH_ALPHA.values():
            return self
        pixels = self.pixels[..., 0] if self.mode == "LA" else self.pixels[..., :3]
        return dataclasses.replace(self, pixels=pixels, mode=self.mode[:-1])


def _rgb_to_grey(rgb: np.ndarray) -> np.ndarray:
    """Luma as JPEG and Pillow have it; grey stays what it is."""
    luma = rgb.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return (luma + (1 << 15)) >> 16


# Reading.


def read_photo(path: Path) -> Photo:
    """The photo in a file, upright."""
    with _image_in(path, PHOTO_BYTES) as (image, file):
        compression = _compression_of(image, file)
        colours_of_16_bits = ";16" in str(image.tile) and image.mode[0] != "I"
        image.load()
        metadata = _turn_upright(image, path)
        pixels, mode = pixels_of(image, path)
    if colours_of_16_bits:
        logger.warning("%s: 16-bit colour is read as 8-bit.", path)
    return Photo(pixels, mode, metadata, _format_of(image), compression)


def read_mask(path: Path, mask_hole: MaskHole) -> Mask:
    """The mask in a file, upright."""
    with _image_in(path, MASK_BYTES) as (image, _):
        image.load()
        _turn_upright(image, path)
        return mask_of(image, mask_hole, path)


def is_whole(path: Path) -> bool:
    """Whether a photo is there to its end, of which most need not be decoded."""
    # After a power cut a file may be empty, cut off, or zeros from some place on. Cut
    # off, none passes that lacks a pixel. Zeros are noticed where they are all there
    # is, and in JPEG, PNG and compressed TIFF wherever they begin; in WebP, BMP and
    # other TIFFs they are pixels too, and so they are in the middle of any file.
    try:
        with _image_in(path) as (image, file):
            kind = _format_of(image)
            if kind not in ENDS or not _ends_with(file, ENDS[kind]):
                # PNG has checksums, and its last pixels are decoded in any case.
                image.verify() if kind == "PNG" else image.load()
    except UserError:
        return False
    return True


def _ends_with(file: BinaryIO, end: bytes) -> bool:
    file.seek(-len(end), os.SEEK_END)
    return file.read() == end


@contextlib.contextmanager
def _image_in(
    path: Path, bytes_per_pixel: int = 0
) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """An image and the file that it is read from.

    Args:
      bytes_per_pixel: of memory, which must be there.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe may never end
        raise UserError(f"{path} is not a file.")
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow can do without is no concern
        with open_image(file, path) as image:
            if bytes_per_pixel:
                kind = "CMYK" if image.mode == "CMYK" else image.format
                bytes_per_pixel = max(bytes_per_pixel, LARGER.get(kind, 0))
            with memory_for(path, image.size, bytes_per_pixel) as needed:
                if needed > free_memory():
                    raise MemoryError
                yield image, file


@contextlib.contextmanager
def memory_for(
    path: Path, size: tuple[int, int], bytes_per_pixel: int = PHOTO_BYTES
) -> Iterator[int]:
    """The bytes that a photo takes; a sentence if they turn out not to be there."""
    width, height = size
    needed = width * height * bytes_per_pixel
    try:
        yield needed
    except MemoryError as error:
        raise UserError(
            f"{path} has {width}x{height} pixels and needs about "
            f"{readable_size(needed)} of memory, more than is free: make it smaller, "
            f"or use a machine with more memory."
        ) from error
    except RuntimeError as error:  # JAX's
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"{path} cannot be completed, the network finds too little memory "
            f"({reason(error)}): end other programs, or use a machine with more memory."
        ) from error


def free_memory() -> float:
    """Bytes that this process can still get, where the system tells; else infinity."""
    meminfo = Path("/proc/meminfo")
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return math.inf
    if not meminfo.exists():  # macOS
        return math.inf
    known = dict(re.findall(r"(\w+): +(\d+) kB", meminfo.read_text()))
    free = 1024 * float(known.get("MemAvailable", math.inf))
    free += 1024 * float(known.get("SwapFree", 0))
    free = min(free, _free_in_container())
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return free
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return min(free, limit - pages * resource.getpagesize())


def _free_in_container() -> float:
    """What its control group leaves this process; infinity where there is no limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # or "max"
        used = int((group / "memory.current").read_text())
        stat = dict(re.findall(r"(\w+) (\d+)", (group / "memory.stat").read_text()))
    except (OSError, ValueError):
        return math.inf
    return limit - used + int(stat["inactive_file"])  # which is given back


def _turn_upright(image: Image.Image, path: Path) -> Metadata:
    """Apply the orientation, and read the metadata that are true afterwards."""
    exif = image.info.get("exif", b"")
    try:
        ImageOps.exif_transpose(image, in_place=True)
        return metadata_of(image, exif)
    except MemoryError:
        raise
    except Exception as error:  # as with pixels, damage may surface as anything
        logger.warning("%s: damaged metadata are left out (%s).", path, reason(error))
        return Metadata(icc_profile=image.info.get("icc_profile"))


def _format_of(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else image.format


def _compression_of(image: Image.Image, file: BinaryIO) -> dict[str, Any]:
    """What Pillow has to be told to compress alike."""
    kind = _format_of(image)
    if kind == "JPEG":
        tables = {
            "qtables": [table for _, table in sorted(image.quantization.items())],
            "progressive": bool(image.info.get("progressive")),
            "keep_rgb": image.mode == "RGB" and image.info.get("adobe_transform") == 0,
        }
        sampling = JpegImagePlugin.get_sampling(image)
        return tables if sampling < 0 else tables | {"subsampling": sampling}
    if kind == "TIFF" and image.info.get("compression") in LOSSLESS_TIFF:
        return {"compression": image.info["compression"]}
    if kind == "WEBP" and not _is_lossless_webp(file):
        return {"quality": 95}  # the file does not say
    return COMPRESSION.get(kind, {})


def _is_lossless_webp(file: BinaryIO) -> bool:
    """Which of the two kinds of picture chunk the file has."""
    position = file.tell()
    file.seek(12)  # RIFF, length, WEBP
    while len(header := file.read(8)) == 8 and header[:4] not in (b"VP8 ", b"VP8L"):
        length = int.from_bytes(header[4:], "little")
        file.seek(length + length % 2, 1)
    file.seek(position)
    return header[:4] == b"VP8L"


# Writing.


def check_ending(path: Path) -> str:
    """The format that a file name stands for."""
    try:
        return WRITABLE[path.suffix.lower()]
    except KeyError:
        raise UserError(
            f"{path} has an ending that cannot be written: use one of "
            f"{' '.join(WRITABLE)}."
        ) from None


def check_writable(photo: Photo, path: Path) -> None:
    """Say that a format cannot hold a photo's pixels, before they are worked on."""
    kind = check_ending(path)
    if photo.mode in CANNOT_HOLD[kind]:
        endings = ".tif" if photo.mode == "CMYK" else ".png or .tif"
        raise UserError(
            f"{path}: {kind} does not hold {MODE_NAMES[photo.mode]}, which the photo "
            f"has: use a name that ends in {endings}."
        )


def write_photo(photo: Photo, path: Path) -> None:
    """Write a photo with its metadata; the file appears whole or not at all."""
    check_writable(photo, path)
    kind = check_ending(path)
    options = photo.compression if kind == photo.format else COMPRESSION[kind]
    options = options | writer_options(photo.metadata, kind)
    buffer = BytesIO()
    try:
        photo.to_pillow().save(buffer, format=kind, **options)
    except MemoryError:
        raise
    except Exception as error:  # encoders fail in any way on damaged metadata
        raise UserError(
            f"{path} cannot be written, its pixels or metadata do not fit {kind} "
            f"({reason(error)}): try another ending."
        ) from error
    write_whole(path, lambda part: part.write_bytes(buffer.getbuffer()))
