"""DeepGIN: a warm-up of the generators with L1, then adversarial training (section 4).

In the main stage, both players are updated from the same state, as in the reference:
one completion, three passes of the discriminators (the completion, the real image, the
completion for the generators' loss), each of which refines spectral norm's vectors.

A source picture becomes several samples: a random rotation and sub-image, flipped or
not, with one hole of each kind. So positions and kimg count pictures, not samples.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from migan_jax.config import DISTILLATION_PARTS, check_choices, refuse_settings
from migan_jax.data.mask_samplers import SAMPLERS, Mixture, Sampler, masks_on_device
from migan_jax.data.transforms import flip, sample_keys
from migan_jax.errors import UserError
from migan_jax.geometry.polyphase import split_phases
from migan_jax.losses import gan, perceptual
from migan_jax.losses.reconstruction import total_variation, weighted_l1
from migan_jax.models.deepgin import (
    LADDER,
    DeepGINDiscriminator,
    DeepGINGenerator,
)
from migan_jax.models.vgg import DEVIATION, FEATURE_SOURCES, MEAN, Features
from migan_jax.ops.align_corners import resize_align_corners
from migan_jax.ops.partition import split_images, split_samples
from migan_jax.systems import images
from migan_jax.systems.base import (
    Batch,
    Frozen,
    Inputs,
    Metrics,
    Optimizer,
    Params,
    Stage,
    Stats,
    Turn,
    Value,
    init_networks,
)
from migan_jax.systems.optimizers import adam

if TYPE_CHECKING:
    from ml_collections import ConfigDict

VGG = "vgg19"  # the frozen network's name


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the generators' losses."""

    hole: float = 5.0  # of the L1 loss in holes, relative to that outside
    adversarial: float = 0.001
    perceptual: float = 0.05
    style: float = 80.0
    total_variation: float = 0.1


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the generators return, and the images they were given, in [0, 1]."""

    truth: jax.Array
    hole: jax.Array
    masked: jax.Array  # white in the hole
    output: jax.Array
    stages: dict[str, jax.Array]

    @property
    def completed(self) -> jax.Array:
        return images.composite(self.truth, self.output, 1 - self.hole)


@dataclasses.dataclass(frozen=True)
class DeepGIN:
    """G1 and G2 (`generator`) and both discriminators (`discriminator`)."""

    generator: DeepGINGenerator
    discriminator: DeepGINDiscriminator
    sampler: Sampler
    optimizers: Mapping[str, optax.GradientTransformation]  # of the main stage
    warmup_optimizer: optax.GradientTransformation
    warmup_kimg: float = 0.0
    subsampling: int = 1  # sub-images per row and per column of a picture
    weights: Weights = Weights()
    discriminator_weight: float = 0.5
    loss_form: Literal["paper", "code"] = "code"
    vgg: Features | None = None  # `inputs.frozen[VGG]` holds its variables
    vgg_resolution: int = 224

    exported: ClassVar = ("generator",)
    batch_multiple: ClassVar = 1

    @classmethod
    def from_config(
        cls, config: "ConfigDict", frozen: Mapping[str, Frozen], dtype: Any
    ) -> "DeepGIN":
        settings, optimizer = config.deepgin, config.optimizer
        dtype = None if dtype == jnp.float32 else dtype
        rates = {
            "generator": optimizer.learning_rate,
            "discriminator": optimizer.discriminator_learning_rate
            or optimizer.learning_rate,
        }
        schedules = {
            name: constant_then_linear(
                rate, settings.constant_kimg, settings.decay_kimg
            )
            for name, rate in rates.items()
        }

        def make(rate: float | optax.Schedule, clips: bool) -> Any:
            rule = adam(rate, optimizer.b1, optimizer.b2)
            clip = optax.clip_by_global_norm(settings.max_gradient_norm)
            return optax.chain(clip, rule) if clips else rule

        return cls(
            DeepGINGenerator(
                config.resolution,
                settings.variant,
                settings.channels,
                dtype,
                config.networks.remat,
            ),
            DeepGINDiscriminator(
                config.resolution, settings.discriminator_channels, dtype
            ),
            SAMPLERS[config.data.mask_kind],
            optimizers={
                name: make(schedule, clips=name == "generator")
                for name, schedule in schedules.items()
            },
            warmup_optimizer=make(rates["generator"], clips=True),
            warmup_kimg=settings.warmup_kimg,
            subsampling=settings.subsampling,
            weights=Weights(
                **{field: settings[field] for field in Weights.__dataclass_fields__}
            ),
            discriminator_weight=settings.discriminator_weight,
            loss_form=settings.loss_form,
            vgg=frozen[VGG].network.clone(dtype=dtype) if VGG in frozen else None,
            vgg_resolution=settings.vgg_resolution,
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        return init_networks(self.networks, key)

    def stages(self) -> list[Stage]:
        """Return the warm-up, if there is one, and the main stage."""
        size = self.subsampling * self.generator.resolution
        generator, discriminator = ("generator",), ("discriminator",)
        warm_up = Turn("warm-up", self.warmup_loss, generator, stream=1)
        players = Turn(
            "players", self.players_loss, generator + discriminator, stream=2
        )
        warmup_stage = Stage(
            "warm-up",
            ((warm_up,),),
            {"generator": Optimizer(generator, self.warmup_optimizer)},
            self.warmup_kimg,
            resolution=size,
        )
        optimizers = {
            name: Optimizer((name,), rule) for name, rule in self.optimizers.items()
        }
        main = Stage("main", ((players,),), optimizers, resolution=size)
        return [warmup_stage, main] if self.warmup_kimg else [main]

    @jax.named_scope("prepare")
    def prepare(self, batch: Batch, key: jax.Array, progress: jax.Array) -> Batch:
        """Turn pictures into samples: [N, S, S, 3] -> [N * kinds, R, R, 3].

        A picture's own mask is transformed with it, and makes one sample.
        """
        arrays = [batch[name] for name in ("image", "mask") if name in batch]
        pictures = split_samples(jnp.arange(len(arrays[0])))
        turns, phases, flips, *mask_keys = (
            sample_keys(key, use, pictures) for use in range(3 + len(self._kinds))
        )
        arrays = rotate(turns, *arrays)
        if self.subsampling > 1:
            arrays = take_phase(phases, self.subsampling, *arrays)
        image, *masks = flip(flips, *arrays)
        if masks:
            mask = masks[0].astype(jnp.float32)
        else:
            drawn = [
                masks_on_device(kind, keys, image.shape[1])
                for kind, keys in zip(self._kinds, mask_keys, strict=True)
            ]
            # The samples of a picture follow one another, on its device.
            mask = jnp.stack(drawn, axis=1).reshape(-1, *drawn[0].shape[1:])
            image = jnp.repeat(image, len(drawn), axis=0)
        return {
            "image": split_images(image.astype(jnp.float32) * (2 / 255) - 1),
            "mask": split_images(mask),
            "sample": split_samples(jnp.arange(len(image))),
        }

    @property
    def _kinds(self) -> tuple[Sampler, ...]:
        """The kinds of holes of which each picture gets one."""
        is_mixture = isinstance(self.sampler, Mixture)
        return self.sampler.parts if is_mixture else (self.sampler,)

    # The turns' losses.

    def warmup_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the L1 loss."""
        completion = self.complete(params, inputs.batch)
        loss = self.l1(completion)
        return loss, (stats, {"g/l1": loss, **hole_psnr(completion)})

    def players_loss(self, params: Params, stats: Stats, inputs: Inputs) -> Value:
        """Return the sum of both players' losses; each gets the gradient of its own."""
        completion = self.complete(params, inputs.batch)
        d_loss, stats, metrics = self.discriminator_loss(params, stats, completion)
        terms, stats = self.generator_terms(params, stats, inputs, completion)
        metrics |= {f"g/{name}": term for name, term in terms.items()}
        loss = sum(terms.values()) + d_loss
        return loss, (stats, metrics | hole_psnr(completion))

    def discriminator_loss(
        self, params: Params, stats: Stats, completion: Completion
    ) -> tuple[jax.Array, Stats, Metrics]:
        """Return the hinge loss, summed over both discriminators."""
        fake = jax.lax.stop_gradient(completion.completed)
        fake, stats = self._discriminate(params, stats, completion, fake)
        real, stats = self._discriminate(params, stats, completion, completion.truth)
        losses = map(gan.hinge_discriminator_loss, real, fake)
        loss = self.discriminator_weight * sum(map(jnp.mean, losses))
        scores = {"d/real": real, "d/fake": fake}
        means = {
            name: sum(map(jnp.mean, maps)) / len(maps) for name, maps in scores.items()
        }
        return loss, stats, {"d/adversarial": loss, **means}

    def generator_terms(
        self, params: Params, stats: Stats, inputs: Inputs, completion: Completion
    ) -> tuple[dict[str, jax.Array], Stats]:
        """Return the weighted terms of the generators' loss."""
        weights, completed = self.weights, completion.completed
        constant = jax.lax.stop_gradient(params["discriminator"])
        scores, stats = self._discriminate(
            {**params, "discriminator": constant}, stats, completion, completed
        )
        adversarial = sum(jnp.mean(gan.hinge_generator_loss(s)) for s in scores)
        variation = jnp.mean(total_variation(completed, self.loss_form))
        terms = {
            "l1": self.l1(completion),
            "adversarial": weights.adversarial * adversarial,
            "total_variation": weights.total_variation * variation,
        }
        if self.vgg is not None:
            features, truth = self._features(inputs, completion)
            for name, loss in (
                ("perceptual", perceptual.perceptual_loss),
                ("style", perceptual.style_loss),
            ):
                values = [loss(maps, truth, self.loss_form) for maps in features]
                terms[name] = getattr(weights, name) * sum(map(jnp.mean, values))
        return terms, stats

    def l1(self, completion: Completion) -> jax.Array:
        """Return the L1 loss, summed over the output and the earlier stages."""
        stages = [
            completion.stages[n] for n in ("coarse", "lr") if n in completion.stages
        ]
        total = jnp.zeros((), completion.truth.dtype)
        for image in (completion.output, *stages):
            truth, hole = (
                resize_align_corners(x, *image.shape[1:3])
                for x in (completion.truth, completion.hole)
            )
            loss = weighted_l1(image, truth, 1 - hole, self.weights.hole)
            total += jnp.mean(loss)
        return total

    def complete(self, params: Params, batch: Batch) -> Completion:
        truth, hole = (batch["image"] + 1) / 2, 1 - batch["mask"]
        x = pack(batch["image"], batch["mask"])
        output, stages = self.generator.apply({"params": params["generator"]}, x)
        return Completion(truth, hole, x[..., :3], output, stages)

    def _discriminate(
        self, params: Params, stats: Stats, completion: Completion, image: jax.Array
    ) -> tuple[list[jax.Array], Stats]:
        """Return the scores of both discriminators; refine spectral norm's vectors."""
        variables = {
            "params": params["discriminator"],
            "stats": stats["discriminator"],
        }
        x = jnp.concatenate([completion.masked, image], axis=-1)
        scores, updated = self.discriminator.apply(variables, x, mutable=["stats"])
        return list(scores), {**stats, "discriminator": updated["stats"]}

    def _features(
        self, inputs: Inputs, completion: Completion
    ) -> tuple[list[list[jax.Array]], list[jax.Array]]:
        """Return VGG's features of the output and the completed image; of the truth."""

        def extract(image: jax.Array) -> list[jax.Array]:
            size = self.vgg_resolution
            x = resize_align_corners(image, size, size)
            mean, deviation = (
                jnp.asarray(values, x.dtype)[None, None, None]
                for values in (MEAN, DEVIATION)
            )
            return self.vgg.apply(
                inputs.frozen[VGG], split_images((x - mean) / deviation)
            )

        truth = jax.lax.stop_gradient(extract(completion.truth))
        return [extract(completion.output), extract(completion.completed)], truth

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
        return images.composite(image, jnp.clip(2 * output - 1, -1, 1), mask)

    def references(
        self,
        frozen: Mapping[str, Any],
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        return {}


def pack(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the generators' input: the image with white holes, and the hole."""
    hole = 1 - mask
    return jnp.concatenate([(image + 1) / 2 * mask + hole, hole], axis=-1)


def hole_psnr(completion: Completion) -> Metrics:
    truth, output = (2 * x - 1 for x in (completion.truth, completion.output))
    return {"g/hole_psnr": images.hole_psnr(truth, output, 1 - completion.hole)}


def rotate(keys: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
    """Rotate each sample by 0, 90, 180 or 270 degrees, its arrays together."""
    turns = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(keys)
    return [
        _choose(turns, jnp.stack([jnp.rot90(x, k, axes=(1, 2)) for k in range(4)]))
        for x in arrays
    ]


def take_phase(keys: jax.Array, factor: int, *arrays: jax.Array) -> list[jax.Array]:
    """Take every `factor`-th row and column of each sample, from a random phase on."""
    phases = jax.vmap(lambda key: jax.random.randint(key, (), 0, factor**2))(keys)
    return [_choose(phases, split_phases(x, factor, factor)) for x in arrays]


def _choose(index: jax.Array, candidates: jax.Array) -> jax.Array:
    """Choose for each sample one of [K, N, H, W, C]."""
    chosen = candidates[0]
    for k, candidate in enumerate(candidates[1:], 1):
        chosen = jnp.where((index == k)[:, None, None, None], candidate, chosen)
    return chosen


def constant_then_linear(
    rate: float, constant_kimg: float, decay_kimg: float
) -> float | optax.Schedule:
    """Return a learning rate by kimg, which falls linearly to 0 after a while."""
    if not decay_kimg:
        return rate
    end = constant_kimg + decay_kimg
    return lambda kimg: rate * jnp.clip((end - kimg) / decay_kimg, 0, 1)


# Configuration.


def check_settings(config: "ConfigDict") -> None:
    """Raise UserError for a configuration that this system does not support."""
    settings = config.deepgin
    check_choices(
        config,
        {
            "deepgin.variant": tuple(LADDER),
            "deepgin.loss_form": get_args(perceptual.Form),
            "deepgin.vgg": FEATURE_SOURCES,
        },
    )
    if config.resolution % (stride := DeepGINGenerator.stride):
        raise UserError(
            f"resolution is {config.resolution}, but must be divisible by {stride} for "
            f"DeepGIN."
        )
    if settings.channels % 2:
        raise UserError(f"deepgin.channels is {settings.channels}, but must be even.")
    if config.data.draw_masks_on != "device":
        raise UserError(
            "data.draw_masks_on must be device: DeepGIN draws several masks per image."
        )
    refuse_settings(
        config,
        *DISTILLATION_PARTS,
        *("teacher", "losses.l1"),
        *("optimizer.warmup_kimg", "optimizer.frozen_levels"),
    )
