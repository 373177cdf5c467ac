"""Using a trained generator: `load` a checkpoint, run the network."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from migan_jax.errors import UserError
from migan_jax.weights.checkpoint import Checkpoint, load_checkpoint
from migan_jax.weights.families import GENERATORS, Network, family_of

logger = logging.getLogger(__name__)

DEFAULT_Z_SEED = 0


def load(checkpoint: str | Path) -> "Model":
    """Load a generator: a released `.pt`, a `.safetensors`, or a run's workdir.

    Sizes are inferred from the tensors' shapes. A Co-Mod-GAN loads the same way.
    """
    loaded = load_checkpoint(checkpoint)
    if family_of(loaded.network) not in GENERATORS:
        raise UserError(
            f"{checkpoint} is a discriminator, which cannot inpaint: load the "
            f"generator's file."
        )
    return Model(loaded)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A generator with its weights, ready to run."""

    checkpoint: Checkpoint

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        name, size = family_of(self.network), self.network.resolution
        return f"Model({name}, {size} px, {count:,} parameters)"

    @property
    def network(self) -> Network:
        """The linen module; `network.apply(model.checkpoint.variables, x)`."""
        return self.checkpoint.network

    @property
    def params(self) -> Any:
        """Trainable parameters."""
        return self.checkpoint.params

    @property
    def stats(self) -> Any:
        """Constants that belong to the weights: stored noise, average style."""
        return self.checkpoint.stats

    def forward(
        self, x: ArrayLike, *, z: ArrayLike | None = None, pyramid: bool = False
    ) -> Any:
        """Run the bare network in float32 with its stored noise.

        Args:
          x: [N, H, W, 4], concat(mask - 0.5, image * mask): image in [-1, 1], mask 1
            where known and 0 in the hole. The range is not checked.
          z: latents [N, z_dim] of a Co-Mod-GAN; without them one draw from a fixed seed
            is used, and said.
          pyramid: also return {resolution: rgb}, each layer's own to-RGB.

        Returns the whole picture [N, H, W, 3], not pasted into the input.
        """
        x = jnp.asarray(x)
        if x.dtype in (jnp.uint8, jnp.bool_):
            raise ValueError(
                f"The network takes scaled images (pixels / 127.5 - 1), not {x.dtype}."
            )
        x = x.astype(jnp.float32)
        if x.ndim != 4:
            raise ValueError(f"The network takes [N, H, W, 4], not {list(x.shape)}.")
        latents = () if family_of(self.network) == "migan" else (self._latents(x, z),)
        if not latents and z is not None:
            raise ValueError("z is for Co-Mod-GAN; a MI-GAN takes none.")
        rgb, levels = _apply(self.network, self.checkpoint.variables, x, *latents)
        return (rgb, levels) if pyramid else rgb

    def _latents(self, x: jax.Array, z: ArrayLike | None) -> jax.Array:
        shape = (x.shape[0], self.network.z_dim)
        if z is None:
            logger.warning("No z given: drawing it from seed %d.", DEFAULT_Z_SEED)
            key = jax.random.key(DEFAULT_Z_SEED)
            return jax.random.normal(key, shape, jnp.float32)
        z = jnp.asarray(z, jnp.float32)
        if z.shape != shape:
            raise ValueError(
                f"z of this network is {list(shape)}, not {list(z.shape)}."
            )
        return z


@jax.jit(static_argnums=0)
def _apply(network: Network, variables: Any, *inputs: jax.Array) -> Any:
    return network.apply(variables, *inputs)
