"""Co-Mod-GAN (Zhao et al., ICLR 2021): training MI-GAN's teacher.

The logistic game with style mixing and the encoder's dropout.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from migan_jax.data.mask_samplers import Sampler
from migan_jax.data.transforms import sample_keys
from migan_jax.errors import UserError
from migan_jax.models import comodgan
from migan_jax.models.discriminators import CoModGANDiscriminator
from migan_jax.models.noise import random_noise
from migan_jax.ops.minibatch_std import GROUP_SIZE
from migan_jax.systems import images, logistic
from migan_jax.systems.base import (
    Batch,
    Frozen,
    Inputs,
    Params,
    Stage,
    Stats,
    Value,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class CoModGAN:
    """A generator of many completions, one per latent."""

    generator: comodgan.Generator
    discriminator: CoModGANDiscriminator
    sampler: Sampler
    optimizers: Mapping[str, optax.GradientTransformation]
    warmup_kimg: float = 0.0
    r1_gamma: float = 10.0
    r1_interval: int = 16
    l1_weight: float = 0.0
    mixing_probability: float = 0.5

    exported: ClassVar = logistic.EXPORTED
    batch_multiple: ClassVar = GROUP_SIZE

    @classmethod
    def from_config(
        cls, config: "ConfigDict", frozen: Mapping[str, Frozen], dtype: Any
    ) -> "CoModGAN":
        sizes = logistic.sizes_of(config, dtype)
        codes = {key: config.comodgan[key] for key in ("z_dim", "w_dim", "encoder_dim")}
        return cls(
            comodgan.Generator(**sizes, **codes),
            CoModGANDiscriminator(**sizes),
            **logistic.game_of(config),
            mixing_probability=config.comodgan.mixing_probability,
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        latents = self.latents(key, jnp.arange(1))
        return logistic.init(self.generator, self.discriminator, key, latents)

    def stages(self) -> list[Stage]:
        return logistic.stages(self)

    def prepare(self, batch: Batch, key: jax.Array, progress: jax.Array) -> Batch:
        return images.prepare(batch, key, self.sampler)

    # What the turns minimise.

    def generator_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """To be taken for real, and to be near the truth."""
        batch, judge = inputs.batch, logistic.judge_of(self.discriminator, params)
        completion, stats = self.complete(params, stats, inputs)
        terms = logistic.generator_terms(judge, batch, completion, self.l1_weight)
        return logistic.generator_value(terms, batch, completion, stats)

    def discriminator_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """To tell what is real from what is completed."""
        completion, stats = self.complete(params, stats, inputs)
        judge = logistic.judge_of(self.discriminator, params)
        return logistic.discriminator_value(judge, inputs.batch, completion, stats)

    def r1_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """R1, for all the steps until it is next due."""
        judge = logistic.judge_of(self.discriminator, params, exact=True)
        weight = self.r1_interval * self.r1_gamma
        return logistic.r1_value(judge, inputs.batch, weight, stats)

    # What they are made of.

    def complete(
        self, params: Params, stats: Stats, inputs: Inputs
    ) -> tuple[jax.Array, Stats]:
        """The generator's picture, and statistics with its average style."""
        x = images.generator_input(inputs.batch["image"], inputs.batch["mask"])
        variables = {"params": params["generator"], "stats": stats["generator"]}
        drawn = self.draw(inputs.key, inputs.batch["sample"])
        (completion, _), changed = self.generator.apply(
            variables, x, **drawn, mutable=["stats"]
        )
        return completion, {**stats, "generator": changed["stats"]}

    def draw(self, key: jax.Array, samples: jax.Array) -> dict[str, Any]:
        """Noise, latents, and which are mixed where, for [N] samples."""
        noise, dropout, first, second, mixed, where = (
            sample_keys(key, use, samples) for use in range(6)
        )
        network, side = self.generator, self.generator.resolution
        index = jax.vmap(lambda k: jax.random.randint(k, (), 1, network.num_ws))(where)
        mixes = jax.vmap(lambda k: jax.random.bernoulli(k, self.mixing_probability))(
            mixed
        )
        return {
            "noise": random_noise(noise, network.noise_shapes(side, side)),
            "dropout_keys": dropout,
            "z": images.normal_latents(first, network.z_dim),
            # An index beyond the last style mixes nothing.
            "mixing": (
                images.normal_latents(second, network.z_dim),
                jnp.where(mixes, index, network.num_ws),
            ),
        }

    def latents(self, key: jax.Array, samples: jax.Array) -> jax.Array:
        """One z for each of [N] samples."""
        return images.normal_latents(sample_keys(key, 0, samples), self.generator.z_dim)

    # To look at.

    def inpaint(
        self,
        params: Params,
        stats: Stats,
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        variables = {"params": params["generator"], "stats": stats["generator"]}
        z = self.latents(key, jnp.arange(len(image)))
        return images.completed(self.generator, variables, image, mask, z)

    def references(
        self,
        frozen: Mapping[str, Any],
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        return {}


def check_settings(config: "ConfigDict") -> None:
    """UserError for a configuration of which no system can be made."""
    logistic.check_settings(config)
    if config.teacher:
        raise UserError("teacher is for system migan: a comodgan has none.")
