"""From an image file's bytes to pixels, with every failure as a sentence.

What may be opened, what its pixels are, and which part of a mask is its hole: shared by
photos that people edit and by pictures that networks learn from.
"""

import contextlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from migan_jax.data.masks import MaskHole, hole_of
from migan_jax.errors import UserError, missing_extra
from migan_jax.files import reason

# What may be opened. Pillow reads more, some of it by running other programs (EPS).
READABLE = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
READABLE_ENDINGS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jpg", ".jpeg", ".jp2", ".mpo"),
    *(".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
# How files of HEIF begin, from the fifth byte on.
HEIF_STARTS = tuple(
    b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1")
)

# Modes read as another one that holds all of their pixels.
AS_MODE = {"1": "L", "P": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB"}
AS_MODE |= {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
WITH_ALPHA = {"L": "LA", "RGB": "RGBA"}
TIFF_PHOTOMETRIC = 262  # 0: white is zero, which Pillow turns round for 8 bits only


@contextlib.contextmanager
def open_image(file: BinaryIO, name: object) -> Iterator[Image.Image]:
    """An image whose header has been read; what is wrong with it becomes a sentence."""
    try:
        image = _opened(file, name)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise UserError(
                f"{name} holds {frames} pictures, of which all but one would be lost: "
                f"save the one that is meant as a file of its own."
            )
        yield image
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"{name} is larger than the memory that is free: make it smaller, or use a "
            f"machine with more memory."
        ) from error
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise UserError(
            f"{name} has more than {limit:.0f} million pixels, which is the limit "
            f"against files made to exhaust the memory: make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not an image in a known format (known: {', '.join(READABLE)})."
        ) from error
    except Exception as error:  # decoders fail in any way on damaged files
        raise unreadable(name, error) from error


def _opened(file: BinaryIO, name: object) -> Image.Image:
    """By Pillow, which reads HEIF, what iPhones save, with the help of an extra."""
    try:
        return Image.open(file, formats=READABLE)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(12)
        file.seek(0)
        if start[4:] not in HEIF_STARTS:
            raise
    try:
        import pillow_heif
    except ModuleNotFoundError as error:
        raise missing_extra("pillow-heif", "heif", f"Reading {name}") from error
    pillow_heif.register_heif_opener()
    return Image.open(file, formats=["HEIF"])


def unreadable(name: object, error: Exception) -> UserError:
    """The sentence for a file that could not be read, or not be decoded."""
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{name} cannot be read: {reason(error)}.")
    return UserError(
        f"{name} cannot be read as an image, it is damaged or incomplete "
        f"({reason(error)})."
    )


def pixels_of(image: Image.Image, name: object) -> tuple[np.ndarray, str]:
    """All that the pixels say, and their mode: L, LA, RGB, RGBA, CMYK or I;16."""
    if image.mode.startswith("I;16"):  # either order of bytes
        grey = np.asarray(image).astype(np.uint16)
        inverted = image.format == "TIFF" and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0
        return (~grey if inverted else grey), "I;16"
    mode = AS_MODE.get(image.mode, image.mode)
    if "transparency" in image.info:  # one colour, or the palette's alpha
        mode = WITH_ALPHA.get(mode, mode)
    if mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        raise UserError(
            f"{name} has pixels of mode {image.mode}: save it as 8-bit grey or RGB."
        )
    return np.asarray(image if image.mode == mode else image.convert(mode)), mode


def to_rgb(pixels: np.ndarray, mode: str) -> np.ndarray:
    """What a network sees of pixels in a mode of `pixels_of`: uint8 [H, W, 3]."""
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


# Of a mask, levels between these shares of its largest are neither black nor white,
# unless they are within so many of 255 from one of the two that it has most of. Soft
# edges are, but they are no larger part of a mask.
_DARK, _BRIGHT, _NEAR, _SOFT_SHARE = 1 / 8, 7 / 8, 8, 1 / 3
# Channels farther apart than this share of the largest level are a colour; fewer pixels
# than this share of all are none.
_COLOURED, _FEW = 1 / 4, 1e-3
_ENOUGH = 1 << 20  # pixels, to see what a mask looks like


def _is_picture(values: np.ndarray) -> bool:
    """Whether a mask's values [H, W] or [H, W, 3] look like a photo, or a painted one.

    A mask is of two levels, but for soft edges. It may be painted in colours on black;
    if something else is bright too, either of them may be meant.
    """
    if not values.size or values.dtype == np.bool_ or not values.max() > 0:
        return False
    step = max(1, int((values.shape[0] * values.shape[1] / _ENOUGH) ** 0.5))
    shares = values[::step, ::step] / values.max()
    levels = shares if shares.ndim == 2 else shares.max(axis=-1)
    known = np.uint8(255 * levels.clip(0, 1))
    soft = (levels > _DARK) & (levels < _BRIGHT)
    for frequent in np.bincount(known.ravel()).argsort()[-2:]:
        soft &= np.abs(known - float(frequent)) > _NEAR
    if soft.mean() > _SOFT_SHARE:
        return True
    if shares.ndim == 2:
        return False
    coloured = levels - shares.min(axis=-1) > _COLOURED
    white = (levels > 1 / 2) & ~coloured
    return bool(coloured.mean() > _FEW and white.mean() > _FEW)


class Mask(NamedTuple):
    """What a mask's file says: the hole, bool [H, W], and which part of it said so."""

    hole: np.ndarray
    from_alpha: bool


def mask_of(image: Image.Image, mask_hole: MaskHole, name: object) -> Mask:
    """The mask that an upright image shows, by the rule of `data.masks.hole_of`.

    Where the image has a transparent part, that is the hole, whatever its colours.
    What looks like a picture rather than a mask is refused: its brightness says nothing
    about a hole.
    """
    if image.mode in ("1", "I", "F"):
        values, mode = np.asarray(image), image.mode
    else:
        image = image.convert("RGB") if image.mode == "CMYK" else image
        values, mode = pixels_of(image, name)
    if mode in WITH_ALPHA.values():
        transparent = hole_of(values[..., -1], "black")
        if transparent.any():
            return Mask(transparent, from_alpha=True)
        values = values[..., :-1]
    if _is_picture(values):
        raise UserError(
            f"{name} looks like a photo, not like a mask: paint what is to go in white "
            f"on black, at the photo's size; or erase it in a copy of the photo, so "
            f"that it is transparent there, and save the copy as PNG."
        )
    if values.ndim == 3:
        values = values.max(axis=-1)  # a hole may be painted in any colour
    try:
        return Mask(hole_of(values, mask_hole), from_alpha=False)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
