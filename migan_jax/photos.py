"""Reading and writing photos and masks as files, with everything that is not pixels.

A photo keeps its own pixels (grey, CMYK, 16 bits, alpha) beside the RGB that networks
see, and takes over from a completion only what that changes. Metadata, colour profile
and the way it was compressed are carried to the written file.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

from migan_jax.data.masks import MaskHole, hole_of
from migan_jax.errors import UserError
from migan_jax.files import reason, write_whole
from migan_jax.metadata import Metadata, metadata_of, writer_options

logger = logging.getLogger(__name__)

# What may be opened. Pillow reads more, some of it by running other programs (EPS).
READABLE = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
READABLE_ENDINGS = (
    *(".avif", ".bmp", ".gif", ".jpg", ".jpeg", ".jp2", ".mpo", ".png"),
    *(".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp"),
)
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

# Modes read as another one that holds all of their pixels.
AS_MODE = {"1": "L", "P": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB"}
AS_MODE |= {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
WITH_ALPHA = {"L": "LA", "RGB": "RGBA"}
TIFF_PHOTOMETRIC = 262  # 0: white is zero, which Pillow turns round for 8 bits only


@dataclasses.dataclass(frozen=True)
class Photo:
    """An upright photo: `pixels` in its own mode, as Pillow names it."""

    pixels: np.ndarray  # uint8 or uint16 [H, W] or [H, W, C]
    mode: str  # L, LA, RGB, RGBA, CMYK or I;16
    metadata: Metadata
    format: str
    compression: dict[str, Any]  # arguments that make a file of the same format alike

    @functools.cached_property
    def rgb(self) -> np.ndarray:
        """What a network sees, uint8 [H, W, 3]."""
        if self.mode == "I;16":
            return _grey_to_rgb((self.pixels.astype(np.uint32) + 128) // 257)
        if self.mode == "L":
            return _grey_to_rgb(self.pixels)
        if self.mode == "LA":
            return _grey_to_rgb(self.pixels[..., 0])
        if self.mode == "CMYK":
            return np.asarray(self.to_pillow().convert("RGB"))
        return self.pixels[..., :3]

    def to_pillow(self) -> Image.Image:
        height, width = self.pixels.shape[:2]
        return Image.frombuffer(
            self.mode, (width, height), np.ascontiguousarray(self.pixels)
        )

    def with_rgb(self, rgb: np.ndarray) -> "Photo":
        """This photo where `rgb` equals its own, and `rgb` in its mode elsewhere."""
        changed = (rgb != self.rgb).any(axis=-1)
        colours, pixels = rgb[changed], self.pixels.copy()
        if self.mode == "I;16":
            pixels[changed] = _rgb_to_grey(colours).astype(np.uint16) * 257
        elif self.mode == "L":
            pixels[changed] = _rgb_to_grey(colours)
        elif self.mode == "LA":
            pixels[changed, 0] = _rgb_to_grey(colours)
        elif self.mode == "CMYK":  # without black, which Pillow reads as these colours
            pixels[changed] = np.insert(255 - colours, 3, 0, axis=-1)
        else:
            pixels[changed, :3] = colours
        return dataclasses.replace(self, pixels=pixels)

    def opaque(self) -> "Photo":
        """Without its alpha channel."""
        if self.mode not in WITH_ALPHA.values():
            return self
        pixels = self.pixels[..., 0] if self.mode == "LA" else self.pixels[..., :3]
        return dataclasses.replace(
            self, pixels=np.ascontiguousarray(pixels), mode=self.mode[:-1]
        )


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None].astype(np.uint8), 3, axis=-1)


def _rgb_to_grey(rgb: np.ndarray) -> np.ndarray:
    """Luma as JPEG and Pillow have it; grey stays what it is."""
    luma = rgb.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return (luma + (1 << 15)) >> 16


# Reading.


def read_photo(path: Path) -> Photo:
    """The photo in a file, upright."""
    with _image_in(path) as (image, file):
        compression = _compression_of(image, file)
        colours_of_16_bits = ";16" in str(image.tile) and image.mode[0] != "I"
        image.load()
        metadata = _turn_upright(image, path)
        pixels, mode = _pixels_of(image, path)
    if colours_of_16_bits:
        logger.warning("%s: 16-bit colour is read as 8-bit.", path)
    return Photo(pixels, mode, metadata, _format_of(image), compression)


class Mask(NamedTuple):
    """What a mask's file says: the hole, bool [H, W], and which part of it said so."""

    hole: np.ndarray
    from_alpha: bool


def read_mask(path: Path, mask_hole: MaskHole) -> Mask:
    """The mask in a file, upright, by the rule of `data.masks.hole_of`.

    Where the file has a transparent part, that is the hole, whatever its colours.
    """
    with _image_in(path) as (image, _):
        image.load()
        _turn_upright(image, path)
        if image.mode in ("1", "I", "F"):
            values, mode = np.asarray(image), image.mode
        else:
            image = image.convert("RGB") if image.mode == "CMYK" else image
            values, mode = _pixels_of(image, path)
    if mode in WITH_ALPHA.values():
        transparent = hole_of(values[..., -1], "black")
        if transparent.any():
            return Mask(transparent, from_alpha=True)
        values = values[..., :-1]
    if values.ndim == 3:
        values = values.max(axis=-1)  # a hole may be painted in any colour
    try:
        return Mask(hole_of(values, mask_hole), from_alpha=False)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


@contextlib.contextmanager
def _image_in(path: Path) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """An image whose header has been read; what is wrong with it becomes a sentence."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe may never end
            raise UserError(f"{path} is not a file.")
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow can do without is no concern
            image = Image.open(file, formats=READABLE)
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                raise UserError(
                    f"{path} holds {frames} pictures, of which all but one would be "
                    f"lost: save the one to be filled as a file of its own."
                )
            yield image, file
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise UserError(
            f"{path} has more than {limit:.0f} million pixels, which is the limit "
            f"against files made to exhaust the memory: make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} is not an image in a known format (known: {', '.join(READABLE)})."
        ) from error
    except Exception as error:  # decoders fail in any way on damaged files
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{path} cannot be read: {reason(error)}.")
    return UserError(
        f"{path} cannot be read as an image, it is damaged or incomplete "
        f"({reason(error)})."
    )


def _turn_upright(image: Image.Image, path: Path) -> Metadata:
    """Apply the orientation, and read the metadata that are true afterwards."""
    exif = image.info.get("exif", b"")
    try:
        ImageOps.exif_transpose(image, in_place=True)
        return metadata_of(image, exif)
    except Exception as error:  # as with pixels, damage may surface as anything
        logger.warning("%s: damaged metadata are left out (%s).", path, reason(error))
        return Metadata(icc_profile=image.info.get("icc_profile"))


def _pixels_of(image: Image.Image, path: Path) -> tuple[np.ndarray, str]:
    """All that the pixels say, in a mode of Photo's."""
    if image.mode.startswith("I;16"):  # either order of bytes
        grey = np.asarray(image).astype(np.uint16)
        inverted = image.format == "TIFF" and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0
        return (~grey if inverted else grey), "I;16"
    mode = AS_MODE.get(image.mode, image.mode)
    if "transparency" in image.info:  # one colour, or the palette's alpha
        mode = WITH_ALPHA.get(mode, mode)
    if mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        raise UserError(
            f"{path} has pixels of mode {image.mode}: save it as 8-bit grey or RGB."
        )
    return np.asarray(image if image.mode == mode else image.convert(mode)), mode


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
    except Exception as error:  # encoders fail in any way on damaged metadata
        raise UserError(
            f"{path} cannot be written, its pixels or metadata do not fit {kind} "
            f"({reason(error)}): try another ending."
        ) from error
    write_whole(path, lambda part: part.write_bytes(buffer.getbuffer()))
