"""From a configuration to what is trained: system, optimisers, teacher, first state."""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from migan_jax.config import RELEASED, check_numbers
from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.errors import UserError
from migan_jax.losses.distillation import LOWEST_RESOLUTION
from migan_jax.metrics import image
from migan_jax.models import comodgan, discriminators, migan
from migan_jax.models.channels import levels
from migan_jax.models.layers import Reparam
from migan_jax.systems.base import System
from migan_jax.systems.comodgan import CoModGAN
from migan_jax.systems.migan import MIGAN
from migan_jax.training.devices import resolved_dtype
from migan_jax.training.optimizer import lazy_adam, without_levels
from migan_jax.training.step import Optimizers, TrainState, init_state
from migan_jax.weights.checkpoint import load_checkpoint
from migan_jax.weights.families import family_of

if TYPE_CHECKING:
    from ml_collections import ConfigDict

SYSTEMS = ("migan", "comodgan")
NO_DISCRIMINATOR = (
    "optimizer.frozen_levels keeps levels of a discriminator that has learned: name a "
    "run's workdir with --init-from, or set it to 0."
)
RELEASED_SIZES = 256, 512  # of the authors' teachers
# Recipes for teachers of a resolution.
TEACHERS = {64: "scenes64:teacher"} | {n: f"comodgan_places{n}" for n in RELEASED_SIZES}
DTYPES = ("auto", "float32", "bfloat16")
# Figures of held-out pictures, to choose checkpoints by.
SCORES = *image.NAMES, "lpips_alex", "lpips_vgg", "fid", "kid"


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen Co-Mod-GAN."""

    network: comodgan.Generator
    variables: Any
    digest: str  # of its weights


def check_settings(config: "ConfigDict") -> None:
    """Refuse settings of the training that make no sense, by their names."""
    check_numbers(config)
    if config.system not in SYSTEMS:
        raise UserError(f"system is {' or '.join(SYSTEMS)}, not {config.system!r}.")
    if config.networks.dtype not in DTYPES:
        kinds = ", ".join(DTYPES)
        raise UserError(
            f"networks.dtype is one of {kinds}, not {config.networks.dtype!r}."
        )
    if config.best_by not in SCORES:
        raise UserError(
            f"best_by is one of {', '.join(SCORES)}, not {config.best_by!r}."
        )
    try:
        levels(config.resolution)
    except ValueError as error:
        raise UserError(f"resolution: {error}") from error
    if config.networks.channel_base < config.resolution:
        raise UserError(
            f"networks.channel_base is {config.networks.channel_base}, but must be at "
            f"least {config.resolution}, the resolution."
        )
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
    if config.teacher and config.system != "migan":
        raise UserError("teacher is for system migan: a comodgan has none.")


def check_start(config: "ConfigDict", init_from: Path | None) -> None:
    """Refuse to begin with what a recipe for fine-tuning cannot begin with."""
    optimizer = config.optimizer
    if optimizer.warmup_kimg and init_from is None:
        raise UserError(
            "optimizer.warmup_kimg lets the discriminator alone learn at first, which "
            "is for a generator that is good already: name one with --init-from, or "
            "set it to 0."
        )
    if optimizer.frozen_levels and not (init_from and init_from.is_dir()):
        raise UserError(NO_DISCRIMINATOR)


def load_teacher(config: "ConfigDict") -> Teacher | None:
    """The network that `config.teacher` names; None without one."""
    if not config.teacher:
        return None
    try:
        loaded = load_checkpoint(config.teacher)
    except UserError as error:
        size = config.resolution
        own = "runs/teacher" if Path(config.teacher).suffix else config.teacher
        recipe = TEACHERS.get(size, f"comodgan_folder256 --config.resolution={size}")
        released = f"Get the authors' from {RELEASED}, or train"
        raise UserError(
            f"The teacher cannot be loaded: {error} "
            f"{released if size in RELEASED_SIZES else 'Train'} one (python -m "
            f"migan_jax.train --config={recipe} --workdir={own} "
            f"--config.data.source={config.data.source}) and name it "
            f"(--config.teacher={own}), or do without (--config.teacher=none)."
        ) from error
    network = loaded.network
    if family_of(network) != "comodgan":
        raise UserError(
            f"The teacher {config.teacher} is a {family_of(network)}, but must be a "
            f"comodgan: MI-GAN is distilled from its levels."
        )
    if network.resolution != config.resolution:
        raise UserError(
            f"The teacher {config.teacher} works at {network.resolution} pixels, but "
            f"resolution is {config.resolution}: choose a teacher of that size, or "
            f"train at the teacher's."
        )
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(loaded.variables):
        digest.update(np.asarray(leaf).tobytes())
    return Teacher(network, loaded.variables, digest.hexdigest())


def build_system(config: "ConfigDict", teacher: Teacher | None) -> System:
    """The networks and losses that a configuration describes."""
    dtype = jnp.dtype(resolved_dtype(config.networks.dtype))
    shared = {
        "resolution": config.resolution,
        "channel_base": config.networks.channel_base,
        "channel_max": config.networks.channel_max,
        # None computes in the dtype of the images, which is float32.
        "dtype": None if dtype == jnp.float32 else dtype,
        "remat": config.networks.remat,
    }
    game = {
        "sampler": SAMPLERS[config.data.mask_kind],
        "r1_gamma": config.losses.r1_gamma,
        "r1_interval": config.losses.r1_interval,
        "l1_weight": config.losses.l1,
    }
    if config.system == "comodgan":
        codes = {key: config.comodgan[key] for key in ("z_dim", "w_dim", "encoder_dim")}
        return CoModGAN(
            comodgan.Generator(**shared, **codes),
            discriminators.CoModGANDiscriminator(**shared),
            **game,
            mixing_probability=config.comodgan.mixing_probability,
        )
    form = "expanded" if config.reparam.expanded else "collapsed"
    shared["reparam"] = Reparam(form, config.reparam.kernels)
    return MIGAN(
        migan.Generator(**shared),
        discriminators.MIGANDiscriminator(**shared),
        **game,
        teacher=teacher.network.clone(dtype=shared["dtype"]) if teacher else None,
        distillation_weight=config.losses.distillation,
    )


def build_optimizers(config: "ConfigDict", system: System) -> Optimizers:
    """Adam for each player."""
    intervals = {
        "generator": config.optimizer.generator_interval,
        "discriminator": config.losses.r1_interval,
    }
    optimizers = {
        player: lazy_adam(
            config.optimizer.learning_rate,
            config.optimizer.b2,
            interval,
            getattr(system.generator, "reparam", None),
        )
        for player, interval in intervals.items()
    }
    if count := config.optimizer.frozen_levels:
        largest_first = levels(config.resolution)[::-1]
        frozen = [f"b{level}" for level in largest_first[:count]]
        optimizers["discriminator"] = without_levels(
            optimizers["discriminator"], frozen
        )
    return optimizers


def waiting(config: "ConfigDict") -> dict[str, int]:
    """Steps for which players stay as they are at first: the discriminator warms up."""
    images = 1000 * config.optimizer.warmup_kimg
    return {"generator": round(images / config.batch_size)}


def ema_decay(config: "ConfigDict") -> float:
    """Per step, from the half-life in thousands of images."""
    return 0.5 ** (config.batch_size / (1000 * config.optimizer.ema_halflife_kimg))


def total_steps(config: "ConfigDict") -> int:
    """Steps until all images have been shown, at least one."""
    return max(round(1000 * config.total_kimg / config.batch_size), 1)


def first_state(
    config: "ConfigDict", system: System, optimizers: Optimizers
) -> TrainState:
    """The state before the first step, from the seed; to be jitted."""
    return init_state(system, optimizers, jax.random.key(config.seed))
