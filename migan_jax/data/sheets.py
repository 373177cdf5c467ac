"""Contact sheets: many small images in one, for inspection."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

HOLE_COLOUR = (255, 0, 255)
GAP, LABEL_HEIGHT = 2, 16


def contact_sheet(
    images: Sequence[np.ndarray], side: int, columns: int, labels: Sequence[str] = ()
) -> Image.Image:
    """Fit images, uint8 [H, W, 3], into squares of `side`, row by row."""
    top = LABEL_HEIGHT if labels else 0
    width, height = side + GAP, side + GAP + top
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width - GAP, rows * height - GAP), "silver")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        x, y = index % columns * width, index // columns * height
        tile = Image.fromarray(image)
        scale = side / max(tile.size)
        kernel = Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST
        extent = [max(round(scale * length), 1) for length in tile.size]
        tile = tile.resize(extent, kernel)
        left, above = (side - tile.width) // 2, (side - tile.height) // 2
        sheet.paste(tile, (x + left, y + top + above))
        if labels:
            draw.text((x + 4, y + 2), labels[index], fill="black")
    return sheet


def paint_hole(image: np.ndarray, hole: np.ndarray | None = None) -> np.ndarray:
    """Paint the hole in a colour that is rare in photos."""
    if hole is None:
        return image
    return np.where(hole[..., None], np.uint8(HOLE_COLOUR), image)
