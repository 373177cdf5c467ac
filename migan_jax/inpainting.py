"""Use trained networks: load a checkpoint, fill photos, run the bare network."""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from migan_jax.data.masks import MaskHole, hole_of, polarity_warning
from migan_jax.errors import UserError
from migan_jax.families import (
    Family,
    all_kinds,
    can_inpaint,
    family_of,
    load_checkpoints,
)
from migan_jax.geometry.crops import Crops
from migan_jax.geometry.ensemble import ensemble as ensemble_of
from migan_jax.geometry.fill import DEFAULT_FEATHER, check_arguments, dilate, fill_holes
from migan_jax.geometry.polyphase import Tiles, fill_polyphase
from migan_jax.weights.checkpoint import Checkpoint
from migan_jax.weights.kinds import Network, kind_of

logger = logging.getLogger(__name__)

DEFAULT_SEED = 0


def load(checkpoint: str | Path) -> "Model":
    """Load a model from a released `.pt`, a `.safetensors`, or a run's workdir.

    The family and its sizes are inferred from the tensors' names and shapes.
    """
    loaded = load_checkpoints(checkpoint)
    for role, one in loaded.items():
        family = family_of(one.network)
        needed = " and ".join(family.exported)
        if not can_inpaint(one.network):
            raise UserError(
                f"{checkpoint} is a {role}, which cannot inpaint: load the file of the "
                f"{needed}."
            )
        if set(loaded) != set(family.exported):
            raise UserError(
                f"{checkpoint} holds {' and '.join(loaded)} only: a {family.title} "
                f"inpaints with {needed}."
            )
    return Model(loaded)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A family's inpainting networks with their weights.

    Most families have one; `checkpoint`, `network`, `params` and `stats` are those of
    the first.
    """

    checkpoints: Mapping[str, Checkpoint]  # by role

    @classmethod
    def of(cls, *checkpoints: Checkpoint) -> Self:
        """Make a model from checkpoints, whose roles follow from their networks."""
        return cls({kind_of(c.network, all_kinds()).role: c for c in checkpoints})

    def __repr__(self) -> str:
        params = [checkpoint.params for checkpoint in self.checkpoints.values()]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        size = self.network.resolution
        return f"Model({self.family.name}, {size} px, {count:,} parameters)"

    @property
    def family(self) -> Family:
        """The family's entry in the table of families."""
        return family_of(self.network)

    @property
    def checkpoint(self) -> Checkpoint:
        """The first network with its weights."""
        return next(iter(self.checkpoints.values()))

    @property
    def network(self) -> Network:
        """The linen module, for `network.apply(model.checkpoint.variables, x)`."""
        return self.checkpoint.network

    @property
    def params(self) -> Any:
        """Trainable parameters."""
        return self.checkpoint.params

    @property
    def stats(self) -> Any:
        """Constants stored with the weights: noise, average style."""
        return self.checkpoint.stats

    @property
    def has_latents(self) -> bool:
        """Whether another seed gives another completion."""
        return bool(self._latents(1, DEFAULT_SEED))

    def inpaint(
        self,
        image: ArrayLike,
        mask: ArrayLike,
        mask_hole: MaskHole = "white",
        feather: int = DEFAULT_FEATHER,
        crops: Crops = "auto",
        grow: int = 0,
        seed: int = DEFAULT_SEED,
        tiles: Tiles = "crops",
        ensemble: bool = False,
    ) -> np.ndarray:
        """Fill the hole of a photo of any size, as described in `geometry.fill`.

        Args:
          image: uint8 [H, W, 3].
          mask: booleans or numbers [H, W]; white (True, 1, 255; from half of the
            mask's maximum up) is the hole.
          mask_hole: "black" if the hole is black instead.
          feather: maximum distance in pixels from the hole at which pixels may change
            to blend in the completion, at most an eighth of the network's size; 0
            changes no known pixel.
          crops: "auto" fills holes that are far apart, or long and thin, in several
            crops, unshrunk where possible; "one" takes a single crop. Polyphase
            tiles have no crops.
          grow: widens the hole by this many pixels first, for masks drawn too tight.
          seed: an int; families with latents have another completion for each, and 0
            is the usual one.
          tiles: "polyphase" shows the network the whole photo, as interleaved small
            pictures, instead of crops around holes (`geometry.polyphase`).
          ensemble: average the network's outputs for each square, its rotations and its
            mirror image (`geometry.ensemble`); takes five times as long.

        Returns uint8 [H, W, 3]. Pixels farther than `feather` from the hole equal those
        of the photo, bit for bit.
        """
        image, hole = np.asarray(image), hole_of(np.asarray(mask), mask_hole)
        size = self.network.resolution
        check_arguments(image, hole, size, feather, crops)
        if tiles not in get_args(Tiles):
            raise UserError(f"tiles must be 'crops' or 'polyphase', not {tiles!r}.")
        if not isinstance(ensemble, bool | np.bool_):
            raise UserError(f"ensemble must be True or False, not {ensemble!r}.")
        other = "black" if mask_hole == "white" else "white"
        if warning := polarity_warning(hole, f"mask_hole={other!r}"):
            logger.warning(warning)
        hole = dilate(hole, grow)
        predict = functools.partial(self.predict, seed=seed)
        if ensemble:
            predict = ensemble_of(predict)
        if tiles == "polyphase":
            return fill_polyphase(image, hole, predict, size, feather)
        return fill_holes(image, hole, predict, size, feather, crops)

    def complete(
        self,
        image: ArrayLike,
        known: ArrayLike,
        z: ArrayLike | None = None,
        points: ArrayLike | None = None,
        seed: int = DEFAULT_SEED,
        *,
        stages: bool = False,
    ) -> Any:
        """Complete images at their own size: no crops, no resizing, no rounding.

        Works inside `jax.jit` and `jax.grad`.

        Args:
          image: [N, H, W, 3] in [0, 1]; values in holes are ignored.
          known: [N, H, W, 1], 1 where known and 0 in the hole.
          z, points: latents and keypoints, in families that have them. By default
            latents of the seed, and the keypoints of a typical face.
          seed: an int, for what is drawn.
          stages: also return {name: image} of the earlier stages.

        Returns float32 [N, H, W, 3] in [0, 1], with known pixels unchanged.
        """
        image, known = _as_float(image, "image"), _as_float(known, "known")
        planes = (*image.shape[:3], 1)
        if image.ndim != 4 or image.shape[3] != 3 or known.shape != planes:
            raise ValueError(
                f"image must be [N, H, W, 3] and known [N, H, W, 1], not "
                f"{list(image.shape)} and {list(known.shape)}."
            )
        latents = self._latents(len(image), seed, z=z, points=points)
        masked = jnp.where(known > 0, 2 * image - 1, 0)
        rgb, earlier = self._predict(masked, known, latents)
        output = (jnp.clip(rgb, -1, 1) + 1) / 2
        result = jnp.where(known > 0, image * known, 0) + output * (1 - known)
        if not stages:
            return result
        return result, {name: (rgb + 1) / 2 for name, rgb in earlier.items()}

    def predict(
        self, image: ArrayLike, known: ArrayLike, seed: int = DEFAULT_SEED
    ) -> np.ndarray:
        """Return the networks' whole output, for `geometry.fill.fill_holes`.

        Args:
          image: [N, H, W, 3] in [-1, 1], 0 in holes.
          known: [N, H, W, 1], 1 where known and 0 in the hole.
        """
        rgb, _ = self._predict(image, known, self._latents(len(image), seed))
        return np.asarray(rgb)

    def forward(
        self, x: ArrayLike, *, z: ArrayLike | None = None, pyramid: bool = False
    ) -> Any:
        """Run the bare network in float32 with its stored noise.

        Args:
          x: [N, H, W, C], the network's input. MI-GAN and Co-Mod-GAN: concat(mask -
            0.5, image * mask), image in [-1, 1], mask 1 where known and 0 in the hole.
            DeepGIN: concat(image, hole), image in [0, 1] and 1 in the hole. Imputation:
            concat(image * mask, mask), both as MI-GAN's. The range is not checked.
          z: latents, if the network takes them: [N, z_dim], for imputation [N, 4, 4,
            latents]. By default those of seed 0, with a warning.
          pyramid: also return the network's second output. DeepGIN: {name: rgb}, the
            earlier stages. Others: {resolution: rgb}, each level's to-RGB output.

        Returns the whole image [N, H, W, 3], not pasted into the input.
        """
        x = _as_float(x, "x")
        if x.ndim != 4:
            channels = self.network.inputs()[0].shape[-1]
            raise ValueError(
                f"The network takes [N, H, W, {channels}], not {list(x.shape)}."
            )
        latents = self._latents(len(x), DEFAULT_SEED, z=z)
        if latents and z is None:
            logger.warning("No z given: using that of seed %d.", DEFAULT_SEED)
        output = _apply(self.network, self.checkpoint.variables, x, *latents.values())
        rgb, levels = output if isinstance(output, tuple) else (output, {})
        return (rgb, levels) if pyramid else rgb

    def _predict(
        self, image: ArrayLike, known: ArrayLike, latents: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        networks = tuple((role, c.network) for role, c in self.checkpoints.items())
        variables = {role: c.variables for role, c in self.checkpoints.items()}
        return _predict(
            self.family.predict, networks, variables, image, known, dict(latents)
        )

    def _latents(
        self, count: int, seed: int, **given: ArrayLike | None
    ) -> dict[str, jax.Array]:
        """Return the family's latents, drawn unless given."""
        networks = {role: c.network for role, c in self.checkpoints.items()}
        latents = self.family.draw(networks, seed, count)
        for name, value in given.items():
            if value is None:
                continue
            if name not in latents:
                raise ValueError(f"A {self.family.title} takes no {name}.")
            value, shape = jnp.asarray(value, jnp.float32), latents[name].shape
            if value.shape != shape:
                raise ValueError(
                    f"{name} must be {list(shape)}, not {list(value.shape)}."
                )
            latents[name] = value
        if "points" in latents and given.get("points") is None:
            _warn_of_missing_points()
        return latents


@functools.cache  # once, not for each crop
def _warn_of_missing_points() -> None:
    logger.warning("No keypoints given: using those of a typical face.")


def _as_float(x: ArrayLike, name: str) -> jax.Array:
    x = jnp.asarray(x)
    if x.dtype in (jnp.uint8, jnp.bool_):
        raise ValueError(f"{name} must be scaled floating point, not {x.dtype}.")
    return x.astype(jnp.float32)


@jax.jit(static_argnums=0)
def _apply(network: Network, variables: Any, *inputs: jax.Array) -> Any:
    return network.apply(variables, *inputs)


@jax.jit(static_argnums=(0, 1))
def _predict(
    predict: Any,
    networks: tuple[tuple[str, Network], ...],
    variables: Mapping[str, Any],
    image: jax.Array,
    known: jax.Array,
    latents: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    return predict(dict(networks), variables, image, known, latents)
