"""Adversarial training of MI-GAN and Co-Mod-GAN: logistic losses with lazy R1.

(MI-GAN, section 3.3; Co-Mod-GAN; StyleGAN2.) Optional: an L1 loss in holes, as in the
original Co-Mod-GAN, and, for fine-tuning, a warm-up of the discriminator alone.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from migan_jax.data.mask_samplers import SAMPLERS, Sampler
from migan_jax.errors import UserError
from migan_jax.losses import gan
from migan_jax.losses.reconstruction import l1_in_hole
from migan_jax.models.channels import levels
from migan_jax.models.layers import Reparam
from migan_jax.ops.minibatch_std import GROUP_SIZE
from migan_jax.ops.partition import split_images
from migan_jax.systems import images
from migan_jax.systems.base import (
    Batch,
    Inputs,
    Metrics,
    Optimizer,
    Params,
    Stage,
    Stats,
    Turn,
    Value,
)
from migan_jax.systems.optimizers import freeze_levels, lazy_adam

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Pyramid = dict[int, jax.Array]  # by resolution


@dataclasses.dataclass(frozen=True)
class LogisticGAN:
    """A generator and a discriminator with logistic losses.

    Subclasses define `from_config`, `complete`, and `latents` if the generator has any.
    """

    generator: nn.Module
    discriminator: nn.Module
    sampler: Sampler
    optimizers: Mapping[str, optax.GradientTransformation]  # by network
    warmup_kimg: float = 0.0
    r1_gamma: float = 10.0
    r1_interval: int = 16
    l1_weight: float = 0.0
    reuse_completions: bool = False

    exported: ClassVar = ("generator",)
    batch_multiple: ClassVar = GROUP_SIZE

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        x = jnp.zeros((1, self.generator.resolution, self.generator.resolution, 4))
        g_key, d_key = jax.random.split(key)
        latents = self.latents(key, jnp.arange(1))
        g_variables = self.generator.init(g_key, x, *latents)
        d_params = self.discriminator.init(d_key, x)["params"]
        params = {"generator": g_variables["params"], "discriminator": d_params}
        return params, {"generator": g_variables["stats"], "discriminator": {}}

    def stages(self) -> list[Stage]:
        """Return an optional warm-up of the discriminator and the adversarial stage."""
        g, d = ("generator",), ("discriminator",)
        generator = Turn("generator", self.generator_loss, g, stream=1)
        discriminator = Turn("discriminator", self.discriminator_loss, d, stream=2)
        # A separate turn with the discriminator's optimizer, after the others.
        r1 = Turn("r1", self.r1_loss, d, stream=3, every=self.r1_interval)
        optimizers = {
            name: Optimizer((name,), rule) for name, rule in self.optimizers.items()
        }
        warm_up = Stage(
            "warm-up", ((discriminator,), (r1,)), optimizers, self.warmup_kimg
        )
        players = ((generator,), (discriminator,))
        if self.reuse_completions:
            players = ((Turn("players", self.joint_loss, g + d, stream=1),),)
        main = Stage("main", (*players, (r1,)), optimizers)
        return [warm_up, main] if self.warmup_kimg else [main]

    def prepare(self, batch: Batch, key: jax.Array, progress: jax.Array) -> Batch:
        return images.prepare(batch, key, self.sampler)

    # The turns' losses.

    def generator_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the sum of `generator_terms`; log them and the PSNR in the hole."""
        completion, pyramid, stats = self.complete(params, stats, inputs)
        loss, metrics = self._generator_value(params, inputs, completion, pyramid)
        return loss, (stats, metrics)

    def discriminator_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the loss of classifying real images and completions."""
        completion, _, stats = self.complete(params, stats, inputs)
        loss, metrics = self._discriminator_value(params, inputs, completion)
        return loss, (stats, metrics)

    def joint_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the sum of both losses, of the same completions.

        The gradients are those of each network's own loss.
        """
        completion, pyramid, stats = self.complete(params, stats, inputs)
        constant = jax.lax.stop_gradient(params["discriminator"])
        g_loss, g_metrics = self._generator_value(
            {**params, "discriminator": constant}, inputs, completion, pyramid
        )
        completion = jax.lax.stop_gradient(completion)
        d_loss, d_metrics = self._discriminator_value(params, inputs, completion)
        return g_loss + d_loss, (stats, g_metrics | d_metrics)

    def _generator_value(
        self, params: Params, inputs: Inputs, completion: jax.Array, pyramid: Pyramid
    ) -> tuple[jax.Array, Metrics]:
        """Return the generator's loss and metrics."""
        terms = self.generator_terms(params, inputs, completion, pyramid)
        metrics = {f"g/{name}": term for name, term in terms.items()}
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        metrics["g/hole_psnr"] = images.hole_psnr(image, completion, mask)
        return sum(terms.values()), metrics

    def _discriminator_value(
        self, params: Params, inputs: Inputs, completion: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Return the discriminator's loss and metrics."""
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        completed = images.composite(image, completion, mask)
        fake, real = self._discriminate(params, mask, completed, image)
        loss = jnp.mean(gan.logistic_discriminator_loss(real, fake))
        return loss, {
            "d/adversarial": loss,
            "d/real": jnp.mean(real),
            "d/fake": jnp.mean(fake),
        }

    def generator_terms(
        self, params: Params, inputs: Inputs, completion: jax.Array, pyramid: Pyramid
    ) -> dict[str, jax.Array]:
        """Return the weighted terms: the adversarial loss, and L1 in holes."""
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        fake = images.composite(image, completion, mask)
        (logits,) = self._discriminate(params, mask, fake)
        terms = {"adversarial": jnp.mean(gan.logistic_generator_loss(logits))}
        if self.l1_weight:
            terms["l1"] = self.l1_weight * jnp.mean(l1_in_hole(completion, image, mask))
        return terms

    def r1_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return R1, weighted for all steps of its interval; log it unweighted.

        It is computed in float32, which its squared gradients need.
        """
        network = self.discriminator.clone(dtype=None)
        variables = {"params": params["discriminator"]}
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        real = images.discriminator_input(image, mask)
        r1 = jnp.mean(gan.r1_penalty(lambda x: network.apply(variables, x), real))
        return self.r1_interval * self.r1_gamma * r1, (stats, {"d/r1": r1})

    def _discriminate(
        self, params: Params, mask: jax.Array, *batches: jax.Array
    ) -> list[jax.Array]:
        """Return the logits [N, 1] of each batch of images, in one pass."""
        inputs = [images.discriminator_input(batch, mask) for batch in batches]
        # Samples take turns, so that devices need not exchange any.
        x = jnp.stack(inputs, axis=1).reshape(-1, *inputs[0].shape[1:])
        variables = {"params": params["discriminator"]}
        logits = self.discriminator.apply(variables, split_images(x), len(batches))
        return list(jnp.moveaxis(logits.reshape(-1, len(batches), 1), 1, 0))

    # The generator.

    def complete(
        self, params: Params, stats: Stats, inputs: Inputs
    ) -> tuple[jax.Array, Pyramid, Stats]:
        """Return the output, each level's to-RGB output, and the new statistics."""
        raise NotImplementedError

    def latents(self, key: jax.Array, samples: jax.Array) -> tuple[jax.Array, ...]:
        """Draw the inputs besides image and mask, for [N] samples."""
        return ()

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
        return images.inpaint(self.generator, variables, image, mask, *latents)

    def references(
        self,
        frozen: Mapping[str, Any],
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        return {}


# Configuration.


def network_settings(config: "ConfigDict", dtype: Any) -> dict[str, Any]:
    """Return the arguments of both networks."""
    return {
        "resolution": config.resolution,
        "channel_base": config.networks.channel_base,
        "channel_max": config.networks.channel_max,
        # None: the dtype of the images, which is float32.
        "dtype": None if dtype == jnp.float32 else dtype,
        "remat": config.networks.remat,
    }


def gan_settings(
    config: "ConfigDict", reparam: Reparam | None = None, eps_root: float = 0.0
) -> dict[str, Any]:
    """Return the arguments of a logistic GAN besides its networks."""
    return {
        "sampler": SAMPLERS[config.data.mask_kind],
        "optimizers": make_optimizers(config, reparam, eps_root),
        "warmup_kimg": config.optimizer.warmup_kimg,
        "r1_gamma": config.losses.r1_gamma,
        "r1_interval": config.losses.r1_interval,
        "l1_weight": config.losses.l1,
        "reuse_completions": config.losses.reuse_completions,
    }


def make_optimizers(
    config: "ConfigDict", reparam: Reparam | None, eps_root: float = 0.0
) -> dict[str, optax.GradientTransformation]:
    """Make Adam for each network; like the reference, both as for a lazy penalty.

    `eps_root` is the generator's, for guidance, which differentiates its steps.
    """
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
        name: lazy_adam(
            rates[name],
            settings.b1,
            settings.b2,
            intervals[name],
            reparam,
            eps_root if name == "generator" else 0.0,
        )
        for name in rates
    }
    if count := settings.frozen_levels:
        frozen = [f"b{level}" for level in levels(config.resolution)[-count:]]
        optimizers["discriminator"] = freeze_levels(optimizers["discriminator"], frozen)
    return optimizers


def check_settings(config: "ConfigDict") -> None:
    """Raise UserError for unsupported network sizes."""
    try:
        levels(config.resolution)
    except ValueError as error:
        raise UserError(str(error)) from error
    if config.networks.channel_base < config.resolution:
        raise UserError(
            f"networks.channel_base is {config.networks.channel_base}, but must be at "
            f"least the resolution, {config.resolution}."
        )


def check_init(config: "ConfigDict", pretrained: Collection[str]) -> None:
    """Raise UserError if fine-tuning settings lack their pretrained networks.

    Args:
      pretrained: networks whose weights --init-from loads.
    """
    if config.optimizer.warmup_kimg and not pretrained:
        raise UserError(
            "optimizer.warmup_kimg first trains the discriminator alone, which needs a "
            "pretrained generator. Pass one with --init-from, or set it to 0."
        )
    if config.optimizer.frozen_levels and "discriminator" not in pretrained:
        raise UserError(
            "optimizer.frozen_levels needs a pretrained discriminator. Pass a run's "
            "workdir with --init-from, or set it to 0."
        )
