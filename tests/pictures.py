"""Images, holes and networks for tests."""

import numpy as np

BRIGHTEST = 200  # maximum of a picture, so that a network's 255 always changes it


def picture(height, width, seed=0):
    """Make an image of waves and noise, uint8 [H, W, 3] from 20 to 200."""
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
    """Predict white everywhere, like a network."""
    return np.ones(image.shape, np.float32)


def hole_in(shape, *boxes):
    """Make a hole of boxes (top, left, bottom, right); negative: from the end."""
    hole = np.zeros(shape, np.bool_)
    for top, left, bottom, right in boxes:
        hole[top:bottom, left:right] = True
    return hole
