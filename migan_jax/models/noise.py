"""Per-pixel noise of the generators: random, stored or none.

A generator's argument `noise` is one of
  "stored"  constants in the collection `stats`: deterministic, as in the released
            networks;
  "none"    no noise;
  a dict    arrays by layer name, from `random_noise`: new noise for every sample.
Stored noise has the nominal resolution of its level. For other image sizes it is tiled
from the top left corner and cropped. Its values are independent, so tiling leaves no
seams.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

Noise = Literal["stored", "none"] | Mapping[str, jax.Array]
LayerNoise = Literal["stored", "none"] | jax.Array


@jax.named_scope("noise")
def random_noise(
    keys: jax.Array, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, jax.Array]:
    """Draw noise [N, h, w, 1] per layer from one key per sample.

    One key per sample makes the noise independent of how a batch is sharded.
    """

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        # All layers' keys at once: TPUs compile scalar operations one by one.
        layers = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(shapes)))
        return {
            name: jax.random.normal(layers[index], (h, w, 1))
            for index, (name, (h, w)) in enumerate(shapes.items())
        }

    return jax.vmap(draw)(keys)


def layer_noise(noise: Noise, layer: str) -> LayerNoise:
    """Return one layer's part of a generator's noise argument."""
    return noise if isinstance(noise, str) else noise[layer]


def tile_noise(stored: jax.Array, height: int, width: int) -> jax.Array:
    """Extend stored noise [r, r] periodically to [height, width]."""
    r, _ = stored.shape
    repeats = (-(-height // r), -(-width // r))
    return jnp.tile(stored, repeats)[:height, :width]
