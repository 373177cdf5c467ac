"""Pictures and networks that tests of the geometry share."""

import numpy as np

BRIGHTEST = 200  # of a picture: a network that answers 255 always changes it


def picture(height, width, seed=0):
    """Waves and some noise, uint8 [H, W, 3] from 20 to 200."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 4, (height, width, 3)).astype(np.float32)
    waves = [
        110 + 50 * np.sin(x / 23 + c) + 30 * np.cos(y / 31 - c * x / 200)
        for c in range(3)
    ]
    values = np.stack(waves, axis=-1) + noise
    return np.clip(values, 20, BRIGHTEST).astype(np.uint8)


def white(image, known):
    """A network that sees nothing but white."""
    return np.ones(image.shape, np.float32)


def hole_in(shape, *boxes):
    """True in boxes (top, left, bottom, right), which may count from the end."""
    hole = np.zeros(shape, np.bool_)
    for top, left, bottom, right in boxes:
        hole[top:bottom, left:right] = True
    return hole
