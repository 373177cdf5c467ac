"""The game that MI-GAN and Co-Mod-GAN play: a logistic discriminator with lazy R1.

(MI-GAN, section 3.3; Co-Mod-GAN, StyleGAN2.) Optionally with the L1 distance to the
truth inside holes, which Co-Mod-GAN's original adds, and with a warm-up for generators
that are good already, in which the discriminator learns alone.
"""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.errors import UserError
from migan_jax.losses import gan
from migan_jax.losses.reconstruction import l1_in_hole
from migan_jax.models.channels import levels
from migan_jax.models.layers import Reparam
from migan_jax.systems.base import (
    Batch,
    Loss,
    Optimizer,
    Params,
    Stage,
    Stats,
    Turn,
    Value,
)
from migan_jax.systems.images import composite, discriminator_input, hole_psnr
from migan_jax.systems.optimizers import lazy_adam, without_levels

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Judge = Callable[[jax.Array], jax.Array]  # what a discriminator sees -> logits

EXPORTED = ("generator",)


def init(
    generator: nn.Module, discriminator: nn.Module, key: jax.Array, *latents: jax.Array
) -> tuple[Params, Stats]:
    """Parameters and statistics of both networks."""
    x = jnp.zeros((1, generator.resolution, generator.resolution, 4))
    first, second = jax.random.split(key)
    made = generator.init(first, x, *latents)
    judging = discriminator.init(second, x)
    params = {"generator": made["params"], "discriminator": judging["params"]}
    return params, {"generator": made["stats"], "discriminator": {}}


class Game(Protocol):
    """A system that plays it."""

    optimizers: Mapping[str, optax.GradientTransformation]  # by network
    warmup_kimg: float
    r1_interval: int
    generator_loss: Loss
    discriminator_loss: Loss
    r1_loss: Loss


def stages(game: Game) -> list[Stage]:
    """The discriminator alone, if there is a warm-up, then both in turns."""
    first, second = ("generator",), ("discriminator",)
    generator = Turn("generator", game.generator_loss, first, stream=1)
    discriminator = Turn("discriminator", game.discriminator_loss, second, stream=2)
    # A turn of its own on the discriminator's optimizer, after the others.
    r1 = Turn("r1", game.r1_loss, second, stream=3, every=game.r1_interval)
    moving = {name: Optimizer((name,), rule) for name, rule in game.optimizers.items()}
    warm_up = Stage("warm-up", ((discriminator,), (r1,)), moving, game.warmup_kimg)
    main = Stage("main", ((generator,), (discriminator,), (r1,)), moving)
    return [warm_up, main] if game.warmup_kimg else [main]


def generator_terms(
    judge: Judge, batch: Batch, completion: jax.Array, l1_weight: float
) -> dict[str, jax.Array]:
    """What the generator minimises in this game, weighted, by name."""
    image, mask = batch["image"], batch["mask"]
    fake = discriminator_input(composite(image, completion, mask), mask)
    terms = {"adversarial": jnp.mean(gan.logistic_generator_loss(judge(fake)))}
    if l1_weight:
        terms["l1"] = l1_weight * jnp.mean(l1_in_hole(completion, image, mask))
    return terms


def generator_value(
    terms: Mapping[str, jax.Array], batch: Batch, completion: jax.Array, stats: Stats
) -> Value:
    """The sum of its terms; they are reported, and how near the completion is."""
    metrics = {f"g/{name}": term for name, term in terms.items()}
    metrics["g/hole_psnr"] = hole_psnr(batch["image"], completion, batch["mask"])
    return sum(terms.values()), (stats, metrics)


def discriminator_value(
    judge: Judge, batch: Batch, completion: jax.Array, stats: Stats
) -> Value:
    """How well completions are told from real pictures."""
    image, mask = batch["image"], batch["mask"]
    fake = judge(discriminator_input(composite(image, completion, mask), mask))
    real = judge(discriminator_input(image, mask))
    loss = jnp.mean(gan.logistic_discriminator_loss(real, fake))
    metrics = {
        "d/adversarial": loss,
        "d/real": jnp.mean(real),
        "d/fake": jnp.mean(fake),
    }
    return loss, (stats, metrics)


def r1_value(judge: Judge, batch: Batch, weight: float, stats: Stats) -> Value:
    """R1 with its weight; without, it is reported."""
    real = discriminator_input(batch["image"], batch["mask"])
    r1 = jnp.mean(gan.r1_penalty(judge, real))
    return weight * r1, (stats, {"d/r1": r1})


def judge_of(discriminator: nn.Module, params: Params, exact: bool = False) -> Judge:
    """The discriminator with its weights as they are.

    Args:
      exact: in float32 whatever its dtype, which the squared gradients of R1 want.
    """
    network = discriminator.clone(dtype=None) if exact else discriminator
    return lambda x: network.apply({"params": params["discriminator"]}, x)


# From a configuration.


def sizes_of(config: "ConfigDict", dtype: Any) -> dict[str, Any]:
    """What both networks are made with."""
    return {
        "resolution": config.resolution,
        "channel_base": config.networks.channel_base,
        "channel_max": config.networks.channel_max,
        # None computes in the dtype of the images, which is float32.
        "dtype": None if dtype == jnp.float32 else dtype,
        "remat": config.networks.remat,
    }


def game_of(config: "ConfigDict", reparam: Reparam | None = None) -> dict[str, Any]:
    """What a system of this game is made with besides its networks."""
    return {
        "sampler": SAMPLERS[config.data.mask_kind],
        "optimizers": optimizers_of(config, reparam),
        "warmup_kimg": config.optimizer.warmup_kimg,
        "r1_gamma": config.losses.r1_gamma,
        "r1_interval": config.losses.r1_interval,
        "l1_weight": config.losses.l1,
    }


def optimizers_of(
    config: "ConfigDict", reparam: Reparam | None
) -> dict[str, optax.GradientTransformation]:
    """Adam for each network, as if both had a lazy penalty, like the reference."""
    settings = config.optimizer
    rates = {
        "generator": settings.learning_rate,
        "discriminator": settings.discriminator_learning_rate or settings.learning_rate,
    }
    intervals = {
        "generator": settings.generator_interval,
        "discriminator": config.losses.r1_interval,
    }
    optimizers = {
        name: lazy_adam(rates[name], settings.b1, settings.b2, intervals[name], reparam)
        for name in rates
    }
    if count := settings.frozen_levels:
        largest_first = levels(config.resolution)[::-1]
        still = [f"b{level}" for level in largest_first[:count]]
        optimizers["discriminator"] = without_levels(optimizers["discriminator"], still)
    return optimizers


def check_settings(config: "ConfigDict") -> None:
    """UserError for sizes that the networks cannot have."""
    try:
        levels(config.resolution)
    except ValueError as error:
        raise UserError(f"resolution: {error}") from error
    if config.networks.channel_base < config.resolution:
        raise UserError(
            f"networks.channel_base is {config.networks.channel_base}, but must be at "
            f"least {config.resolution}, the resolution."
        )


def check_start(config: "ConfigDict", brought: Collection[str]) -> None:
    """UserError for a recipe for fine-tuning without the networks that it tunes.

    Args:
      brought: networks that the run begins with the weights of.
    """
    if config.optimizer.warmup_kimg and not brought:
        raise UserError(
            "optimizer.warmup_kimg lets the discriminator alone learn at first, which "
            "is for a generator that is good already: name one with --init-from, or "
            "set it to 0."
        )
    if config.optimizer.frozen_levels and "discriminator" not in brought:
        raise UserError(
            "optimizer.frozen_levels keeps levels of a discriminator that has learned: "
            "name a run's workdir with --init-from, or set it to 0."
        )
