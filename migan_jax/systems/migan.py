"""MI-GAN: adversarial training with distillation from a Co-Mod-GAN (section 3.3).

For the paper's ablation (Table 4), leave out the teacher to disable distillation, and
use `Reparam(kernels=1)` to disable re-parametrisation.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from migan_jax.data.transforms import sample_keys
from migan_jax.errors import UserError
from migan_jax.losses.distillation import MIN_DISTILLED_RESOLUTION, distillation_loss
from migan_jax.models import comodgan, migan
from migan_jax.models.discriminators import MIGANDiscriminator
from migan_jax.models.layers import Reparam
from migan_jax.models.noise import Noise, random_noise
from migan_jax.systems import images, logistic
from migan_jax.systems.base import Frozen, Inputs, Params, Stats

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class MIGAN(logistic.LogisticGAN):
    """The student; `inputs.frozen["teacher"]` holds its teacher's variables."""

    teacher: comodgan.CoModGANGenerator | None = None
    distillation_weight: float = 2.0

    @classmethod
    def from_config(
        cls, config: "ConfigDict", frozen: Mapping[str, Frozen], dtype: Any
    ) -> "MIGAN":
        form = "expanded" if config.reparam.expanded else "collapsed"
        reparam = Reparam(form, config.reparam.kernels)
        settings = {**logistic.network_settings(config, dtype), "reparam": reparam}
        teacher = None
        if "teacher" in frozen:
            teacher = frozen["teacher"].network.clone(dtype=settings["dtype"])
        return cls(
            migan.MIGANGenerator(**settings),
            MIGANDiscriminator(**settings),
            **logistic.gan_settings(config, reparam),
            teacher=teacher,
            distillation_weight=config.losses.distillation,
        )

    def generator_terms(
        self,
        params: Params,
        inputs: Inputs,
        completion: jax.Array,
        pyramid: logistic.Pyramid,
    ) -> dict[str, jax.Array]:
        """Add the distillation loss, if there is a teacher."""
        terms = super().generator_terms(params, inputs, completion, pyramid)
        if self.teacher is not None:
            target = jax.lax.stop_gradient(self.teach(inputs))
            losses = distillation_loss(pyramid, target, inputs.batch["mask"])
            terms["distillation"] = self.distillation_weight * jnp.mean(losses)
        return terms

    def complete(
        self, params: Params, stats: Stats, inputs: Inputs
    ) -> tuple[jax.Array, logistic.Pyramid, Stats]:
        x = images.generator_input(inputs.batch["image"], inputs.batch["mask"])
        variables = {"params": params["generator"], "stats": stats["generator"]}
        noise = self.noise(inputs.key, inputs.batch["sample"])
        return *self.generator.apply(variables, x, noise), stats

    def noise(self, key: jax.Array, samples: jax.Array) -> Noise:
        """Draw the generator's noise for [N] samples."""
        side = self.generator.resolution
        keys = sample_keys(key, 0, samples)
        return random_noise(keys, self.generator.noise_shapes(side, side))

    def teach(self, inputs: Inputs) -> logistic.Pyramid:
        """Return the to-RGB output of each level of the teacher."""
        x = images.generator_input(inputs.batch["image"], inputs.batch["mask"])
        z_and_noise = self.teacher_inputs(inputs.key, inputs.batch["sample"])
        return self.teacher.apply(inputs.frozen["teacher"], x, *z_and_noise)[1]

    def teacher_inputs(
        self, key: jax.Array, samples: jax.Array
    ) -> tuple[jax.Array, Noise]:
        """Draw the teacher's z and noise for [N] samples."""
        noise, latents = (sample_keys(key, use, samples) for use in (1, 2))
        side = self.generator.resolution
        z = images.normal_latents(latents, self.teacher.z_dim)
        return z, random_noise(noise, self.teacher.noise_shapes(side, side))

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
        return {"teacher": images.inpaint(self.teacher, variables, image, mask, z)}


def check_settings(config: "ConfigDict") -> None:
    """Raise UserError for a configuration that this system does not support."""
    logistic.check_settings(config)
    if config.teacher and config.resolution < MIN_DISTILLED_RESOLUTION:
        raise UserError(
            f"teacher: distillation needs a resolution of at least "
            f"{MIN_DISTILLED_RESOLUTION}, not {config.resolution}. Leave teacher empty."
        )
    if config.teacher and not config.losses.distillation:
        raise UserError(
            "losses.distillation is 0, so the teacher has no effect. Raise it, or "
            "leave teacher empty."
        )
