"""MI-GAN: the game, and distillation from a frozen Co-Mod-GAN (section 3.3).

Without a teacher nothing is distilled, and with `Reparam(kernels=1)` nothing is
re-parametrised: the paper's ablation (Table 4) is a matter of arguments.
"""

import dataclasses

import jax
import jax.numpy as jnp

from migan_jax.data.transforms import sample_keys
from migan_jax.losses.distillation import distillation_loss
from migan_jax.models import comodgan
from migan_jax.models.noise import random_noise
from migan_jax.systems import base
from migan_jax.systems.adversarial import AdversarialSystem, Draws
from migan_jax.systems.base import Batch, Metrics, Params, Stats, normal_latents


@dataclasses.dataclass(frozen=True)
class MIGAN(AdversarialSystem):
    """The student; its teacher's weights are `frozen["teacher"]`, as variables."""

    teacher: comodgan.Generator | None = None
    distillation_weight: float = 2.0

    def latents(self, key: jax.Array, samples: jax.Array) -> tuple[jax.Array, ...]:
        return ()

    def draw(self, player: str, key: jax.Array, samples: jax.Array) -> Draws:
        own, noise, latents = (sample_keys(key, use, samples) for use in range(3))
        side = self.generator.resolution
        drawn = {"noise": random_noise(own, self.generator.noise_shapes(side, side))}
        if player == "generator" and self.teacher is not None:
            shapes = self.teacher.noise_shapes(side, side)
            drawn["teacher_noise"] = random_noise(noise, shapes)
            drawn["z"] = normal_latents(latents, self.teacher.z_dim)
        return drawn

    def complete(
        self, params: Params, stats: Stats, batch: Batch, drawn: Draws
    ) -> tuple[jax.Array, dict[int, jax.Array], Stats]:
        x = base.generator_input(batch["image"], batch["mask"])
        variables = {"params": params["generator"], "stats": stats["generator"]}
        completion, pyramid = self.generator.apply(variables, x, drawn["noise"])
        return completion, pyramid, stats

    def extra_losses(
        self,
        pyramid: dict[int, jax.Array],
        frozen: Params,
        batch: Batch,
        drawn: Draws,
    ) -> Metrics:
        if self.teacher is None:
            return {}
        x = base.generator_input(batch["image"], batch["mask"])
        _, target = self.teacher.apply(
            frozen["teacher"], x, drawn["z"], drawn["teacher_noise"]
        )
        target = jax.lax.stop_gradient(target)
        distance = jnp.mean(distillation_loss(pyramid, target, batch["mask"]))
        return {"distillation": self.distillation_weight * distance}
