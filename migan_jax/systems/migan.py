"""MI-GAN: the game, and distillation from a frozen Co-Mod-GAN (section 3.3).

Without a teacher nothing is distilled, and with `Reparam(kernels=1)` nothing is
re-parametrised: the paper's ablation (Table 4) is a matter of arguments.
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
from migan_jax.losses.distillation import LOWEST_RESOLUTION, distillation_loss
from migan_jax.models import comodgan, migan
from migan_jax.models.discriminators import MIGANDiscriminator
from migan_jax.models.layers import Reparam
from migan_jax.models.noise import Noise, random_noise
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
class MIGAN:
    """The student; its teacher's weights are `frozen["teacher"]`, as variables."""

    generator: migan.Generator
    discriminator: MIGANDiscriminator
    sampler: Sampler
    optimizers: Mapping[str, optax.GradientTransformation]
    warmup_kimg: float = 0.0
    r1_gamma: float = 10.0
    r1_interval: int = 16
    l1_weight: float = 0.0
    teacher: comodgan.Generator | None = None
    distillation_weight: float = 2.0

    exported: ClassVar = logistic.EXPORTED
    batch_multiple: ClassVar = GROUP_SIZE

    @classmethod
    def from_config(
        cls, config: "ConfigDict", frozen: Mapping[str, Frozen], dtype: Any
    ) -> "MIGAN":
        form = "expanded" if config.reparam.expanded else "collapsed"
        reparam = Reparam(form, config.reparam.kernels)
        sizes = {**logistic.sizes_of(config, dtype), "reparam": reparam}
        teacher = None
        if "teacher" in frozen:
            teacher = frozen["teacher"].network.clone(dtype=sizes["dtype"])
        return cls(
            migan.Generator(**sizes),
            MIGANDiscriminator(**sizes),
            **logistic.game_of(config, reparam),
            teacher=teacher,
            distillation_weight=config.losses.distillation,
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        return logistic.init(self.generator, self.discriminator, key)

    def stages(self) -> list[Stage]:
        return logistic.stages(self)

    def prepare(self, batch: Batch, key: jax.Array, progress: jax.Array) -> Batch:
        return images.prepare(batch, key, self.sampler)

    # What the turns minimise.

    def generator_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """To be taken for real, to be near the truth, to do what the teacher does."""
        batch, judge = inputs.batch, logistic.judge_of(self.discriminator, params)
        completion, pyramid = self.complete(params, stats, inputs)
        terms = logistic.generator_terms(judge, batch, completion, self.l1_weight)
        if self.teacher is not None:
            target = jax.lax.stop_gradient(self.teach(inputs))
            distance = jnp.mean(distillation_loss(pyramid, target, batch["mask"]))
            terms["distillation"] = self.distillation_weight * distance
        return logistic.generator_value(terms, batch, completion, stats)

    def discriminator_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """To tell what is real from what is completed."""
        completion, _ = self.complete(params, stats, inputs)
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
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """The generator's picture, and each of its levels' part in it."""
        x = images.generator_input(inputs.batch["image"], inputs.batch["mask"])
        variables = {"params": params["generator"], "stats": stats["generator"]}
        noise = self.noise(inputs.key, inputs.batch["sample"])
        return self.generator.apply(variables, x, noise)

    def noise(self, key: jax.Array, samples: jax.Array) -> Noise:
        """The generator's, for [N] samples."""
        side = self.generator.resolution
        keys = sample_keys(key, 0, samples)
        return random_noise(keys, self.generator.noise_shapes(side, side))

    def teach(self, inputs: Inputs) -> dict[int, jax.Array]:
        """The teacher's levels, of noise and latents of its own."""
        x = images.generator_input(inputs.batch["image"], inputs.batch["mask"])
        latents = self.teachers_latents(inputs.key, inputs.batch["sample"])
        return self.teacher.apply(inputs.frozen["teacher"], x, *latents)[1]

    def teachers_latents(
        self, key: jax.Array, samples: jax.Array
    ) -> tuple[jax.Array, Noise]:
        """Its z and noise, for [N] samples."""
        noise, latents = (sample_keys(key, use, samples) for use in (1, 2))
        side = self.generator.resolution
        z = images.normal_latents(latents, self.teacher.z_dim)
        return z, random_noise(noise, self.teacher.noise_shapes(side, side))

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
        return images.completed(self.generator, variables, image, mask)

    def references(
        self,
        frozen: Mapping[str, Any],
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        if self.teacher is None:
            return {}
        z = jax.random.normal(key, (len(image), self.teacher.z_dim))
        variables = frozen["teacher"]
        return {"teacher": images.completed(self.teacher, variables, image, mask, z)}


def check_settings(config: "ConfigDict") -> None:
    """UserError for a configuration of which no system can be made."""
    logistic.check_settings(config)
    if config.teacher and config.resolution < LOWEST_RESOLUTION:
        raise UserError(
            f"At {config.resolution} pixels nothing is distilled, but from "
            f"{LOWEST_RESOLUTION} up: leave teacher empty."
        )
    if config.teacher and not config.losses.distillation:
        raise UserError(
            "losses.distillation is 0, which makes the teacher's work useless: raise "
            "it, or leave teacher empty."
        )
