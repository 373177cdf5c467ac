"""Read and write photo and mask files, including metadata and colour profiles.

A photo keeps its native pixels (grey, CMYK, 16 bits, alpha) beside the RGB for the
network, and changes only those that a completion changes. Metadata, colour profile and
compression settings are carried over to the written file.
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

from migan_jax.data.image_files import (
    WITH_ALPHA,
    Mask,
    decode_mask,
    decode_pixels,
    open_image,
    to_rgb,
    unreadable_error,
)
from migan_jax.data.masks import MaskHole
from migan_jax.errors import UserError
from migan_jax.files import readable_size, reason, write_whole
from migan_jax.metadata import Metadata, read_metadata, writer_options

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
# Compression when the format changes.
DEFAULT_COMPRESSION = {
    "BMP": {},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True, "exact": True},  # exact: colours under alpha 0 too
}
LOSSLESS_TIFF = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate")
# Modes of `Photo` that a format cannot store.
UNSUPPORTED_MODES = {
    "BMP": ("CMYK", "I;16", "LA", "RGBA"),
    "JPEG": ("I;16", "LA", "RGBA"),
    "PNG": ("CMYK",),
    "TIFF": (),
    "WEBP": ("CMYK", "I;16"),
}
MODE_NAMES = {"CMYK": "CMYK", "I;16": "16 bits", "LA": "transparency"}
MODE_NAMES["RGBA"] = MODE_NAMES["LA"]
# Bytes of memory per pixel to fill a photo, and to read a mask. Measured as the peak of
# `inpaint` above that of a tiny photo, at 12 and 100 million pixels with holes of any
# size: JPEG and PNG take 15 to 20, grey ones 10 to 14, TIFF and CMYK up to 25, WebP 30,
# lossless WebP 52; --raw takes 7 more. A mask takes 3 to 13.
PHOTO_BYTES, MASK_BYTES = 18, 12
LARGER_BYTES = {"CMYK": 25, "TIFF": 25, "WEBP": 52}
# Last bytes of a complete file. WebP has none; its header holds the length.
END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "WEBP": b""}


@dataclasses.dataclass(frozen=True)
class Photo:
    """An upright photo in its native mode."""

    pixels: np.ndarray  # uint8 or uint16 [H, W] or [H, W, C]
    mode: str  # Pillow's: L, LA, RGB, RGBA, CMYK or I;16
    metadata: Metadata
    format: str
    compression: dict[str, Any]  # Pillow's save arguments for the same format

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        height, width = self.pixels.shape[:2]
        return width, height

    @functools.cached_property
    def rgb(self) -> np.ndarray:
        """The network's view: uint8 [H, W, 3]."""
        return to_rgb(self.pixels, self.mode)

    def to_pillow(self) -> Image.Image:
        pixels = np.ascontiguousarray(self.pixels)
        return Image.frombuffer(self.mode, self.size, pixels)

    def with_rgb(self, rgb: np.ndarray) -> "Photo":
        """Return a copy with pixels replaced where `rgb` differs from `self.rgb`."""
        pixels = self.pixels.copy()
        if self.mode in ("RGB", "RGBA"):
            pixels[..., :3] = rgb
            return dataclasses.replace(self, pixels=pixels)
        # By row: indices of all changed pixels would take more memory than the photo.
        for row, before, after in zip(pixels, self.rgb, rgb, strict=True):
            changed = (after != before).any(axis=-1)
            colours = after[changed]
            if self.mode == "I;16":
                row[changed] = _rgb_to_grey(colours).astype(np.uint16) * 257
            elif self.mode == "L":
                row[changed] = _rgb_to_grey(colours)
            elif self.mode == "LA":
                row[changed, 0] = _rgb_to_grey(colours)
            else:  # CMYK without black, which Pillow reads as these colours
                row[changed] = np.insert(255 - colours, 3, 0, axis=-1)
        return dataclasses.replace(self, pixels=pixels)

    def without_alpha(self) -> "Photo":
        if self.mode not in WITH_ALPHA.values():
            return self
        pixels = self.pixels[..., 0] if self.mode == "LA" else self.pixels[..., :3]
        return dataclasses.replace(self, pixels=pixels, mode=self.mode[:-1])


def _rgb_to_grey(rgb: np.ndarray) -> np.ndarray:
    """Return luma as defined by JPEG and Pillow; grey does not change."""
    luma = rgb.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return (luma + (1 << 15)) >> 16


# Reading.


def read_photo(path: Path) -> Photo:
    """Read a photo and turn it upright."""
    with _open(path, PHOTO_BYTES) as (image, file):
        compression = _read_compression(image, file)
        is_16_bit_colour = ";16" in str(image.tile) and image.mode[0] != "I"
        image.load()
        metadata = _turn_upright(image, path)
        pixels, mode = decode_pixels(image, path)
    if is_16_bit_colour:
        logger.warning("%s: 16-bit colour is reduced to 8 bits.", path)
    return Photo(pixels, mode, metadata, _file_format(image), compression)


def read_mask(path: Path, mask_hole: MaskHole) -> Mask:
    """Read a mask and turn it upright."""
    with _open(path, MASK_BYTES) as (image, _):
        image.load()
        _turn_upright(image, path)
        return decode_mask(image, mask_hole, path)


def is_intact(path: Path) -> bool:
    """Return whether a photo's file is complete, decoding as little as possible."""
    # After a power cut a file may be empty, truncated, or zero from some byte on. No
    # truncated file that lacks a pixel passes, no file of zeros only, and no JPEG, PNG
    # or compressed TIFF that ends in zeros. In WebP, BMP and other TIFFs zeros may be
    # pixels; zeros in the middle of a file go unnoticed.
    try:
        with _open(path) as (image, file):
            kind = _file_format(image)
            if kind not in END_MARKERS or not _ends_with(file, END_MARKERS[kind]):
                # PNG has checksums, and its last pixels are decoded in any case.
                image.verify() if kind == "PNG" else image.load()
    except UserError:
        return False
    return True


def _ends_with(file: BinaryIO, end: bytes) -> bool:
    file.seek(-len(end), os.SEEK_END)
    return file.read() == end


@contextlib.contextmanager
def _open(
    path: Path, bytes_per_pixel: int = 0
) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open an image and its file; UserError unless enough memory is free."""
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe may never end
        raise UserError(f"{path} is not a file.")
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise unreadable_error(path, error) from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of harmless damage
        with open_image(file, path) as image:
            if bytes_per_pixel:
                kind = "CMYK" if image.mode == "CMYK" else image.format
                bytes_per_pixel = max(bytes_per_pixel, LARGER_BYTES.get(kind, 0))
            with report_memory_errors(path, image.size, bytes_per_pixel) as needed:
                if needed > free_memory():
                    raise MemoryError
                yield image, file


@contextlib.contextmanager
def report_memory_errors(
    path: Path, size: tuple[int, int], bytes_per_pixel: int = PHOTO_BYTES
) -> Iterator[int]:
    """Yield the bytes that a photo takes; turn memory errors into UserError."""
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
            f"{path} cannot be filled, the network runs out of memory "
            f"({reason(error)}): end other programs, or use a machine with more memory."
        ) from error


def free_memory() -> float:
    """Return the bytes this process can still allocate; infinity if unknown."""
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
    """Return the free bytes of this process's control group; infinity if unlimited."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # or "max"
        used = int((group / "memory.current").read_text())
        stat = dict(re.findall(r"(\w+) (\d+)", (group / "memory.stat").read_text()))
    except (OSError, ValueError):
        return math.inf
    return limit - used + int(stat["inactive_file"])  # reclaimable


def _turn_upright(image: Image.Image, path: Path) -> Metadata:
    """Apply the orientation and read the metadata, updated accordingly."""
    exif = image.info.get("exif", b"")
    try:
        ImageOps.exif_transpose(image, in_place=True)
        return read_metadata(image, exif)
    except MemoryError:
        raise
    except Exception as error:  # parsers may raise anything on damaged metadata
        logger.warning("%s: dropping damaged metadata (%s).", path, reason(error))
        return Metadata(icc_profile=image.info.get("icc_profile"))


def _file_format(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else image.format


def _read_compression(image: Image.Image, file: BinaryIO) -> dict[str, Any]:
    """Return Pillow's save arguments that reproduce the file's compression."""
    kind = _file_format(image)
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
        return {"quality": 95}  # not stored in the file
    return DEFAULT_COMPRESSION.get(kind, {})


def _is_lossless_webp(file: BinaryIO) -> bool:
    """Return whether the first image chunk is VP8L, not VP8."""
    position = file.tell()
    file.seek(12)  # RIFF, length, WEBP
    while len(header := file.read(8)) == 8 and header[:4] not in (b"VP8 ", b"VP8L"):
        length = int.from_bytes(header[4:], "little")
        file.seek(length + length % 2, 1)
    file.seek(position)
    return header[:4] == b"VP8L"


# Writing.


def output_format(path: Path) -> str:
    """Return the format for a file name's extension; UserError if not writable."""
    try:
        return WRITABLE[path.suffix.lower()]
    except KeyError:
        raise UserError(
            f"{path} has an extension that cannot be written: use one of "
            f"{' '.join(WRITABLE)}."
        ) from None


def check_writable(photo: Photo, path: Path) -> None:
    """Raise UserError if the output's format cannot store the photo's mode."""
    kind = output_format(path)
    if photo.mode in UNSUPPORTED_MODES[kind]:
        extensions = ".tif" if photo.mode == "CMYK" else ".png or .tif"
        raise UserError(
            f"{path}: {kind} cannot store {MODE_NAMES[photo.mode]}, which the photo "
            f"has: use {extensions}."
        )


def write_photo(photo: Photo, path: Path) -> None:
    """Write a photo with its metadata, atomically."""
    check_writable(photo, path)
    kind = output_format(path)
    options = photo.compression if kind == photo.format else DEFAULT_COMPRESSION[kind]
    options = options | writer_options(photo.metadata, kind)
    buffer = BytesIO()
    try:
        photo.to_pillow().save(buffer, format=kind, **options)
    except MemoryError:
        raise
    except Exception as error:  # encoders may raise anything on damaged metadata
        raise UserError(
            f"{path} cannot be written, its pixels or metadata do not fit {kind} "
            f"({reason(error)}): try another extension."
        ) from error
    write_whole(path, lambda part: part.write_bytes(buffer.getbuffer()))
