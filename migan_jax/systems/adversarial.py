"""The game that all families here play: a logistic critic with lazy R1.

(MI-GAN, section 3.3; Co-Mod-GAN, StyleGAN2.) Optionally with the L1 distance to the
truth inside holes, which Co-Mod-GAN's original adds. A subclass says how its generator
completes a batch and what else that generator minimises.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from migan_jax.data.mask_samplers import Sampler
from migan_jax.losses.adversarial import (
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from migan_jax.losses.reconstruction import l1_in_hole
from migan_jax.systems import base
from migan_jax.systems.base import Batch, Metrics, Params, Stats

Draws = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class AdversarialSystem:
    """A generator against a discriminator."""

    generator: nn.Module
    discriminator: nn.Module
    sampler: Sampler
    r1_gamma: float = 10.0
    r1_interval: int = 16
    l1_weight: float = 0.0

    players: ClassVar = {
        "generator": ("generator",),
        "discriminator": ("discriminator",),
    }
    regularized: ClassVar = ("discriminator",)
    exported: ClassVar = ("generator",)

    # What families differ in.

    def latents(self, key: jax.Array, samples: jax.Array) -> tuple[jax.Array, ...]:
        """What the generator takes beside its masked images."""
        raise NotImplementedError

    def draw(self, player: str, key: jax.Array, samples: jax.Array) -> Draws:
        """The noise and latents that a player's pass takes, for [N] samples."""
        raise NotImplementedError

    def complete(
        self, params: Params, stats: Stats, batch: Batch, drawn: Draws
    ) -> tuple[jax.Array, dict[int, jax.Array], Stats]:
        """The generator's picture, its levels, and its statistics afterwards."""
        raise NotImplementedError

    def extra_losses(
        self,
        pyramid: dict[int, jax.Array],
        frozen: Params,
        batch: Batch,
        drawn: Draws,
    ) -> Metrics:
        """What this family's generator minimises besides, weighted, by name."""
        return {}

    # The contract.

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        side = self.generator.resolution
        x = jnp.zeros((1, side, side, 4))
        first, second = jax.random.split(key)
        generator = self.generator.init(first, x, *self.latents(key, jnp.arange(1)))
        discriminator = self.discriminator.init(second, x)
        params = {
            "generator": generator["params"],
            "discriminator": discriminator["params"],
        }
        return params, {"generator": generator["stats"], "discriminator": {}}

    def inpaint(
        self,
        params: Params,
        stats: Stats,
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        variables = {"params": params["generator"], "stats": stats["generator"]}
        latents = self.latents(key, jnp.arange(len(image)))
        return base.completed(self.generator, variables, image, mask, *latents)

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        return base.prepare(batch, key, self.sampler)

    def loss(
        self,
        player: str,
        params: Params,
        stats: Stats,
        frozen: Params,
        batch: Batch,
        key: jax.Array,
        regularize: bool = False,
    ) -> tuple[jax.Array, tuple[Stats, Metrics]]:
        if regularize:
            return self.penalty(params, stats, batch)
        drawn = self.draw(player, key, batch["sample"])
        return self.loss_of(player, params, stats, frozen, batch, drawn)

    def loss_of(
        self,
        player: str,
        params: Params,
        stats: Stats,
        frozen: Params,
        batch: Batch,
        drawn: Draws,
    ) -> tuple[jax.Array, tuple[Stats, Metrics]]:
        """As `loss`, of given noise and latents."""
        image, mask = batch["image"], batch["mask"]
        completion, pyramid, stats = self.complete(params, stats, batch, drawn)
        fake = base.discriminator_input(base.composite(image, completion, mask), mask)
        fake_logits = self.judge(params, fake)
        if player == "generator":
            terms = {"adversarial": jnp.mean(generator_loss(fake_logits))}
            if self.l1_weight:
                distance = jnp.mean(l1_in_hole(completion, image, mask))
                terms["l1"] = self.l1_weight * distance
            terms |= self.extra_losses(pyramid, frozen, batch, drawn)
            metrics = {f"g/{name}": value for name, value in terms.items()}
            metrics["g/hole_psnr"] = base.hole_psnr(image, completion, mask)
            return sum(terms.values()), (stats, metrics)
        real_logits = self.judge(params, base.discriminator_input(image, mask))
        loss = jnp.mean(discriminator_loss(real_logits, fake_logits))
        metrics = {
            "d/adversarial": loss,
            "d/real": jnp.mean(real_logits),
            "d/fake": jnp.mean(fake_logits),
        }
        return loss, (stats, metrics)

    def penalty(
        self, params: Params, stats: Stats, batch: Batch
    ) -> tuple[jax.Array, tuple[Stats, Metrics]]:
        """R1, for all the steps until it is next due."""
        real = base.discriminator_input(batch["image"], batch["mask"])
        # Whatever the compute dtype: squared gradients want at least float32.
        exact = dataclasses.replace(
            self, discriminator=self.discriminator.clone(dtype=None)
        )
        r1 = jnp.mean(r1_penalty(lambda x: exact.judge(params, x), real))
        return self.r1_interval * self.r1_gamma * r1, (stats, {"d/r1": r1})

    def judge(self, params: Params, x: jax.Array) -> jax.Array:
        """The discriminator's logits, [N, 1]."""
        return self.discriminator.apply({"params": params["discriminator"]}, x)
