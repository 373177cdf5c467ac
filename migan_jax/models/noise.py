"""Per-pixel noise of the generators: random, stored or none, always an argument.

A generator's `noise` is one of
  "stored"  constants kept beside the parameters, in the collection `stats`: what the
            released networks run with, deterministic;
  "none"    no noise;
  a dict    arrays by layer name, from `random_noise`: fresh noise for every sample.
Stored noise belongs to the nominal resolution of its level. On other image sizes it is
tiled periodically from the top left corner and cropped: independent values have no
seams, and an image of the nominal size sees exactly the stored ones.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

Noise = Literal["stored", "none"] | Mapping[str, jax.Array]
LayerNoise = Literal["stored", "none"] | jax.Array


def random_noise(
    keys: jax.Array, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, jax.Array]:
    """Draw noise [N, h, w, 1] per layer from one key per sample.

    Samples have their own keys so that a batch split over devices draws what the whole
    batch would.
    """

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        return {
            name: jax.random.normal(jax.random.fold_in(key, index), (h, w, 1))
            for index, (name, (h, w)) in enumerate(shapes.items())
        }

    return jax.vmap(draw)(keys)


def layer_noise(noise: Noise, layer: str) -> LayerNoise:
    """One layer's share of a generator's noise argument."""
    return noise if isinstance(noise, str) else noise[layer]


def tile_noise(stored: jax.Array, height: int, width: int) -> jax.Array:
    """Extend stored noise [r, r] periodically to [height, width]."""
    r, _ = stored.shape
    repeats = (-(-height // r), -(-width // r))
    return jnp.tile(stored, repeats)[:height, :width]
