"""Distillation-guided inpainting (Suin et al., ICCV 2021): stages and losses.

First the auxiliary network learns to reconstruct images. Then it is constant, and
guides the inpainting network (systems/guidance.py), whose unguided loss has a spatially
varying reconstruction, style, and an adversarial term (section 3.5). In the first
steps, the meta networks are constant: Adam's first steps say little about them.

The rows of the paper's Table 3 are settings (config.py: distillation_row). Those
without guidance need neither the auxiliary network nor meta networks, and take one step
for each batch.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from migan_jax.config import check_choices, refuse_settings
from migan_jax.data.mask_samplers import SAMPLERS, Sampler
from migan_jax.errors import UserError
from migan_jax.losses import gan
from migan_jax.losses.perceptual import style_l1
from migan_jax.losses.reconstruction import confidence, spatially_varying_l1
from migan_jax.models.distillation import (
    WIDTHS,
    AttentionOutput,
    DistillationAuxiliary,
    DistillationDiscriminator,
    DistillationGenerator,
    GuidedFeatures,
)
from migan_jax.models.layers import Initial
from migan_jax.models.vgg import FEATURE_SOURCES, Features
from migan_jax.ops.partition import split_images
from migan_jax.systems import images
from migan_jax.systems.base import (
    Batch,
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
from migan_jax.systems.guidance import (
    Guide,
    Terms,
    TermsFunction,
    check_guidance,
)
from migan_jax.systems.optimizers import adam

if TYPE_CHECKING:
    from ml_collections import ConfigDict

STYLE_NETWORK = "vgg16"  # the frozen network's name
STYLE_STRIDE = 8  # down to relu4_3
MIN_DISCRIMINATED = 24  # pixels, for one score
StyleOf = Literal["output", "completed"]


@dataclasses.dataclass(frozen=True)
class UnguidedWeights:
    """UnguidedWeights of the unguided loss."""

    reconstruction: float = 1.0
    hole: float = 1.0  # in the reconstruction
    valid: float = 1.0  # the same for known pixels
    style: float = 150.0
    adversarial: float = 0.1


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The inpainting network (`generator`) and the networks that train it."""

    generator: DistillationGenerator
    auxiliary: DistillationAuxiliary
    discriminator: DistillationDiscriminator
    guide: Guide | None
    sampler: Sampler
    optimizers: Mapping[str, Optimizer]
    weights: UnguidedWeights = UnguidedWeights()
    vgg: Features | None = None  # `inputs.frozen[STYLE_NETWORK]` holds its variables
    pretraining_kimg: float = 300.0  # of the auxiliary network
    meta_delay_kimg: float = 6.0
    confidence_size: int = 65
    fold_style_batch: bool = True
    style_of: StyleOf = "output"

    exported: ClassVar = ("generator",)
    batch_multiple: ClassVar = 1

    @classmethod
    def from_config(
        cls, config: "ConfigDict", frozen: Mapping[str, Frozen], dtype: Any
    ) -> "Distillation":
        settings, optimizer = config.distillation, config.optimizer
        shared = {
            "resolution": config.resolution,
            "channels": settings.channels,
            "dtype": None if dtype == jnp.float32 else dtype,
        }
        both = {
            **shared,
            "attends": settings.attention,
            "pooled_keys": settings.pooled_keys,
            "initial": settings.initial,
            "remat": config.networks.remat,
        }
        generator = DistillationGenerator(
            **both,
            completes=settings.completion,
            fuses=settings.fusion,
            matched=settings.matched,
            kernel_size=settings.kernel_size,
            level_hole=settings.level_hole,
            attention_output=settings.attention_output,
        )
        widths = tuple(width * settings.channels for width in WIDTHS)
        guide = Guide.from_config(config, encoder=widths, decoder=widths)
        rate, decays = optimizer.learning_rate, (optimizer.b1, optimizer.b2)
        plain = adam(rate, *decays)
        optimizers = {"generator": Optimizer(("generator",), plain)}
        if guide is not None:
            inner = adam(rate, *decays, eps_root=settings.eps_root)
            optimizers = guide.optimizers(inner, guide.meta_optimizer(settings))
            optimizers["auxiliary"] = Optimizer(("auxiliary",), plain)
        if settings.adversarial:
            rule = adam(optimizer.discriminator_learning_rate or rate / 10, 0.0, 0.9)
            optimizers["discriminator"] = Optimizer(("discriminator",), rule)
        return cls(
            generator,
            DistillationAuxiliary(**both),
            DistillationDiscriminator(**shared),
            guide,
            SAMPLERS[config.data.mask_kind],
            optimizers=optimizers,
            weights=UnguidedWeights(
                **{
                    field: settings[field]
                    for field in UnguidedWeights.__dataclass_fields__
                }
            ),
            vgg=frozen[STYLE_NETWORK].network.clone(dtype=shared["dtype"])
            if STYLE_NETWORK in frozen
            else None,
            **{
                field: settings[field]
                for field in (
                    *("pretraining_kimg", "meta_delay_kimg", "confidence_size"),
                    *("fold_style_batch", "style_of"),
                )
            },
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"generator": self.generator}
        if self.guide is not None:
            networks |= self.guide.networks
        if self._has_teacher:
            networks["auxiliary"] = self.auxiliary
        if self.weights.adversarial:
            networks["discriminator"] = self.discriminator
        return networks

    @property
    def _has_teacher(self) -> bool:
        return self.guide is not None and self.guide.needs_teacher

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        return init_networks(self.networks, key)

    def stages(self) -> list[Stage]:
        """Return pre-training, steps with constant meta networks, and the main stage.

        Without guidance, there is only the main stage.
        """
        discriminator = Turn(
            "discriminator", self.discriminator_loss, ("discriminator",), stream=3
        )
        others = ((discriminator,),) if self.weights.adversarial else ()
        generator = Turn("generator", self.generator_loss, ("generator",), stream=2)
        if self.guide is None:
            return [Stage("main", ((generator,), *others), self.optimizers)]
        update = functools.partial(self.guide.update, terms=self.terms)
        return self.guide.stages(
            generator=dataclasses.replace(generator, update=update),
            others=others,
            pretraining=Turn(
                "auxiliary", self.auxiliary_loss, ("auxiliary",), stream=1
            ),
            optimizers=self.optimizers,
            pretraining_kimg=self.pretraining_kimg,
            meta_delay_kimg=self.meta_delay_kimg,
            system=self,
        )

    def prepare(self, batch: Batch, key: jax.Array, progress: jax.Array) -> Batch:
        return images.prepare(batch, key, self.sampler)

    # The turns' losses.

    def auxiliary_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the L1 loss of reconstructing whole images."""
        truth = (inputs.batch["image"] + 1) / 2
        output, _ = self.auxiliary.apply({"params": params["auxiliary"]}, truth)
        loss = jnp.mean(jnp.abs(output - truth))
        return loss, (stats, {"a/l1": loss})

    def generator_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the sum of all terms; log them and the PSNR in the hole."""
        own, guided, metrics = self.terms(params, stats, inputs)(params, stats)
        terms = {**own, **guided}
        metrics |= {f"g/{name}": term for name, term in terms.items()}
        return sum(terms.values()), (stats, metrics)

    def terms(self, params: Params, stats: Stats, inputs: Inputs) -> TermsFunction:
        """Return the function of all terms of the generator's loss.

        The auxiliary network's features and those of the truth are computed here.
        """
        batch, weights = inputs.batch, self.weights
        truth, hole = (batch["image"] + 1) / 2, 1 - batch["mask"]
        x = pack(batch["image"], batch["mask"])
        trust = confidence(hole, self.confidence_size)
        teacher: GuidedFeatures | None = None
        if self._has_teacher:
            variables = {"params": params["auxiliary"]}
            _, teacher = self.auxiliary.apply(variables, truth)
            teacher = jax.lax.stop_gradient(teacher)
        style = None if self.vgg is None else self._style_features(inputs, truth)

        def compute(params: Params, stats: Stats) -> Terms:
            variables = {"params": params["generator"]}
            output, features = self.generator.apply(variables, x)
            reconstruction = spatially_varying_l1(
                output, truth, hole, trust, weights.hole, weights.valid
            )
            own = {"reconstruction": weights.reconstruction * reconstruction}
            if style is not None:
                image = output
                if self.style_of == "completed":
                    image = images.composite(truth, output, 1 - hole)
                features_of_image = self._style_features(inputs, image)
                distance = style_l1(features_of_image, style, self.fold_style_batch)
                own["style"] = weights.style * distance
            if weights.adversarial:
                score, _ = self._discriminate(params, stats, output)
                loss = jnp.mean(gan.logistic_generator_loss(score))
                own["adversarial"] = weights.adversarial * loss
            guided = {}
            if self.guide is not None:
                guided = self.guide.terms(params, hole, features, teacher)
            return Terms(own, guided, {"g/hole_psnr": hole_psnr(truth, output, hole)})

        return compute

    def discriminator_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the mean loss of scoring completions and real images."""
        batch = inputs.batch
        variables = {"params": params["generator"]}
        x = pack(batch["image"], batch["mask"])
        output = jax.lax.stop_gradient(self.generator.apply(variables, x)[0])
        fake, stats = self._discriminate(params, stats, output)
        real, stats = self._discriminate(params, stats, (batch["image"] + 1) / 2)
        loss = jnp.mean(gan.logistic_discriminator_loss(real, fake)) / 2
        return loss, (
            stats,
            {
                "d/adversarial": loss,
                "d/real": jnp.mean(real),
                "d/fake": jnp.mean(fake),
            },
        )

    def _discriminate(
        self, params: Params, stats: Stats, image: jax.Array
    ) -> tuple[jax.Array, Stats]:
        """Return scores, and statistics with refined vectors of spectral norm."""
        variables = {
            "params": params["discriminator"],
            "stats": stats["discriminator"],
        }
        score, new = self.discriminator.apply(variables, image, mutable=["stats"])
        return score, {**stats, "discriminator": new["stats"]}

    def _style_features(self, inputs: Inputs, image: jax.Array) -> list[jax.Array]:
        """Return VGG's relu2_2, relu3_3 and relu4_3 of images in [0, 1]."""
        return self.vgg.apply(inputs.frozen[STYLE_NETWORK], split_images(image))[1:4]

    def inpaint(
        self,
        params: Params,
        stats: Stats,
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        variables = {"params": params["generator"]}
        output, _ = self.generator.apply(variables, pack(image, mask))
        return images.composite(image, 2 * output - 1, mask)

    def references(
        self,
        frozen: Mapping[str, Any],
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        return {}


def pack(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the generator's input: the image with white holes, and the hole."""
    hole = 1 - mask
    return jnp.concatenate([(image + 1) / 2 * mask + hole, hole], axis=-1)


def hole_psnr(truth: jax.Array, output: jax.Array, hole: jax.Array) -> jax.Array:
    return images.hole_psnr(2 * truth - 1, 2 * output - 1, 1 - hole)


# Configuration.


def check_settings(config: "ConfigDict") -> None:
    """Raise UserError for a configuration that this system does not support."""
    settings = config.distillation
    check_guidance(config)
    check_choices(
        config,
        {
            "distillation.vgg": FEATURE_SOURCES,
            "distillation.initial": get_args(Initial),
            "distillation.attention_output": get_args(AttentionOutput),
            "distillation.style_of": get_args(StyleOf),
        },
    )
    smallest = MIN_DISCRIMINATED if settings.adversarial else 2 * STYLE_STRIDE
    if config.resolution % (stride := DistillationGenerator.stride) or (
        config.resolution < smallest
    ):
        raise UserError(
            f"resolution is {config.resolution}, but must be divisible by {stride} and "
            f"at least {smallest} for this network."
        )
    if settings.confidence_size // 2 >= config.resolution:
        raise UserError(
            f"distillation.confidence_size is {settings.confidence_size}, but must be "
            f"less than twice the resolution, {config.resolution}."
        )
    if settings.pooled_keys == 3:
        raise UserError("distillation.pooled_keys is 3, but must be 1, 2 or 4.")
    for part in ("attention_transfer", "fusion"):
        if settings[part] and not settings.attention:
            raise UserError(f"distillation.{part} needs distillation.attention=true.")
    if config.microbatches > 1:
        raise UserError(
            "microbatches must be 1: these losses compare all images of a batch. Lower "
            "the batch size, or set networks.remat=true, to save memory."
        )
    refuse_settings(
        config,
        *("teacher", "losses.l1"),
        *("optimizer.warmup_kimg", "optimizer.frozen_levels"),
    )
