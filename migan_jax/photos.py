"""Reading and writing photos and masks as files, with everything that is not pixels.

A photo keeps its own pixels (grey, CMYK, 16 bits, alpha) beside the RGB that networks
see, and takes over from a completion only what that changes. Metadata, colour profile
and the way it was compressed are carried to the written file.
"""

import contextlib
import dataclasses
import logging
import re
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from migan_jax.data.masks import MaskHole, hole_of
from migan_jax.errors import UserError
from migan_jax.weights.reading import reason, write_whole

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

# TIFF tags about how the pixels are stored, which the writer decides: all others in the
# first directory are metadata.
TIFF_LAYOUT = {*range(254, 260), 262, 263, 266, 273, 277, 278, 279, 284, 317, 320}
TIFF_LAYOUT |= {*range(322, 326), 330, 338, 339, 347, 513, 514, *range(529, 533), 34675}
ORIENTATION, EXIF_DIRECTORY, GPS_DIRECTORY = 0x0112, 0x8769, 0x8825
EXIF_SIZE = 0xA002, 0xA003
PNG_XMP = "XML:com.adobe.xmp"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says about its pixels; orientation has been applied and removed."""

    exif: bytes = b""
    icc_profile: bytes | None = None
    xmp: bytes = b""
    iptc: bytes | None = None  # JPEG's APP13, as it is
    comment: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = dataclasses.field(default_factory=dict)  # PNG's


@dataclasses.dataclass(frozen=True)
class Photo:
    """An upright photo: `pixels` in its own mode, as Pillow names it."""

    pixels: np.ndarray  # uint8 or uint16 [H, W] or [H, W, C]
    mode: str  # L, LA, RGB, RGBA, CMYK or I;16
    metadata: Metadata
    format: str
    compression: dict[str, Any]  # arguments that make a file of the same format alike

    @property
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
        ImageOps.exif_transpose(image, in_place=True)
        metadata = _metadata_of(image)
        plain = _plain(image)
        if plain is None:
            raise UserError(
                f"{path} has pixels of mode {image.mode}: save it as 8-bit RGB."
            )
        if colours_of_16_bits:
            logger.warning("%s: 16-bit colour is read as 8-bit.", path)
        kind = _format_of(image)
        return Photo(np.asarray(plain), plain.mode, metadata, kind, compression)


class Mask(NamedTuple):
    """What a mask's file says: the hole, bool [H, W], and which part of it said so."""

    hole: np.ndarray
    from_alpha: bool


def read_mask(path: Path, mask_hole: MaskHole) -> Mask:
    """The mask in a file, upright, by the rule of `data.masks.hole_of`.

    Where the file has a transparent part, that is the hole, whatever its colours.
    """
    with _image_in(path) as (image, _):
        ImageOps.exif_transpose(image, in_place=True)
        numbers = image.mode in ("1", "I", "F")
        plain = image if numbers else _plain(image)
        if plain is None:
            raise UserError(
                f"{path} has pixels of mode {image.mode}: save it as 8-bit grey."
            )
        values = np.asarray(plain.convert("RGB") if plain.mode == "CMYK" else plain)
    if plain.mode in WITH_ALPHA.values():
        alpha, values = values[..., -1], values[..., :-1]
        if alpha.min() < 255:
            return Mask(hole_of(alpha, "black"), from_alpha=True)
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


def _plain(image: Image.Image) -> Image.Image | None:
    """The same pixels in a mode of Photo's, or None where there is none."""
    mode = AS_MODE.get(image.mode, image.mode)
    if "transparency" in image.info:  # one colour, or the palette's alpha
        mode = WITH_ALPHA.get(mode, mode)
    if mode.startswith("I;16"):
        return image if mode == "I;16" else image.convert("I;16")
    if mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return None
    return image if image.mode == mode else image.convert(mode)


def _format_of(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else image.format


def _compression_of(image: Image.Image, file: BinaryIO) -> dict[str, Any]:
    """What Pillow has to be told to compress alike."""
    kind = _format_of(image)
    if kind == "JPEG":
        tables = {
            "qtables": image.quantization,
            "progressive": bool(image.info.get("progressive")),
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


def _metadata_of(image: Image.Image) -> Metadata:
    info = image.info
    exif = image.getexif()
    unwanted = {ORIENTATION, *(TIFF_LAYOUT if image.format == "TIFF" else ())}
    for tag in unwanted & {*exif}:
        del exif[tag]
    details = exif.get_ifd(EXIF_DIRECTORY) if EXIF_DIRECTORY in exif else {}
    if all(tag in details for tag in EXIF_SIZE):
        details[EXIF_SIZE[0]], details[EXIF_SIZE[1]] = image.size
    # Re-written rather than copied: so the preview in it, of the photo as it was before
    # something was removed, is left out.
    content = exif.tobytes() if len(exif) else b""
    xmp = info.get("xmp") or info.get(PNG_XMP) or b""
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    segments = getattr(image, "applist", ())
    return Metadata(
        exif=content,
        icc_profile=info.get("icc_profile"),
        xmp=re.sub(rb'tiff:Orientation(="|>)[0-9]', rb"tiff:Orientation\g<1>1", xmp),
        iptc=next((content for name, content in segments if name == "APP13"), None),
        comment=info.get("comment") if image.format in ("JPEG", "MPO") else None,
        dpi=info.get("dpi"),
        text={k: v for k, v in getattr(image, "text", {}).items() if k != PNG_XMP},
    )


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
    same = kind == photo.format
    options = photo.compression if same else COMPRESSION[kind]
    options = options | _metadata_options(photo.metadata, kind)
    buffer = BytesIO()
    try:
        photo.to_pillow().save(buffer, format=kind, **options)
    except Exception as error:  # encoders fail in any way on damaged metadata
        raise UserError(
            f"{path} cannot be written, its pixels or metadata do not fit {kind} "
            f"({reason(error)}): try another ending."
        ) from error
    write_whole(path, lambda part: part.write_bytes(buffer.getbuffer()))


def _metadata_options(metadata: Metadata, kind: str) -> dict[str, Any]:
    """Metadata as arguments of Pillow's writer of a format."""
    if kind == "BMP":
        return {}
    options = {
        "exif": metadata.exif,
        "icc_profile": metadata.icc_profile,
        "xmp": metadata.xmp,
        "comment": metadata.comment,
        "dpi": metadata.dpi,
    }
    if kind == "TIFF" and _has_directories(metadata.exif):
        options["compression"] = "raw"  # Pillow cannot write directories otherwise
    if kind == "JPEG" and metadata.iptc:
        length = len(metadata.iptc) + 2
        options["extra"] = b"\xff\xed" + length.to_bytes(2) + metadata.iptc
    if kind == "PNG":
        options["pnginfo"] = text = PngImagePlugin.PngInfo()
        for name, value in metadata.text.items():
            text.add_itxt(name, value)
        if metadata.xmp:
            text.add_itxt(PNG_XMP, metadata.xmp.decode(errors="replace"))
    return {name: value for name, value in options.items() if value}


def _has_directories(content: bytes) -> bool:
    exif = Image.Exif()
    exif.load(content)
    return EXIF_DIRECTORY in exif or GPS_DIRECTORY in exif
