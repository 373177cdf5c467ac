"""Decode, check, crop and resize images to uint8, on the host in worker processes.

The crops are those of the papers: "square", the largest square, resized (Places in high
resolution); "whole", the image squeezed into a square (Places "small", DeepGIN);
"native", a square of the network's size (Hukkelas et al.).
"""

import dataclasses
from io import BytesIO
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import ExifTags, Image, ImageOps

from migan_jax.data.image_files import decode_mask, decode_pixels, open_image, to_rgb
from migan_jax.data.masks import MaskHole
from migan_jax.errors import UserError

CropKind = Literal["square", "whole", "native"]

# Random crops may be reduced fast, by JPEG's own scaling or by averaging, to this many
# times the final size or more, before they are resized with the proper kernel.
REDUCING_GAP = 2.0
# Random crops to try before one is placed at the hole of the image's own mask.
CROP_ATTEMPTS = 10


class Encoded(NamedTuple):
    """A record of a source."""

    image: bytes | np.ndarray  # a file's bytes, or drawn pixels
    mask: bytes | None = None  # a file's bytes
    points: np.ndarray | None = None  # float32 [K, 2], pixels of the upright image


class Example(NamedTuple):
    """A decoded record."""

    image: np.ndarray  # uint8 [H, W, 3]
    hole: np.ndarray | None = None  # bool [H, W], if it has a mask
    points: np.ndarray | None = None  # float32 [K, 2], (x, y) in [0, 1]


class Region(NamedTuple):
    """A rectangle of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclasses.dataclass(frozen=True)
class CropSettings:
    """How to crop images to the network's size."""

    resolution: int
    kind: CropKind = "square"
    min_scale: float = 1.0  # of a random crop's side, relative to the largest square
    smallest_side: int = 1  # images with a shorter side are rejected

    def __post_init__(self) -> None:
        if self.kind not in get_args(CropKind):
            kinds = ", ".join(get_args(CropKind))
            raise UserError(f"data.crop is {self.kind!r}, but must be one of {kinds}.")
        if not 0 < self.min_scale <= 1:
            raise UserError(
                f"data.crop_scale is {self.min_scale}, but must be above 0 and up to 1."
            )

    def region(
        self, width: int, height: int, rng: np.random.Generator | None
    ) -> Region:
        """Draw a random region, or without `rng` return the largest central one."""
        if self.kind == "whole":
            return Region(0, 0, width, height)
        side = min(width, height)
        if self.kind == "native":
            side = min(side, self.resolution)
        elif rng is not None:
            side = max(round(side * rng.uniform(self.min_scale, 1)), 1)
        if rng is None:
            return Region((width - side) // 2, (height - side) // 2, side, side)
        left, top = rng.integers(0, (width - side + 1, height - side + 1))
        return Region(int(left), int(top), side, side)


def decode(encoded: Encoded, name: object, mask_hole: MaskHole) -> Example:
    """Decode a whole image."""
    if isinstance(encoded.image, np.ndarray):
        height, width = encoded.image.shape[:2]
        whole = Region(0, 0, width, height)
        return Example(encoded.image, points=_points_in(whole, encoded.points))
    with open_image(BytesIO(encoded.image), name) as image:
        _check_colours(image, name)
        rgb = _to_upright_rgb(image, name)
        hole = _decode_hole(encoded, *rgb.size, name, mask_hole)
        points = _points_in(Region(0, 0, *rgb.size), encoded.points)
        return Example(np.asarray(rgb), hole, points)


def decode_crop(
    encoded: Encoded,
    name: object,
    mask_hole: MaskHole,
    crop: CropSettings,
    rng: np.random.Generator | None,
) -> Example:
    """Decode a crop: a random one, or without `rng` the central one.

    Raises UserError if the image cannot be used, for any reason.
    """
    gap = None if rng is None else REDUCING_GAP
    if isinstance(encoded.image, np.ndarray):
        drawn = Image.fromarray(encoded.image)
        region = crop.region(*drawn.size, rng)
        square = _resize_region(drawn, region, drawn.size, crop.resolution, gap)
        return Example(square, points=_points_in(region, encoded.points))
    with open_image(BytesIO(encoded.image), name) as image:
        _check_colours(image, name)
        width, height = _upright_size(image)
        if min(width, height) < crop.smallest_side:
            raise too_small_error(name, width, height, crop.smallest_side)
        hole = _decode_hole(encoded, width, height, name, mask_hole)
        region = _region_with_hole(hole, width, height, crop, rng)
        if gap is not None:
            _set_jpeg_scale(image, region, gap * crop.resolution)
        rgb, full_size = _to_upright_rgb(image, name), (width, height)
        square = _resize_region(rgb, region, full_size, crop.resolution, gap)
        if hole is not None:
            hole = resize_hole(hole, region.corners, (crop.resolution,) * 2)
        return Example(square, hole, _points_in(region, encoded.points))


def too_small_error(name: object, width: int, height: int, minimum: int) -> UserError:
    """Return the error for an image whose shorter side is below `minimum`."""
    return UserError(
        f"{name} has {width}x{height} pixels; its shorter side is below {minimum}."
    )


def _check_colours(image: Image.Image, name: object) -> None:
    if image.mode == "CMYK":
        raise UserError(f"{name} has print colours (CMYK). Save it as RGB to use it.")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) as viewers rotate the image.

    JPEGs are not rotated here, so that they can still be decoded at a smaller scale.
    """
    if image.format not in ("JPEG", "MPO"):
        ImageOps.exif_transpose(image, in_place=True)
        return image.size
    width, height = image.size
    rotated = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (height, width) if rotated else (width, height)


def _to_upright_rgb(image: Image.Image, name: object) -> Image.Image:
    """Decode to 8-bit RGB, as viewers rotate the image."""
    ImageOps.exif_transpose(image, in_place=True)  # no effect if it is upright
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    pixels, mode = decode_pixels(image, name)
    has_key = mode == "I;16" and "transparency" in image.info  # a transparent level
    if has_key or (mode in ("LA", "RGBA") and pixels[..., -1].min() < 255):
        raise UserError(f"{name} has transparent parts, whose colours are unknown.")
    return Image.fromarray(to_rgb(pixels, mode))


def _decode_hole(
    encoded: Encoded, width: int, height: int, name: object, mask_hole: MaskHole
) -> np.ndarray | None:
    if encoded.mask is None:
        return None
    with open_image(BytesIO(encoded.mask), f"the mask of {name}") as mask:
        ImageOps.exif_transpose(mask, in_place=True)
        hole = decode_mask(mask, mask_hole, f"the mask of {name}").hole
    if hole.shape != (height, width):
        raise UserError(
            f"{name} has {width}x{height} pixels, but its mask has {hole.shape[1]}x"
            f"{hole.shape[0]}."
        )
    if not hole.any():
        raise UserError(f"The mask of {name} marks no hole.")
    return hole


def _region_with_hole(
    hole: np.ndarray | None,
    width: int,
    height: int,
    crop: CropSettings,
    rng: np.random.Generator | None,
) -> Region:
    """Return a region that includes some of the hole, if there is one."""
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


def _points_in(region: Region, points: np.ndarray | None) -> np.ndarray | None:
    """Return points relative to a region, those outside at its border."""
    if points is None:
        return None
    left, top, width, height = region
    relative = (points - (left, top)) / (width, height)
    return np.clip(relative, 0, 1).astype(np.float32)


def _set_jpeg_scale(image: Image.Image, region: Region, min_side: float) -> None:
    """Let a JPEG decode at 1/2, 1/4 or 1/8 if the region keeps `min_side` pixels."""
    scale = min_side / min(region.width, region.height)
    if scale < 1:
        width, height = image.size
        image.draft(None, (round(width * scale), round(height * scale)))


def _resize_region(
    image: Image.Image,
    region: Region,
    full_size: tuple[int, int],
    side: int,
    gap: float | None,
) -> np.ndarray:
    """Resize a region, given in pixels of the image at its full size, to a square."""
    size = side, side
    if image.size == full_size and (region.width, region.height) == size:
        return np.asarray(image.crop(region.corners))
    box = tuple(
        corner * current / full  # JPEG's scaling rounds each axis separately
        for corner, current, full in zip(
            region.corners, image.size * 2, full_size * 2, strict=True
        )
    )
    kernel = Image.Resampling.BICUBIC
    return np.asarray(image.resize(size, kernel, box, reducing_gap=gap))


def resize_hole(
    hole: np.ndarray, corners: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """Crop and resize a hole to (width, height), with all pixels that it touches."""
    coverage = Image.fromarray(hole.astype(np.float32))
    return np.asarray(coverage.resize(size, Image.Resampling.BOX, corners)) > 0
