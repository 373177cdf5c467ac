"""From an encoded picture to what a network learns from: decode, refuse, crop, resize.

Runs on the host, in worker processes, and sends on uint8. Crops are the papers': the
largest square, shrunk (Places in high resolution); the whole picture, squeezed into a
square (Places "small", DeepGIN); a square of the network's own size (Hukkelas et al.).
"""

import dataclasses
from io import BytesIO
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageOps

from migan_jax.data.decoding import mask_of, open_image, pixels_of, to_rgb
from migan_jax.data.masks import MaskHole
from migan_jax.errors import UserError

CropKind = Literal["square", "whole", "native"]

ORIENTATION = 0x0112  # in EXIF; from 5 on, width and height change places
# A random crop may be shrunk in two steps: by JPEG's own transform or by averaging to
# no less than this many times the final size, then with the proper kernel.
REDUCING_GAP = 2.0
# Random crops that may miss an own mask's hole before one is laid on it.
CROP_ATTEMPTS = 10


class Encoded(NamedTuple):
    """What a source holds: an image file's bytes, or drawn pixels; and its own mask."""

    image: bytes | np.ndarray
    mask: bytes | None = None


class Example(NamedTuple):
    """A picture, uint8 [H, W, 3], and if it has a mask its hole, bool [H, W]."""

    image: np.ndarray
    hole: np.ndarray | None = None


class Region(NamedTuple):
    """Part of a picture, in its pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclasses.dataclass(frozen=True)
class Crop:
    """Which part of a picture becomes the network's square."""

    resolution: int
    kind: CropKind = "square"
    smallest_share: float = 1.0  # of the largest square's side, for random crops
    smallest_side: int = 1  # pictures with a shorter one are refused

    def __post_init__(self) -> None:
        if self.kind not in get_args(CropKind):
            kinds = ", ".join(get_args(CropKind))
            raise UserError(f"crop is one of {kinds}, not {self.kind!r}.")
        if not 0 < self.smallest_share <= 1:
            raise UserError(
                f"crop_scale is a share above 0 and up to 1, not {self.smallest_share}."
            )

    def region(
        self, width: int, height: int, rng: np.random.Generator | None
    ) -> Region:
        """A random region, or without `rng` the central and largest one."""
        if self.kind == "whole":
            return Region(0, 0, width, height)
        side = min(width, height)
        if self.kind == "native":
            side = min(side, self.resolution)
        elif rng is not None:
            side = max(round(side * rng.uniform(self.smallest_share, 1)), 1)
        if rng is None:
            return Region((width - side) // 2, (height - side) // 2, side, side)
        left, top = rng.integers(0, (width - side + 1, height - side + 1))
        return Region(int(left), int(top), side, side)


def decode(encoded: Encoded, name: object, mask_hole: MaskHole) -> Example:
    """A whole picture, as it is."""
    if isinstance(encoded.image, np.ndarray):
        return Example(encoded.image)
    with open_image(BytesIO(encoded.image), name) as image:
        _check_colours(image, name)
        picture = _upright_rgb(image, name)
        hole = _hole_of(encoded, *picture.size, name, mask_hole)
        return Example(np.asarray(picture), hole)


def decode_crop(
    encoded: Encoded,
    name: object,
    mask_hole: MaskHole,
    crop: Crop,
    rng: np.random.Generator | None,
) -> Example:
    """A square of `crop.resolution`: a random one, or without `rng` the central one.

    Raises UserError for a picture that cannot be used, whatever is wrong with it.
    """
    gap = None if rng is None else REDUCING_GAP
    if isinstance(encoded.image, np.ndarray):
        picture = Image.fromarray(encoded.image)
        region = crop.region(*picture.size, rng)
        return Example(_square(picture, region, picture.size, crop.resolution, gap))
    with open_image(BytesIO(encoded.image), name) as image:
        _check_colours(image, name)
        width, height = _upright_size(image)
        if min(width, height) < crop.smallest_side:
            raise too_small(name, width, height, crop.smallest_side)
        hole = _hole_of(encoded, width, height, name, mask_hole)
        region = _region_with_hole(hole, width, height, crop, rng)
        if gap is not None:
            _decode_smaller(image, region, gap * crop.resolution)
        picture, full = _upright_rgb(image, name), (width, height)
        square = _square(picture, region, full, crop.resolution, gap)
        if hole is not None:
            hole = shrink_hole(hole, region.corners, (crop.resolution,) * 2)
        return Example(square, hole)


def too_small(name: object, width: int, height: int, smallest: int) -> UserError:
    """The sentence for a picture that shows too little."""
    return UserError(
        f"{name} has {width}x{height} pixels, and its shorter side is below {smallest}."
    )


def _check_colours(image: Image.Image, name: object) -> None:
    if image.mode == "CMYK":
        raise UserError(
            f"{name} has the colours of a print (CMYK): save it as RGB to use it."
        )


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """As a viewer shows it. A JPEG stays as it is: it may yet be decoded smaller."""
    if image.format not in ("JPEG", "MPO"):
        ImageOps.exif_transpose(image, in_place=True)
        return image.size
    width, height = image.size
    turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _upright_rgb(image: Image.Image, name: object) -> Image.Image:
    """The decoded picture as a viewer shows it; grey and 16 bits become 8-bit RGB."""
    ImageOps.exif_transpose(image, in_place=True)  # of what is upright already, nothing
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    pixels, mode = pixels_of(image, name)
    unclear = mode == "I;16" and "transparency" in image.info
    if unclear or (mode in ("LA", "RGBA") and pixels[..., -1].min() < 255):
        raise UserError(f"{name} is transparent in parts: what is there is unknown.")
    return Image.fromarray(to_rgb(pixels, mode))


def _hole_of(
    encoded: Encoded, width: int, height: int, name: object, mask_hole: MaskHole
) -> np.ndarray | None:
    if encoded.mask is None:
        return None
    with open_image(BytesIO(encoded.mask), f"the mask of {name}") as mask:
        ImageOps.exif_transpose(mask, in_place=True)
        hole = mask_of(mask, mask_hole, f"the mask of {name}").hole
    if hole.shape != (height, width):
        raise UserError(
            f"{name} has {width}x{height} pixels, but its mask {hole.shape[1]}x"
            f"{hole.shape[0]}."
        )
    if not hole.any():
        raise UserError(f"the mask of {name} marks no hole.")
    return hole


def _region_with_hole(
    hole: np.ndarray | None,
    width: int,
    height: int,
    crop: Crop,
    rng: np.random.Generator | None,
) -> Region:
    """A region that has some of the hole, where there is one."""
    region = crop.region(width, height, rng)
    if hole is None:
        return region
    for _ in range(CROP_ATTEMPTS):
        left, top, right, bottom = region.corners
        if hole[top:bottom, left:right].any():
            return region
        region = crop.region(width, height, rng)
    rows, columns = np.nonzero(hole)
    middle = len(rows) // 2
    left = int(columns[middle]) - region.width // 2
    top = int(rows[middle]) - region.height // 2
    return region._replace(
        left=min(max(left, 0), width - region.width),
        top=min(max(top, 0), height - region.height),
    )


def _decode_smaller(image: Image.Image, region: Region, enough: float) -> None:
    """Let a JPEG decode at 1/2, 1/4 or 1/8 where that leaves pixels enough."""
    scale = enough / min(region.width, region.height)
    if scale < 1:
        width, height = image.size
        image.draft(None, (round(width * scale), round(height * scale)))


def _square(
    picture: Image.Image,
    region: Region,
    full: tuple[int, int],
    side: int,
    gap: float | None,
) -> np.ndarray:
    """A region, in pixels of the picture at its `full` size, resized."""
    size = side, side
    if picture.size == full and (region.width, region.height) == size:
        return np.asarray(picture.crop(region.corners))
    box = tuple(
        corner * now / before  # the two axes are rounded apart
        for corner, now, before in zip(
            region.corners, picture.size * 2, full * 2, strict=True
        )
    )
    kernel = Image.Resampling.BICUBIC
    return np.asarray(picture.resize(size, kernel, box, reducing_gap=gap))


def shrink_hole(
    hole: np.ndarray, corners: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """Part of a hole at a size (width, height): every pixel that has any part in it."""
    picture = Image.fromarray(hole.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BOX, corners)) > 0
