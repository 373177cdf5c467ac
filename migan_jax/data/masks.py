"""The hole of a user's mask, which may have either polarity and any values.

Inside the package, a hole is a boolean array, True where the image is to be filled.
"""

from typing import Literal, get_args

import numpy as np

from migan_jax.errors import UserError

MaskHole = Literal["white", "black"]
# Which mask an image gets: the one of the same name, or a random one each time.
MaskPairing = Literal["names", "random"]

# A mask looks inverted if more than this fraction is hole.
INVERTED_FRACTION = 0.7
# The same if the hole includes most of the border.
INVERTED_FRACTION_WITH_BORDER = 0.5


def check_mask_hole(mask_hole: str) -> None:
    """Raise UserError if this is no colour of a hole."""
    if mask_hole not in get_args(MaskHole):
        raise UserError(f"mask_hole is {mask_hole!r}, but must be 'white' or 'black'.")


def hole_of(mask: np.ndarray, mask_hole: MaskHole = "white") -> np.ndarray:
    """Return the hole [H, W] of a mask [H, W] or [H, W, 1] of booleans or numbers.

    A pixel is white if twice its value is at least the mask's maximum, so 0/1, 0/254,
    0/255, boolean and soft masks work alike. A mask of zeros is black. `mask_hole` is
    the colour of the hole.
    """
    check_mask_hole(mask_hole)
    mask = np.asarray(mask)
    if mask.ndim == 3 and mask.shape[2] == 1:
        mask = mask[..., 0]
    if mask.ndim != 2:
        raise UserError(f"A mask is [H, W], not {list(mask.shape)}.")
    white = mask if mask.dtype == np.bool_ else _is_high(mask)
    return white if mask_hole == "white" else ~white


def _is_high(mask: np.ndarray) -> np.ndarray:
    if mask.size == 0:
        return np.zeros(mask.shape, np.bool_)
    if mask.dtype.kind not in "uif":
        raise UserError(f"A mask holds booleans or numbers, not {mask.dtype}.")
    if mask.dtype.kind != "u" and not (np.isfinite(mask).all() and mask.min() >= 0):
        raise UserError("A mask holds no negative values, no NaN and no infinity.")
    maximum = mask.max()
    if maximum == 0:
        return np.zeros(mask.shape, np.bool_)
    if mask.dtype.kind == "f":
        return mask / maximum >= 0.5  # half the smallest float is zero
    return mask >= maximum // 2 + maximum % 2


def polarity_warning(hole: np.ndarray, hint: str) -> str | None:
    """Return a warning if the mask looks inverted or is all hole, else None.

    Args:
      hole: True in the hole.
      hint: what inverts the mask, to end the message.
    """
    fraction = np.count_nonzero(hole) / hole.size
    if fraction == 1:
        return "The mask's hole is the whole image, so all of it is generated."
    border = np.concatenate([hole[0], hole[-1], hole[:, 0], hole[:, -1]]).mean()
    has_border = fraction > INVERTED_FRACTION_WITH_BORDER and border > 0.5
    if fraction <= INVERTED_FRACTION and not has_border:
        return None
    including = ", including most of its border" if has_border else ""
    return (
        f"The mask's hole is {fraction:.0%} of the image{including}. If the mask is "
        f"inverted, try: {hint}."
    )
