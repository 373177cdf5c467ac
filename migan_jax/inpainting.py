"""Using a trained generator: `load` a checkpoint, complete photos, run the network."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from migan_jax.data.masks import MaskHole, doubt_about, hole_of
from migan_jax.errors import UserError
from migan_jax.geometry.crops import Crops
from migan_jax.geometry.filling import (
    DEFAULT_FEATHER,
    check_arguments,
    fill_holes,
    grown,
)
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

    def inpaint(
        self,
        image: ArrayLike,
        mask: ArrayLike,
        mask_hole: MaskHole = "white",
        feather: int = DEFAULT_FEATHER,
        crops: Crops = "auto",
        grow: int = 0,
    ) -> np.ndarray:
        """Make up the hole of a photo of any size; `geometry.filling` says how.

        Args:
          image: uint8 [H, W, 3].
          mask: booleans or numbers [H, W]; white (True, 1, 255; from half of its own
            maximum up) is the hole.
          mask_hole: "black" where the mask shows the known part in white instead.
          feather: farthest distance from the hole at which pixels may change, so that
            the completion blends in, at most an eighth of the network's size; 0 leaves
            all known pixels as they are.
          crops: "auto" fills holes that are far apart, or long and thin, in crops of
            their own, unshrunk where it can; "one" takes a single crop.
          grow: widens the hole by so many pixels first, for masks drawn too tight.

        Returns uint8 [H, W, 3]. Pixels farther than `feather` from the hole are those
        of the photo, bit for bit.
        """
        image, hole = np.asarray(image), hole_of(np.asarray(mask), mask_hole)
        size = self.network.resolution
        check_arguments(image, hole, size, feather, crops)
        other = "black" if mask_hole == "white" else "white"
        if doubt := doubt_about(hole, f"mask_hole={other!r}"):
            logger.warning(doubt)
        hole = grown(hole, grow)
        return fill_holes(image, hole, self.complete, size, feather, crops)

    def complete(self, x: np.ndarray) -> np.ndarray:
        """The network as `fill_holes` calls it; a Co-Mod-GAN's z is fixed."""
        latents = () if self._is_migan else (self._default_z(len(x)),)
        rgb, _ = _apply(self.network, self.checkpoint.variables, x, *latents)
        return np.asarray(rgb)

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
        if self._is_migan and z is not None:
            raise ValueError("z is for Co-Mod-GAN; a MI-GAN takes none.")
        latents = () if self._is_migan else (self._checked_z(z, len(x)),)
        rgb, levels = _apply(self.network, self.checkpoint.variables, x, *latents)
        return (rgb, levels) if pyramid else rgb

    @property
    def _is_migan(self) -> bool:
        return family_of(self.network) == "migan"

    def _checked_z(self, z: ArrayLike | None, count: int) -> jax.Array:
        if z is None:
            logger.warning("No z given: drawing it from seed %d.", DEFAULT_Z_SEED)
            return self._default_z(count)
        z, shape = jnp.asarray(z, jnp.float32), (count, self.network.z_dim)
        if z.shape != shape:
            raise ValueError(
                f"z of this network is {list(shape)}, not {list(z.shape)}."
            )
        return z

    def _default_z(self, count: int) -> jax.Array:
        key = jax.random.key(DEFAULT_Z_SEED)
        return jax.random.normal(key, (count, self.network.z_dim), jnp.float32)


@jax.jit(static_argnums=0)
def _apply(network: Network, variables: Any, *inputs: jax.Array) -> Any:
    return network.apply(variables, *inputs)
