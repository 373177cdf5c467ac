"""Co-Mod-GAN (Zhao et al., ICLR 2021), MI-GAN's teacher.

A logistic GAN with style mixing and dropout in the encoder.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from migan_jax.config import DISTILLATION_PARTS, refuse_settings
from migan_jax.data.transforms import sample_keys
from migan_jax.errors import UserError
from migan_jax.models import comodgan
from migan_jax.models.discriminators import CoModGANDiscriminator
from migan_jax.models.noise import random_noise
from migan_jax.systems import images, logistic
from migan_jax.systems.base import Frozen, Inputs, Params, Stats

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class CoModGAN(logistic.LogisticGAN):
    """A generator of diverse completions, one per latent."""

    mixing_probability: float = 0.5

    @classmethod
    def from_config(
        cls, config: "ConfigDict", frozen: Mapping[str, Frozen], dtype: Any
    ) -> "CoModGAN":
        settings = logistic.network_settings(config, dtype)
        dims = {key: config.comodgan[key] for key in ("z_dim", "w_dim", "encoder_dim")}
        return cls(
            comodgan.CoModGANGenerator(**settings, **dims),
            CoModGANDiscriminator(**settings),
            **logistic.gan_settings(config),
            mixing_probability=config.comodgan.mixing_probability,
        )

    def complete(
        self, params: Params, stats: Stats, inputs: Inputs
    ) -> tuple[jax.Array, logistic.Pyramid, Stats]:
        """As for every GAN; the statistics hold the average style."""
        x = images.generator_input(inputs.batch["image"], inputs.batch["mask"])
        variables = {"params": params["generator"], "stats": stats["generator"]}
        random_inputs = self.draw(inputs.key, inputs.batch["sample"])
        (completion, pyramid), updated = self.generator.apply(
            variables, x, **random_inputs, mutable=["stats"]
        )
        return completion, pyramid, {**stats, "generator": updated["stats"]}

    def draw(self, key: jax.Array, samples: jax.Array) -> dict[str, Any]:
        """Draw noise, dropout keys, latents and style mixing for [N] samples."""
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
            # An index after the last style mixes nothing.
            "mixing": (
                images.normal_latents(second, network.z_dim),
                jnp.where(mixes, index, network.num_ws),
            ),
        }

    def latents(self, key: jax.Array, samples: jax.Array) -> tuple[jax.Array]:
        """Draw one z for each of [N] samples."""
        keys = sample_keys(key, 0, samples)
        return (images.normal_latents(keys, self.generator.z_dim),)


def check_settings(config: "ConfigDict") -> None:
    """Raise UserError for a configuration that this system does not support."""
    logistic.check_settings(config)
    if config.teacher:
        raise UserError("teacher is for system=migan. Leave it empty for comodgan.")
    refuse_settings(config, *DISTILLATION_PARTS)
