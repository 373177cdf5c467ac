"""Co-Mod-GAN (Zhao et al., ICLR 2021): training MI-GAN's teacher.

The logistic game with style mixing and the encoder's dropout.
"""

import dataclasses

import jax
import jax.numpy as jnp

from migan_jax.data.transforms import sample_keys
from migan_jax.models.noise import random_noise
from migan_jax.systems import base
from migan_jax.systems.adversarial import AdversarialSystem, Draws
from migan_jax.systems.base import Batch, Params, Stats, normal_latents


@dataclasses.dataclass(frozen=True)
class CoModGAN(AdversarialSystem):
    """A generator of many completions, one per latent."""

    mixing_probability: float = 0.5

    def latents(self, key: jax.Array, samples: jax.Array) -> tuple[jax.Array, ...]:
        return (normal_latents(sample_keys(key, 0, samples), self.generator.z_dim),)

    def draw(self, player: str, key: jax.Array, samples: jax.Array) -> Draws:
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
            "z": normal_latents(first, network.z_dim),
            # An index beyond the last style mixes nothing.
            "mixing": (
                normal_latents(second, network.z_dim),
                jnp.where(mixes, index, network.num_ws),
            ),
        }

    def complete(
        self, params: Params, stats: Stats, batch: Batch, drawn: Draws
    ) -> tuple[jax.Array, dict[int, jax.Array], Stats]:
        x = base.generator_input(batch["image"], batch["mask"])
        variables = {"params": params["generator"], "stats": stats["generator"]}
        (completion, pyramid), changed = self.generator.apply(
            variables, x, **drawn, mutable=["stats"]
        )
        return completion, pyramid, {**stats, "generator": changed["stats"]}
