"""Decode image and mask files; every failure is a UserError.

Shared by photos to edit (`photos`) and training images (`data.examples`).
"""

import contextlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from migan_jax.data.masks import MaskHole, hole_of
from migan_jax.errors import UserError, missing_extra
from migan_jax.files import reason

# Pillow reads more formats, some by running other programs (EPS).
READABLE_FORMATS = (
    "AVIF",
    "BMP",
    "GIF",
    "JPEG",
    "JPEG2000",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
)
READABLE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jpg", ".jpeg", ".jp2", ".mpo"),
    *(".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
# The first bytes of HEIF files, from the fifth.
HEIF_SIGNATURES = tuple(
    b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1")
)

# Modes that convert to another one without loss.
EQUIVALENT_MODES = {"1": "L", "P": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB"}
EQUIVALENT_MODES |= {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
WITH_ALPHA = {"L": "LA", "RGB": "RGBA"}
TIFF_PHOTOMETRIC = 262  # a tag; 0: white is zero, which Pillow inverts for 8 bits only


@contextlib.contextmanager
def open_image(file: BinaryIO, name: object) -> Iterator[Image.Image]:
    """Open an image and read its header; any error, also later, becomes a UserError."""
    try:
        image = _open(file, name)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise UserError(
                f"{name} holds {frames} images, but only one can be used. Save that "
                f"one as a separate file."
            )
        yield image
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"{name} does not fit into the free memory. Make it smaller, or use a "
            f"machine with more memory."
        ) from error
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise UserError(
            f"{name} has more than {limit:.0f} million pixels, the limit that protects "
            f"against decompression bombs. Make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not an image in a known format (known: "
            f"{', '.join(READABLE_FORMATS)})."
        ) from error
    except Exception as error:  # damaged files raise anything
        raise unreadable_error(name, error) from error


def _open(file: BinaryIO, name: object) -> Image.Image:
    """Open an image with Pillow; HEIF, iPhones' format, needs an extra."""
    try:
        return Image.open(file, formats=READABLE_FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(12)
        file.seek(0)
        if start[4:] not in HEIF_SIGNATURES:
            raise
    try:
        import pillow_heif
    except ModuleNotFoundError as error:
        raise missing_extra("pillow-heif", "heif", f"Reading {name}") from error
    pillow_heif.register_heif_opener()
    return Image.open(file, formats=["HEIF"])


def unreadable_error(name: object, error: Exception) -> UserError:
    """Return the error for a file that could not be read or decoded."""
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{name} cannot be read: {reason(error)}.")
    return UserError(
        f"{name} cannot be read as an image: it is damaged or incomplete "
        f"({reason(error)})."
    )


def decode_pixels(image: Image.Image, name: object) -> tuple[np.ndarray, str]:
    """Return pixels without loss, and their mode: L, LA, RGB, RGBA, CMYK or I;16."""
    if image.mode.startswith("I;16"):  # either byte order
        grey = np.asarray(image).astype(np.uint16)
        inverted = image.format == "TIFF" and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0
        return (~grey if inverted else grey), "I;16"
    mode = EQUIVALENT_MODES.get(image.mode, image.mode)
    if "transparency" in image.info:  # one colour, or the palette's alpha
        mode = WITH_ALPHA.get(mode, mode)
    if mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        raise UserError(
            f"{name} has pixels of mode {image.mode}. Save it as 8-bit grey or RGB."
        )
    return np.asarray(image if image.mode == mode else image.convert(mode)), mode


def to_rgb(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Convert pixels in a mode of `decode_pixels` to RGB, uint8 [H, W, 3]."""
    if mode == "CMYK":
        size = pixels.shape[1], pixels.shape[0]
        image = Image.frombuffer(mode, size, np.ascontiguousarray(pixels))
        return np.asarray(image.convert("RGB"))
    if mode in ("RGB", "RGBA"):
        return pixels[..., :3]
    if mode == "I;16":
        grey = (pixels.astype(np.uint32) + 128) // 257
    else:
        grey = pixels[..., 0] if mode == "LA" else pixels
    return np.repeat(grey[..., None].astype(np.uint8), 3, axis=-1)


# How to tell photos from masks. Levels are relative to the maximum. A level is soft if
# it is between dark and bright, and not within `_NEAR` / 255 of the two most frequent
# ones. In a mask only edges are soft.
_DARK, _BRIGHT, _NEAR, _MAX_SOFT_FRACTION = 1 / 8, 7 / 8, 8, 1 / 3
# Minimum difference of a coloured pixel's channels; minimum fraction of such pixels.
_MIN_CHROMA, _MIN_FRACTION = 1 / 4, 1e-3
_MAX_PIXELS = 1 << 20  # to evaluate; larger masks are subsampled


def _is_photo(values: np.ndarray) -> bool:
    """Return whether a mask's values [H, W] or [H, W, 3] look like a photo.

    A mask has two levels, except at soft edges. It may be in colour on black. White and
    coloured parts together count as a photo, since either could be the hole.
    """
    if not values.size or values.dtype == np.bool_ or not values.max() > 0:
        return False
    step = max(1, int((values.shape[0] * values.shape[1] / _MAX_PIXELS) ** 0.5))
    relative = values[::step, ::step] / values.max()
    levels = relative if relative.ndim == 2 else relative.max(axis=-1)
    rounded = np.uint8(255 * levels.clip(0, 1))
    soft = (levels > _DARK) & (levels < _BRIGHT)
    for frequent in np.bincount(rounded.ravel()).argsort()[-2:]:
        soft &= np.abs(rounded - float(frequent)) > _NEAR
    if soft.mean() > _MAX_SOFT_FRACTION:
        return True
    if relative.ndim == 2:
        return False
    coloured = levels - relative.min(axis=-1) > _MIN_CHROMA
    white = (levels > 1 / 2) & ~coloured
    return bool(coloured.mean() > _MIN_FRACTION and white.mean() > _MIN_FRACTION)


class Mask(NamedTuple):
    """A decoded mask file."""

    hole: np.ndarray  # bool [H, W]
    from_alpha: bool  # whether the hole is the transparent part


def decode_mask(image: Image.Image, mask_hole: MaskHole, name: object) -> Mask:
    """Decode an upright mask by the rule of `data.masks.hole_of`.

    A transparent part is the hole, whatever the colours. Photos are refused: their
    brightness says nothing about a hole.
    """
    if image.mode in ("1", "I", "F"):
        values, mode = np.asarray(image), image.mode
    else:
        image = image.convert("RGB") if image.mode == "CMYK" else image
        values, mode = decode_pixels(image, name)
    if mode in WITH_ALPHA.values():
        transparent = hole_of(values[..., -1], "black")
        if transparent.any():
            return Mask(transparent, from_alpha=True)
        values = values[..., :-1]
    if _is_photo(values):
        raise UserError(
            f"{name} looks like a photo, not like a mask. Paint the hole white on a "
            f"black image of the photo's size. Or erase it in a copy of the photo, so "
            f"that it is transparent there, and save the copy as PNG."
        )
    if values.ndim == 3:
        values = values.max(axis=-1)  # holes may have any colour
    try:
        return Mask(hole_of(values, mask_hole), from_alpha=False)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
