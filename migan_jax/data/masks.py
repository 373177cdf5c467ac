"""What a mask given by a user means: which pixels are the hole.

Masks come with either polarity and any values; inside the package a hole is a boolean
array, True where the picture is to be made up.
"""

from typing import Literal, get_args

import numpy as np

from migan_jax.errors import UserError

MaskHole = Literal["white", "black"]

# More hole than this is rarely meant: masks with holes in the other colour look so.
DOUBTFUL_SHARE = 0.7
# As is a hole of more than half the picture that takes in most of its border.
DOUBTFUL_SHARE_WITH_BORDER = 0.5


def hole_of(mask: np.ndarray, mask_hole: MaskHole = "white") -> np.ndarray:
    """The hole [H, W] of a mask [H, W] or [H, W, 1] of booleans or numbers.

    A pixel is white when twice its value reaches the mask's own maximum, so that 0/1,
    0/254, 0/255, booleans and soft masks all mean what they look like; a mask that is
    zero everywhere is all black. The white pixels are the hole, or the black ones.
    """
    if mask_hole not in get_args(MaskHole):
        raise UserError(f"mask_hole is 'white' or 'black', not {mask_hole!r}.")
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
    largest = mask.max()
    if largest == 0:
        return np.zeros(mask.shape, np.bool_)
    if mask.dtype.kind == "f":
        return mask / largest >= 0.5  # half of the smallest number would be zero
    return mask >= largest // 2 + largest % 2


def doubt_about(hole: np.ndarray, remedy: str) -> str | None:
    """A sentence on a hole that is probably not what was meant, else None.

    Args:
      hole: True in the hole.
      remedy: what helps if the polarity is wrong, for the end of the sentence.
    """
    share = np.count_nonzero(hole) / hole.size
    if share == 1:
        return "The mask leaves nothing known, so the whole picture is made up."
    border = np.concatenate([hole[0], hole[-1], hole[:, 0], hole[:, -1]]).mean()
    inverted = share > DOUBTFUL_SHARE_WITH_BORDER and border > 0.5
    if share <= DOUBTFUL_SHARE and not inverted:
        return None
    including = ", most of its border included" if inverted else ""
    return (
        f"The mask makes {share:.0%} of the picture a hole{including}: if that is the "
        f"wrong way round, then {remedy}."
    )
