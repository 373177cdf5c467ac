"""MI-GAN: adversarial training with distillation from a Co-Mod-GAN (section 3.3).

For the paper's ablation (Table 4), leave out the teacher to disable distillation, and
use `Reparam(kernels=1)` to disable re-parametrisation.

Not in the paper: an auxiliary network of MI-GAN's layout, which sees the whole image,
may guide the generator's encoder (systems/guidance.py). It is trained first.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from migan_jax.config import DISTILLATION_PARTS, refuse_settings
from migan_jax.data.transforms import sample_keys
from migan_jax.errors import UserError
from migan_jax.losses.distillation import MIN_DISTILLED_RESOLUTION, distillation_loss
from migan_jax.models import comodgan, migan
from migan_jax.models.discriminators import MIGANDiscriminator
from migan_jax.models.distillation import GuidedFeatures
from migan_jax.models.layers import Reparam
from migan_jax.models.noise import Noise, random_noise
from migan_jax.systems import images, logistic
from migan_jax.systems.base import (
    Frozen,
    Inputs,
    Optimizer,
    Params,
    Stage,
    Stats,
    Turn,
    Value,
    init_networks,
)
from migan_jax.systems.guidance import Guide, Terms, TermsFunction, check_guidance

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class MIGAN(logistic.LogisticGAN):
    """The student; `inputs.frozen["teacher"]` holds its teacher's variables."""

    teacher: comodgan.CoModGANGenerator | None = None
    distillation_weight: float = 2.0
    guide: Guide | None = None
    auxiliary: migan.MIGANAuxiliary | None = None  # of the guidance, if it needs one
    auxiliary_optimizer: optax.GradientTransformation | None = None
    meta_optimizer: optax.GradientTransformation | None = None
    pretraining_kimg: float = 0.0  # of the auxiliary network
    meta_delay_kimg: float = 0.0

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
        guide = Guide.from_config(
            config,
            migan.guided_channels(
                *(settings[n] for n in ("resolution", "channel_base", "channel_max"))
            ),
        )
        options = config.distillation
        gan = logistic.gan_settings(
            config, reparam, eps_root=0.0 if guide is None else options.eps_root
        )
        if guide is not None:
            plain = logistic.make_optimizers(config, reparam)["generator"]
            gan |= {
                "guide": guide,
                "auxiliary": migan.MIGANAuxiliary(**settings)
                if guide.needs_teacher
                else None,
                "auxiliary_optimizer": plain,
                "meta_optimizer": guide.meta_optimizer(options),
                "pretraining_kimg": options.pretraining_kimg,
                "meta_delay_kimg": options.meta_delay_kimg,
            }
        return cls(
            migan.MIGANGenerator(**settings, completes=options.completion),
            MIGANDiscriminator(**settings),
            **gan,
            teacher=teacher,
            distillation_weight=config.losses.distillation,
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {**super().networks, **self._guiding_networks}

    @property
    def _guiding_networks(self) -> dict[str, nn.Module]:
        networks = {} if self.guide is None else self.guide.networks
        auxiliary = {} if self.auxiliary is None else {"auxiliary": self.auxiliary}
        return {**networks, **auxiliary}

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        params, stats = super().init(key)
        others = init_networks(self._guiding_networks, jax.random.fold_in(key, 1))
        return {**params, **others[0]}, {**stats, **others[1]}

    def stages(self) -> list[Stage]:
        """Return the usual stages, or those of guidance."""
        stages = super().stages()
        if self.guide is None:
            return stages
        (main,) = stages
        (generator,), *others = main.turns
        return self.guide.stages(
            generator=dataclasses.replace(
                generator,
                update=functools.partial(self.guide.update, terms=self.guided_terms),
            ),
            others=tuple(others),
            pretraining=Turn(
                "auxiliary", self.auxiliary_loss, ("auxiliary",), stream=4
            ),
            optimizers={
                **main.optimizers,
                **self.guide.optimizers(
                    main.optimizers["generator"].transformation, self.meta_optimizer
                ),
                "auxiliary": Optimizer(("auxiliary",), self.auxiliary_optimizer),
            },
            pretraining_kimg=self.pretraining_kimg,
            meta_delay_kimg=self.meta_delay_kimg,
            system=self,
        )

    def auxiliary_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the L1 loss of reconstructing whole images."""
        image = inputs.batch["image"]
        output, _ = self._run_auxiliary(params, stats, image)
        loss = jnp.mean(jnp.abs(output - image))
        return loss, (stats, {"a/l1": loss})

    def guided_terms(
        self, params: Params, stats: Stats, inputs: Inputs
    ) -> TermsFunction:
        """Return the function of all terms of the generator's loss, with guidance."""
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        teacher = None
        if self.auxiliary is not None:
            _, guided = self._run_auxiliary(params, stats, image)
            teacher = jax.lax.stop_gradient(GuidedFeatures(tuple(guided), ()))
        noise = self.noise(inputs.key, inputs.batch["sample"])
        x = images.generator_input(image, mask)

        def compute(params: Params, stats: Stats) -> Terms:
            variables = {"params": params["generator"], "stats": stats["generator"]}
            (completion, pyramid), sown = self.generator.apply(
                variables, x, noise, mutable=["intermediates"]
            )
            (guided,) = sown["intermediates"]["guided"]
            features = GuidedFeatures(tuple(guided), ())
            return Terms(
                self.generator_terms(params, inputs, completion, pyramid),
                self.guide.terms(params, 1 - mask, features, teacher),
                {"g/hole_psnr": images.hole_psnr(image, completion, mask)},
            )

        return compute

    def _run_auxiliary(
        self, params: Params, stats: Stats, image: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        variables = {"params": params["auxiliary"], "stats": stats["auxiliary"]}
        return self.auxiliary.apply(variables, image)

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
    check_guidance(config)
    refuse_settings(config, *DISTILLATION_PARTS[3:])  # those of the decoder
    parts = config.distillation
    if parts.cross_distillation or parts.self_distillation:
        if config.microbatches > 1:
            raise UserError(
                "microbatches must be 1 with distillation.cross_distillation or "
                "self_distillation: they unroll steps on the whole batch."
            )
        refuse_settings(config, "optimizer.warmup_kimg", "losses.reuse_completions")
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
