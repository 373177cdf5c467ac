"""Learnable feature imputation: adversarial training without reconstruction losses.

The discriminator is a Wasserstein critic with a gradient penalty in holes only (section
3.2, equations 10 and 11). The penalty is a lazy turn of its own. The rows A to D of the
ladder (Table 1) grow: a stage for each resolution, and between two of them one in which
the higher level fades in.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from migan_jax.config import DISTILLATION_PARTS, check_choices, refuse_settings
from migan_jax.data.mask_samplers import SAMPLERS, Sampler
from migan_jax.data.transforms import sample_keys
from migan_jax.errors import UserError
from migan_jax.losses import gan
from migan_jax.losses.reconstruction import l1_in_hole
from migan_jax.models.channels import LOWEST_RESOLUTION, levels
from migan_jax.models.imputation import (
    FIRST_SIDE,
    ImputationDiscriminator,
    ImputationForm,
    ImputationGenerator,
    Pose,
    double,
    halve,
)
from migan_jax.ops.partition import split_images
from migan_jax.systems import images, logistic
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
from migan_jax.systems.optimizers import adam, lazy_adam, restart

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Penalty = Literal["one_sided", "two_sided", "everywhere"]
# Batch sizes of growth relative to the last ones, for resolutions up to this.
BATCH_FACTORS = {16: 8, 32: 4, 64: 3}
# Where FDF's seven keypoints are in a typical face.
TYPICAL_FACE = (
    *((0.5, 0.55), (0.62, 0.45), (0.38, 0.45)),  # nose, left and right eye
    *(
        (0.75, 0.48),
        (0.25, 0.48),
        (1.0, 0.95),
        (0.0, 0.95),
    ),  # the same for ears, shoulders
)


@dataclasses.dataclass(frozen=True)
class Imputation:
    """The generator and its discriminator, at one resolution of their growth."""

    generator: ImputationGenerator
    discriminator: ImputationDiscriminator
    sampler: Sampler
    optimizers: Mapping[str, optax.GradientTransformation]  # by network
    penalty: Penalty = "one_sided"
    penalty_weight: float = 10.0
    penalty_interval: int = 16
    drift_weight: float = 0.001
    l1_weight: float = 0.0
    pastes: bool = True
    batch_size: int = 32
    phase_kimg: float = 1200.0
    fade_every: int = 4

    exported: ClassVar = ("generator",)
    batch_multiple: ClassVar = 1

    @classmethod
    def from_config(
        cls, config: "ConfigDict", frozen: Mapping[str, Frozen], dtype: Any
    ) -> "Imputation":
        settings, optimizer = config.imputation, config.optimizer
        shared = {
            "resolution": config.resolution,
            "channel_base": config.networks.channel_base,
            "channel_max": config.networks.channel_max,
            "points": settings.points,
            "grows": settings.grows,
            "dtype": None if dtype == jnp.float32 else dtype,
            "remat": config.networks.remat,
        }
        rate, decays = optimizer.learning_rate, (optimizer.b1, optimizer.b2)
        return cls(
            ImputationGenerator(
                **shared,
                latents=settings.latents,
                pose=settings.generator_pose,
                imputes=settings.imputes,
                form=settings.form,
                weighted_down=settings.weighted_down,
                sums=settings.sums,
            ),
            ImputationDiscriminator(
                **shared,
                pose=settings.discriminator_pose,
                shortcuts=settings.shortcuts,
            ),
            SAMPLERS[config.data.mask_kind],
            optimizers={
                "generator": adam(rate, *decays),
                "discriminator": lazy_adam(
                    optimizer.discriminator_learning_rate or rate,
                    *decays,
                    settings.penalty_interval,
                ),
            },
            penalty=settings.penalty,
            penalty_weight=settings.penalty_weight,
            penalty_interval=settings.penalty_interval,
            drift_weight=settings.drift,
            l1_weight=config.losses.l1,
            pastes=settings.pastes,
            batch_size=config.batch_size,
            phase_kimg=settings.phase_kimg,
            fade_every=settings.fade_every,
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        return init_networks(self.networks, key)

    def stages(self) -> list[Stage]:
        """Return one stage, or those of growth, the last until the end of the run."""
        if not self.generator.grows:
            return [self._stage("main")]
        top = self.generator.resolution
        stages: list[Stage] = []
        for r in levels(top)[1:]:
            factors = (f for limit, f in BATCH_FACTORS.items() if r <= limit < top)
            size = self.batch_size * next(factors, 1)
            for fades in (True, False) if r > FIRST_SIDE else (False,):
                name = f"fade-in of {r} pixels" if fades else f"{r} pixels"
                until = self.phase_kimg * (len(stages) + 1)
                is_last = r == top and not fades
                system = self._grown_to(r, fades, size)
                stage = system._stage(name, None if is_last else until, size)
                stages.append(dataclasses.replace(stage, system=system))
        return stages

    def _stage(
        self, name: str, until_kimg: float | None = None, size: int | None = None
    ) -> Stage:
        d, g = ("discriminator",), ("generator",)
        discriminator = Turn("discriminator", self.discriminator_loss, d, stream=1)
        generator = Turn("generator", self.generator_loss, g, stream=2)
        penalty = Turn(
            "penalty", self.penalty_loss, d, stream=3, every=self.penalty_interval
        )
        rules = {
            name: restart(rule) if self.generator.fades else rule
            for name, rule in self.optimizers.items()
        }
        optimizers = {name: Optimizer((name,), rule) for name, rule in rules.items()}
        turns = (discriminator,), (generator,), (penalty,)
        return Stage(name, turns, optimizers, until_kimg, batch_size=size)

    def _grown_to(self, resolution: int, fades: bool, size: int) -> "Imputation":
        """Return the system of a phase of growth."""
        growth = {"grown": resolution, "fades": fades}
        return dataclasses.replace(
            self,
            generator=self.generator.clone(**growth),
            discriminator=self.discriminator.clone(**growth),
            batch_size=size,
        )

    def _new_fraction(self, progress: jax.Array) -> jax.Array:
        """Return the new level's share; it changes every few steps."""
        if not self.generator.fades:
            return jnp.ones_like(jnp.asarray(progress, jnp.float32))
        changes = 1000 * self.phase_kimg / self.batch_size / self.fade_every
        # Not the change before, by rounding.
        return jnp.minimum(jnp.floor(progress * changes + 1e-3) / changes, 1)

    @jax.named_scope("prepare")
    def prepare(self, batch: Batch, key: jax.Array, progress: jax.Array) -> Batch:
        """Prepare at the run's resolution; then shrink, and fade from half the size."""
        batch = images.prepare(batch, key, self.sampler)
        if not self.generator.grows:
            return batch
        share = self._new_fraction(progress)

        def fade(x: jax.Array) -> jax.Array:
            x = _shrink(x, _halvings(self.generator))
            if not self.generator.fades:
                return x
            blurred = double(halve(x))
            return blurred + (x - blurred) * share

        # A pixel is known if half of it is.
        mask = (fade(batch["mask"]) >= 0.5).astype(batch["mask"].dtype)
        image = split_images(fade(batch["image"]))
        return {**batch, "image": image, "mask": split_images(mask)}

    # The turns' losses.

    def discriminator_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the Wasserstein loss of the critic, and its drift."""
        completion, stats = self.complete(params, stats, inputs)
        truth = inputs.batch["image"]
        fake, real = self._discriminate(params, inputs, completion, truth)
        adversarial = jnp.mean(gan.wasserstein_critic_loss(real, fake))
        drift = jnp.mean(gan.drift(real))
        return adversarial + self.drift_weight * drift, (
            stats,
            {
                "d/adversarial": adversarial,
                "d/drift": drift,
                "d/real": jnp.mean(real),
                "d/fake": jnp.mean(fake),
            },
        )

    def generator_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the Wasserstein loss, and optionally L1 in holes."""
        completion, stats = self.complete(params, stats, inputs)
        (fake,) = self._discriminate(params, inputs, completion)
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        terms = {"adversarial": jnp.mean(gan.wasserstein_generator_loss(fake))}
        if self.l1_weight:
            terms["l1"] = self.l1_weight * jnp.mean(l1_in_hole(completion, image, mask))
        metrics = {f"g/{name}": term for name, term in terms.items()}
        metrics["g/hole_psnr"] = images.hole_psnr(image, completion, mask)
        return sum(terms.values()), (stats, metrics)

    def penalty_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the penalty, weighted for all steps of its interval.

        It is computed in float32, at random points between truth and completion.
        """
        completion, _ = self.complete(params, stats, inputs)
        completion = jax.lax.stop_gradient(completion)
        truth, mask = inputs.batch["image"], inputs.batch["mask"]
        keys = sample_keys(inputs.key, 1, inputs.batch["sample"])
        fraction = jax.vmap(lambda key: jax.random.uniform(key, (), truth.dtype))(keys)
        network = self.discriminator.clone(dtype=None)
        norm = gan.gradient_norm(
            lambda image: self._score(network, params, inputs, image),
            gan.interpolate(truth, completion, fraction),
            1.0 if self.penalty == "everywhere" else 1 - mask,
        )
        is_one_sided = self.penalty == "one_sided"
        penalise = gan.one_sided_penalty if is_one_sided else gan.two_sided_penalty
        penalty = jnp.mean(penalise(norm))
        metrics = {"d/penalty": penalty, "d/gradient_norm": jnp.mean(norm)}
        return self.penalty_interval * self.penalty_weight * penalty, (stats, metrics)

    def complete(
        self, params: Params, stats: Stats, inputs: Inputs
    ) -> tuple[jax.Array, Stats]:
        """Return completions with new latents; in growing networks note the share."""
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        z = self.draw(inputs.key, inputs.batch["sample"], image.dtype)
        x = pack(image, mask)
        points = self._points(inputs.batch)
        if self.generator.grows:
            share = self._new_fraction(inputs.progress)
            stats = {**stats, "generator": {"fade": share}}
        variables = {"params": params["generator"], "stats": stats["generator"]}
        completion, _ = self.generator.apply(variables, x, z, *points)
        if self.pastes:
            completion = images.composite(image, completion, mask)
        return completion, stats

    def draw(self, key: jax.Array, samples: jax.Array, dtype: Any) -> jax.Array:
        """Draw latents for [N] samples."""
        shape = LOWEST_RESOLUTION, LOWEST_RESOLUTION, self.generator.latents
        keys = sample_keys(key, 0, samples)
        return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)

    def _points(self, batch: Batch) -> tuple[jax.Array, ...]:
        return (batch["points"],) if self.generator.points else ()

    def _discriminate(
        self, params: Params, inputs: Inputs, *batches: jax.Array
    ) -> list[jax.Array]:
        """Return the scores [N, 1] of each batch of images."""
        return [
            self._score(self.discriminator, params, inputs, image) for image in batches
        ]

    def _score(
        self, network: nn.Module, params: Params, inputs: Inputs, image: jax.Array
    ) -> jax.Array:
        batch = inputs.batch
        masked = batch["image"] * batch["mask"]
        x = split_images(jnp.concatenate([image, masked, batch["mask"]], axis=-1))
        return network.apply(
            {"params": params["discriminator"]},
            x,
            *self._points(batch),
            fade=self._new_fraction(inputs.progress),
        )

    def inpaint(
        self,
        params: Params,
        stats: Stats,
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
        points: jax.Array | None = None,
    ) -> jax.Array:
        """Complete with the mean latents, as the paper's metrics do."""
        network = self.generator
        variables = {"params": params["generator"], "stats": stats["generator"]}
        latents = mean_latents(network, len(image))
        if points is not None:
            latents["points"] = points
        output, _ = apply_generator(network, variables, image, mask, **latents)
        return images.composite(image, jnp.clip(output, -1, 1), mask)

    def references(
        self,
        frozen: Mapping[str, Any],
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        return {}


def pack(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the generator's input: the image without its hole, and the mask."""
    return jnp.concatenate([image * mask, mask], axis=-1)


def _halvings(network: ImputationGenerator) -> int:
    """Return how often the network, in growth, halves its resolution."""
    return (
        network.resolution // (network.grown or network.resolution)
    ).bit_length() - 1


def _shrink(x: jax.Array, halvings: int) -> jax.Array:
    for _ in range(halvings):
        x = halve(x)
    return x


def apply_generator(
    network: ImputationGenerator,
    variables: Any,
    image: jax.Array,
    mask: jax.Array,
    z: jax.Array,
    points: jax.Array | None = None,
) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Return the whole output for images; in growth, networks get and make small ones.

    A small pixel is the mean of its known pixels, and known if half of them are.
    """
    factor = network.resolution // LOWEST_RESOLUTION
    if any(size % factor for size in image.shape[1:3]):
        raise ValueError(
            f"The network takes images with height and width divisible by {factor}, "
            f"not {list(image.shape[1:3])}."
        )
    halvings = _halvings(network)
    if halvings:
        image, mask = _shrink(image * mask, halvings), _shrink(mask, halvings)
        image = image / jnp.where(mask > 0, mask, 1)
        mask = (mask >= 0.5).astype(mask.dtype)
    output, levels = network.apply(variables, pack(image, mask), z, points)
    for _ in range(halvings):
        output = double(output)
    return output, levels


def mean_latents(network: ImputationGenerator, count: int) -> dict[str, jax.Array]:
    """Return z = 0 and, if the network takes keypoints, those of a typical face."""
    shape = count, LOWEST_RESOLUTION, LOWEST_RESOLUTION, network.latents
    latents = {"z": jnp.zeros(shape)}
    if network.points:
        known = jnp.asarray(TYPICAL_FACE)
        is_face = network.points == len(known)
        points = known if is_face else jnp.full((network.points, 2), 0.5)
        latents["points"] = jnp.broadcast_to(points, (count, *points.shape))
    return latents


# Configuration.


def check_settings(config: "ConfigDict") -> None:
    """Raise UserError for a configuration that this system does not support."""
    settings = config.imputation
    check_choices(
        config,
        {
            "imputation.generator_pose": get_args(Pose),
            "imputation.discriminator_pose": get_args(Pose),
            "imputation.form": get_args(ImputationForm),
            "imputation.penalty": get_args(Penalty),
        },
    )
    logistic.check_settings(config)
    if settings.weighted_down and not settings.imputes:
        raise UserError(
            "imputation.weighted_down needs certainties, which plain convolutions do "
            "not have: set it to false, or imputation.imputes to true."
        )
    refuse_settings(
        config,
        *DISTILLATION_PARTS,
        *("teacher", "optimizer.warmup_kimg", "optimizer.frozen_levels"),
    )
