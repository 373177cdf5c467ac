"""Settings with their defaults, recipes, and helpers that all verbs share."""

import argparse
import contextlib
import difflib
import errno
import functools
import gc
import importlib.util
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import getitem
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from migan_jax.errors import UserError
from migan_jax.files import reason

if TYPE_CHECKING:
    from ml_collections import ConfigDict


# The authors' repository, which links to their weights.
RELEASED = "https://github.com/Picsart-AI-Research/MI-GAN"


def base_config() -> "ConfigDict":
    """All settings and their defaults; recipes override some.

    Sizes in kimg are thousands of training images.
    """
    from ml_collections.config_dict import FieldReference, placeholder

    from migan_jax.settings import Settings

    return Settings(
        {
            "system": "migan",  # a name in families.py
            "seed": 0,
            "resolution": 512,
            "batch_size": 32,  # global: over all processes
            "total_kimg": 25_000.0,
            # The Co-Mod-GAN to distil from: a .pt, a .safetensors or a workdir.
            "teacher": placeholder(str),
            "networks": {
                # Channels at resolution r: min(channel_base / r, channel_max).
                "channel_base": 32768,
                "channel_max": 512,
                # Of activations; parameters are float32. "auto": bfloat16 if the
                # devices support it, else float32. A resumed run keeps its dtype.
                "dtype": "auto",
                "remat": False,  # recompute activations, to save memory
            },
            "reparam": {  # MI-GAN's kernels
                "kernels": 9,  # summed into each convolution's kernel
                "expanded": False,  # store all of them; the results are the same
            },
            "comodgan": {
                "z_dim": 512,
                "w_dim": 512,
                "encoder_dim": 1024,
                "mixing_probability": 0.5,  # of style mixing
            },
            "deepgin": _deepgin_settings(),
            "imputation": _imputation_settings(),
            "distillation": _distillation_settings(),
            "losses": {
                "distillation": 2.0,  # weight; used if there is a teacher
                "l1": 0.0,  # weight of the L1 loss inside holes
                "r1_gamma": 10.0,
                "r1_interval": 16,  # steps between R1 updates
                # Train the discriminator on the completions that the generator's loss
                # was computed from. The reference updates the generator before, and
                # computes them again.
                "reuse_completions": False,
            },
            "optimizer": _optimizer_settings(),
            "microbatches": 1,  # gradient accumulation, to save memory
            "mesh": {
                # Devices that share an image, split by rows. "auto": the fewest with
                # which every device has work.
                "space": FieldReference("auto", field_type=object)
            },
            "data": _data_settings(),
            "log_every_steps": 100,
            "save_every_steps": 2500,  # checkpoint, sample grid, held-out metrics
            "keep_last": 2,  # newest checkpoints to keep
            "keep_best": 1,  # best checkpoints to keep, by the metric best_by
            # Or psnr, ssim, hole_ssim, l1, hole_l1. With the feature networks' weights
            # also fid, kid, lpips_alex, lpips_vgg; hold out many pictures for those.
            "best_by": "hole_psnr",
            # Stop early when that metric has not improved for this long.
            "patience_kimg": placeholder(float),
            # Consecutive steps with a non-finite loss that stop the run.
            "nonfinite_steps": 20,
            # Steps to trace with JAX's profiler, such as "10:15", into WORKDIR/profile.
            "profile": placeholder(str),
            # End a run of several processes if one makes no progress for this long, in
            # seconds. Compiling, evaluating and saving count as one thing each.
            "hang_seconds": 1800.0,
        }
    ).lock()


def _deepgin_settings() -> dict[str, Any]:
    return {
        "variant": "full",  # a row of the paper's Table 1: models/deepgin.py, LADDER
        "channels": 64,  # of the generators, after the first down-sampling
        "discriminator_channels": 64,
        # Train on sub-images: every n-th row and column of pictures n times as large.
        "subsampling": 2,
        # Train the generators alone with L1 for this long at the start.
        "warmup_kimg": 0.0,
        # Then keep the learning rates this long, and lower them linearly to 0 in that
        # time; 0: keep them.
        "constant_kimg": 0.0,
        "decay_kimg": 0.0,
        "max_gradient_norm": 3.0,  # of the generators
        # Weights of the losses; `hole` is that of holes in the L1 loss.
        "hole": 5.0,
        "adversarial": 0.001,
        "perceptual": 0.05,
        "style": 80.0,
        "total_variation": 0.1,
        "discriminator_weight": 0.5,  # in the authors' code; the paper has none
        # Perceptual, style and total variation losses as in the "paper" or its "code".
        "loss_form": "code",
        # VGG-19's weights: "public", or "random" with few channels, for tests.
        "vgg": "public",
        "vgg_resolution": 224,
    }


def _imputation_settings() -> dict[str, Any]:
    return {
        "latents": 32,  # channels of z, at 4 pixels
        "points": 0,  # keypoints per picture, from data.points
        # How keypoints enter a network: "scalars" or "maps", at each resolution.
        "generator_pose": "scalars",
        "discriminator_pose": "scalars",
        "imputes": True,  # imputed convolutions; else plain ones
        "form": "code",  # imputed convolutions as in the authors' "code" or the "paper"
        "weighted_down": False,  # weight averages by certainty in down-sampling
        "sums": True,  # the output is the sum of all levels' images
        "shortcuts": True,  # in the discriminator
        "pastes": True,  # known pixels into completions, before they are scored
        # The gradient penalty: "one_sided" in holes, as in the paper; "two_sided" in
        # holes, its equation 9; "everywhere", the standard one.
        "penalty": "one_sided",
        "penalty_weight": 10.0,
        "penalty_interval": 16,  # steps between updates with the penalty
        "drift": 0.001,  # weight of real images' squared scores; 1 in the authors' code
        # Grow from 8 pixels: this long at each resolution, and as long to fade in the
        # next, with batches 8 times as large up to 16 pixels, then 4 and 3 times.
        "grows": False,
        "phase_kimg": 1200.0,
        "fade_every": 4,  # steps per change of a new level's share
    }


_GROWN = {"grows": True, "shortcuts": False, "discriminator_pose": "maps"}
_IMPUTATION_LADDER: dict[str, dict[str, Any]] = {
    "a": {
        **_GROWN,
        "generator_pose": "maps",
        "imputes": False,
        "pastes": False,
        "penalty": "everywhere",
    },
    "b": {**_GROWN, "generator_pose": "maps", "imputes": False},
    "c": {**_GROWN, "imputes": False},
    "d": {**_GROWN, "weighted_down": True},
    "e": {},
    "e_conv": {"imputes": False},
}


def imputation_row(name: str) -> dict[str, Any]:
    """Return the settings of a row of Hukkelas et al.'s Table 1, without widths."""
    if name not in _IMPUTATION_LADDER:
        rows = ", ".join(_IMPUTATION_LADDER)
        raise UserError(
            f"Learnable feature imputation has no row {name!r}. Choose from {rows}."
        )
    return _IMPUTATION_LADDER[name]


def _distillation_settings() -> dict[str, Any]:
    # "Ours" are choices that the paper leaves open.
    return {
        # Parts, which make up the rows of the paper's Table 3 (distillation_row). The
        # first three also guide MI-GAN's encoder.
        "cross_distillation": False,  # from the auxiliary network's encoder
        "self_distillation": False,  # from the encoder's own next level
        "completion": False,  # completion blocks in the encoder
        "attention": False,  # in the decoder
        "attention_transfer": False,  # from the auxiliary network's attention
        "fusion": False,  # of attention and adaptive convolutions
        "matched": False,  # plain convolutions instead, with as many parameters
        # Sizes, ours; the paper states 13 M parameters.
        "channels": 64,  # of the first layer
        "kernel_size": 3,  # of adaptive convolutions
        "pooled_keys": 4,  # pixels per key and axis in the largest level's attention
        # Initial convolutions, ours: "normal" with deviation 0.02, "he", or "small_he",
        # a tenth of it.
        "initial": "normal",
        # A level's pixel is in the hole, ours: if "any" of its pixels is, or the
        # "nearest", as in RN's code.
        "level_hole": "any",
        # Attention without fusion, ours: added ("residual"), or "alone", as in eq. 8.
        "attention_output": "residual",
        # Weights of the losses. Equation 11 has 20 for distillation, 150 for style.
        "guidance_weight": 20.0,  # of both distillations
        "attention_weight": 20.0,
        "reconstruction": 1.0,
        "hole": 1.0,  # in the reconstruction, ours; GMCNN's code has 1.4
        "valid": 1.0,  # the same for known pixels; GMCNN's code has 1.2
        "style": 150.0,
        "adversarial": 0.1,
        # How squares of features are averaged, ours after L2T-ww's code: over all
        # "pixels", over "holes", or their "sum".
        "reduction": "pixels",
        "attention_reduction": "holes",  # the same for attention, ours
        "confidence_size": 65,  # pixels of the box around holes; GMCNN's kernel
        # Gram matrices of the whole batch, as in the code of the style loss's authors;
        # else of each image.
        "fold_style_batch": True,
        "style_of": "output",  # ours; or the "completed" image
        # VGG-16's weights: "public", or "random" with few channels, for tests.
        "vgg": "public",
        # The auxiliary network alone is trained first, ours: 50,000 batches of 6.
        "pretraining_kimg": 300.0,
        # Algorithm 1. Meta networks start after the first 1,000 batches, ours.
        "unrolled_steps": 2,
        # The hypergradient: "exact" through Adam's steps, through steps of SGD
        # ("sgd_virtual"), or without their Hessian ("first_order").
        "hyper_mode": "exact",
        # Batches between updates of the meta networks; if there are several, by steps
        # that are taken back.
        "meta_every": 1,
        "meta_delay_kimg": 6.0,
        "meta_learning_rate": 1e-4,  # ours, after L2T-ww's code
        "meta_weight_decay": 1e-4,  # ours, likewise
        # Added to Adam's second moments in the unrolled steps, ours: without it, the
        # derivative is infinite where gradients are 0.
        "eps_root": 1e-12,
    }


DISTILLATION_PARTS = (
    "distillation.cross_distillation",
    "distillation.self_distillation",
    "distillation.completion",
    "distillation.attention",
    "distillation.attention_transfer",
    "distillation.fusion",
    "distillation.matched",
)
_BOTH = "cross_distillation", "self_distillation"
_DISTILLATION_LADDER = {
    "baseline": ("matched",),
    "net1": _BOTH[:1],
    "net2": _BOTH[1:],
    "net3": _BOTH,
    "net4": (*_BOTH, "completion"),
    "net5": ("completion",),
    "net6": (*_BOTH, "completion", "attention"),
    "net7": (*_BOTH, "completion", "attention", "attention_transfer"),
    "net8": (*_BOTH, "completion", "attention", "attention_transfer", "fusion"),
}
_DISTILLATION_LADDER["final"] = _DISTILLATION_LADDER["net8"]


def distillation_row(name: str) -> dict[str, Any]:
    """Return the parts of a row of Suin et al.'s Table 3, and the adversary's weight.

    The rows have no adversary. "final" is net8 with one.
    """
    if name not in _DISTILLATION_LADDER:
        rows = ", ".join(_DISTILLATION_LADDER)
        raise UserError(
            f"Distillation-guided inpainting has no row {name!r}. Choose from {rows}."
        )
    parts = [part.rpartition(".")[2] for part in DISTILLATION_PARTS]
    row = {part: part in _DISTILLATION_LADDER[name] for part in parts}
    # Ours, after RN's code: equation 11 has no such term.
    return {**row, "adversarial": 0.1 if name == "final" else 0.0}


def _optimizer_settings() -> dict[str, Any]:
    from ml_collections.config_dict import placeholder

    return {
        "learning_rate": 1e-3,
        "discriminator_learning_rate": placeholder(float),  # default: learning_rate
        "b1": 0.0,
        "b2": 0.99,
        # The reference scales the generator's Adam for a lazy penalty it does not have.
        "generator_interval": 4,
        "ema_halflife_kimg": 20.0,  # of the exported networks' EMA; 0: no EMA
        # Train the discriminator alone for this long at the start.
        "warmup_kimg": 0.0,
        # FreezeD: how many levels of the discriminator to freeze, the largest first.
        "frozen_levels": 0,
    }


def _data_settings() -> dict[str, Any]:
    from ml_collections.config_dict import placeholder

    return {
        # A folder, a zip, prepared shards, "tfds:NAME[SPLIT]" or "scenes".
        "source": "scenes",
        # Your own masks: a folder or zip.
        "masks": placeholder(str),
        # A picture gets the mask of its name ("names"), or a "random" one each time.
        "mask_pairing": "names",
        "mask_hole": "white",  # or "black": the colour of the hole in your masks
        # Keypoints of each picture, for families that take them: a .json, a .npy or a
        # folder (data/points.py), or "scenes" for those of scenes:faces.
        "points": placeholder(str),
        "mask_kind": "free_form",  # of random masks, without your own
        "draw_masks_on": "device",  # or "host", which is faster on CPUs
        "crop": "square",  # the largest; or "whole" (squeezed) or "native"
        "crop_scale": 1.0,  # minimum side of a random crop, relative to the largest
        # Reject pictures with a shorter side; default: half the stage's resolution.
        "smallest_side": placeholder(int),
        "max_rejected_fraction": 0.05,  # stop if more pictures are unusable
        "workers": 0,  # loader processes; 0: threads, which are as fast for photos
        "held_out": 8,  # validation pictures, never trained on
        # Their source, given like `source`; default: they are taken from `source`.
        "validation": placeholder(str),
        "validation_points": placeholder(str),  # its keypoints, like `points`
    }


ABOVE_0 = math.ulp(0.0)  # the smallest positive float
MAX_STEPS = 2**31 - 1  # steps are counted in int32
MAX_KIMG = 1e6  # fewer than MAX_STEPS steps, even with batches of one
# Ranges of numbers, both ends included. An int minimum asks for a whole number.
RANGES = {
    "seed": (0, 2**32 - 1),  # the bits JAX uses
    "resolution": (8, 16_384),  # as for masks
    "batch_size": (1, 65_536),
    "total_kimg": (ABOVE_0, MAX_KIMG),
    "networks.channel_base": (1, 2**24),
    "networks.channel_max": (1, 8192),
    "reparam.kernels": (1, 100),
    "comodgan.z_dim": (1, 8192),
    "comodgan.w_dim": (1, 8192),
    "comodgan.encoder_dim": (1, 8192),
    "comodgan.mixing_probability": (0.0, 1.0),
    "deepgin.channels": (2, 8192),
    "deepgin.discriminator_channels": (1, 8192),
    "deepgin.subsampling": (1, 16),
    "deepgin.warmup_kimg": (0.0, MAX_KIMG),
    "deepgin.constant_kimg": (0.0, MAX_KIMG),
    "deepgin.decay_kimg": (0.0, MAX_KIMG),
    "deepgin.max_gradient_norm": (ABOVE_0, 1e6),
    "deepgin.hole": (0.0, 1e6),
    "deepgin.adversarial": (0.0, 1e6),
    "deepgin.perceptual": (0.0, 1e6),
    "deepgin.style": (0.0, 1e6),
    "deepgin.total_variation": (0.0, 1e6),
    "deepgin.discriminator_weight": (0.0, 1e6),
    "deepgin.vgg_resolution": (16, 16_384),  # VGG halves it four times
    "imputation.latents": (1, 8192),
    "imputation.points": (0, 1000),
    "imputation.penalty_weight": (0.0, 1e6),
    "imputation.penalty_interval": (1, MAX_STEPS),
    "imputation.drift": (0.0, 1e6),
    "imputation.phase_kimg": (ABOVE_0, MAX_KIMG),
    "imputation.fade_every": (1, MAX_STEPS),
    "distillation.channels": (2, 8192),
    "distillation.kernel_size": (1, 31),
    "distillation.pooled_keys": (1, 4),
    "distillation.guidance_weight": (0.0, 1e6),
    "distillation.attention_weight": (0.0, 1e6),
    "distillation.reconstruction": (0.0, 1e6),
    "distillation.hole": (0.0, 1e6),
    "distillation.valid": (0.0, 1e6),
    "distillation.style": (0.0, 1e6),
    "distillation.adversarial": (0.0, 1e6),
    "distillation.confidence_size": (1, 16_384),
    "distillation.pretraining_kimg": (0.0, MAX_KIMG),
    "distillation.unrolled_steps": (1, 100),
    "distillation.meta_every": (1, MAX_STEPS),
    "distillation.meta_delay_kimg": (0.0, MAX_KIMG),
    "distillation.meta_learning_rate": (1e-30, 1e38),
    "distillation.meta_weight_decay": (0.0, 1e6),
    "distillation.eps_root": (1e-30, 1.0),
    "losses.distillation": (0.0, 1e6),
    "losses.l1": (0.0, 1e6),
    "losses.r1_gamma": (0.0, 1e6),
    "losses.r1_interval": (1, MAX_STEPS),
    "optimizer.learning_rate": (1e-30, 1e38),  # float32
    "optimizer.discriminator_learning_rate": (1e-30, 1e38),
    "optimizer.b1": (0.0, 0.999999),  # in float32, more would round to 1
    "optimizer.b2": (0.0, 0.999999),
    "optimizer.generator_interval": (1, MAX_STEPS),
    "optimizer.ema_halflife_kimg": (0.0, MAX_KIMG),
    "optimizer.warmup_kimg": (0.0, MAX_KIMG),
    "optimizer.frozen_levels": (0, 100),
    "microbatches": (1, 65_536),
    "mesh.space": (1, 16_384),
    "data.crop_scale": (ABOVE_0, 1.0),
    "data.smallest_side": (1, 1_000_000),
    "data.max_rejected_fraction": (0.0, 1.0),
    "data.workers": (0, 1024),
    "data.held_out": (0, 1_000_000),
    "log_every_steps": (1, MAX_STEPS),
    "save_every_steps": (1, MAX_STEPS),
    "keep_last": (1, 1_000_000),
    "keep_best": (0, 1_000_000),
    "patience_kimg": (ABOVE_0, MAX_KIMG),
    "nonfinite_steps": (1, MAX_STEPS),
    "hang_seconds": (ABOVE_0, 1e9),
}


def check_numbers(config: "ConfigDict") -> None:
    """Raise UserError if a number is outside its range."""
    settings, defaults = flat(config), flat(base_config())
    for key, (minimum, maximum) in RANGES.items():
        value, default = settings.get(key), defaults[key]
        alternative = {None: ", or none", "auto": ", or auto"}.get(default, "")
        if alternative and value == default:
            continue
        whole = isinstance(minimum, int)
        is_number = isinstance(value, int if whole else (int, float))
        if is_number and not isinstance(value, bool) and minimum <= value <= maximum:
            continue
        kind = "a whole number " if whole else ""
        span = "above 0 and at most" if minimum == ABOVE_0 else f"from {minimum:g} to"
        span += f" {maximum:,.10g}{alternative}"
        raise UserError(f"{key} is {value!r}, but must be {kind}{span}.")


def check_choices(config: "ConfigDict", choices: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError if a setting has none of the values that it may have."""
    settings = flat(config)
    for key, allowed in choices.items():
        if settings[key] not in allowed:
            raise UserError(
                f"{key} is {settings[key]!r}, but must be one of {', '.join(allowed)}."
            )


def refuse_settings(config: "ConfigDict", *keys: str) -> None:
    """Raise UserError if one of these settings, which the system ignores, is set."""
    settings = flat(config)
    for key in keys:
        if settings[key]:
            raise UserError(
                f"{key} is not for system={config.system}: leave it at its default."
            )


def smoke(config: "ConfigDict", devices: int = 1) -> None:
    """Shrink a recipe to two steps of tiny networks on scenes, for a smoke test.

    The batch size is a multiple of the number of devices.
    """
    batch_size = math.lcm(8 if 8 % devices == 0 else 4, devices)
    config.update(
        {
            # Patch discriminators need more pixels.
            "resolution": 32 if config.system == "distillation" else 16,
            "batch_size": batch_size,
            "microbatches": 1,
            "mesh": {"space": "auto"},
            "total_kimg": 2 * batch_size / 1000,
            "networks": {"channel_base": 256, "channel_max": 8},
            "comodgan": {"z_dim": 8, "w_dim": 8, "encoder_dim": 8},
            "deepgin": {
                "channels": 4,
                "discriminator_channels": 4,
                # One step of each stage.
                "warmup_kimg": batch_size / 1000 if config.deepgin.warmup_kimg else 0,
                "vgg": "random",
                "vgg_resolution": 32,
            },
            "imputation": {
                "latents": 4,
                "points": 7 if config.data.points else 0,  # those of drawn faces
                "phase_kimg": batch_size / 1000,
            },
            "distillation": {
                "channels": 4,
                "vgg": "random",
                "confidence_size": 15,
                # One step of the auxiliary network, one of the others.
                "pretraining_kimg": batch_size / 1000,
                "meta_delay_kimg": 0,
            },
            "optimizer": {"warmup_kimg": 0, "frozen_levels": 0},
            "data": {
                "source": "scenes:faces" if config.data.points else "scenes",
                "points": "scenes" if config.data.points else None,
                # DeepGIN draws several masks per image, on the device.
                "draw_masks_on": "device" if config.system == "deepgin" else "host",
                "mask_pairing": "names",
                "held_out": 2,
                "workers": 0,
            },
            "log_every_steps": 1,
            "save_every_steps": 1,
        }
    )
    for key in ("teacher", "data.masks", "data.validation", "data.validation_points"):
        config.update_from_flattened_dict({key: None})


def load_config(
    recipe: str, settings: Sequence[str], tiny: bool, devices: int = 1
) -> "ConfigDict":
    """Load a recipe and override some of its settings.

    Args:
      recipe: a file, or the name of a recipe of the package; ":NAME" after it is the
        recipe's argument.
      settings: "key=value", nested keys with dots.
      tiny: shrink the recipe before the settings are applied.
      devices: number of devices of a tiny recipe.
    """
    from ml_collections import ConfigDict

    location, _, argument = recipe.partition(":")
    path = _recipe_path(location)
    module = importlib.util.module_from_spec(
        spec := importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    )
    try:
        spec.loader.exec_module(module)
        returned = module.get_config(*([argument] if argument else []))
        if not isinstance(returned, ConfigDict):
            raise TypeError("get_config returns no ConfigDict")
        config = base_config()  # so that settings have the types of the defaults
        config.update_from_flattened_dict(flat(returned))
    except UserError:
        raise
    # A recipe is a program: it may fail in any way.
    except (Exception, SystemExit) as error:
        unknown = re.search('Key "(.*?)" does not exist', str(error))
        what = f"there is no setting {unknown[1]}" if unknown else reason(error)
        near = did_you_mean(unknown[1], flat(base_config())) if unknown else ""
        raise UserError(f"Cannot load recipe {path}: {what}{near}.") from error
    check_numbers(config)
    if tiny:
        smoke(config, devices)
    for setting in settings:
        _apply(config, setting)
    check_numbers(config)
    return config


def recipe_names() -> list[str]:
    """Return the names of the package's recipes."""
    return sorted(path.stem for path in _recipe_folder().glob("[a-z]*.py"))


def _recipe_folder() -> Path:
    """Return the recipes' folder: in the package if installed, else beside it."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _recipe_path(location: str) -> Path:
    if location.endswith(".py"):
        if os.path.isfile(location):
            return Path(location)
        raise UserError(f"Recipe {location} does not exist.")
    names = recipe_names()
    if location in names:
        return _recipe_folder() / f"{location}.py"
    raise UserError(
        f"Recipe {location!r} does not exist{did_you_mean(location, names)}. Give a "
        f".py file, or one of {', '.join(names)}."
    )


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the most similar word, or an empty string."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def flat(config: "ConfigDict") -> dict[str, Any]:
    """Return all settings in one dict, nested keys joined with dots."""
    from ml_collections import ConfigDict

    settings: dict[str, Any] = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            settings |= {f"{key}.{inner}": v for inner, v in flat(value).items()}
        else:
            settings[key] = value
    return settings


def _apply(config: "ConfigDict", setting: str) -> None:
    """Set one "key=value"."""
    from migan_jax.settings import current_key, warn_of_renamed

    key, _, text = setting.partition("=")
    warn_of_renamed(key)
    key, keys = current_key(key), flat(config)
    if key not in keys:
        near = did_you_mean(key, keys) or did_you_mean(key.rpartition(".")[2], keys)
        raise UserError(f"--config.{key}: no such setting{near}.")
    *path, last = key.split(".")
    inner = functools.reduce(getitem, path, config)
    kind = inner.get_type(last)
    try:
        unset = flat(base_config())[key] is None and text.lower() == "none"
        inner[last] = None if unset else _READERS[kind](text)
    except ValueError as error:
        raise UserError(
            f"--config.{key} takes {_KINDS[kind]}, not {text[:40]!r}."
        ) from error


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _read_int(text: str) -> int:
    return int(text.replace("_", ""))


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    object: "auto or a whole number",
}
_READERS = {
    bool: _read_bool,
    int: _read_int,
    float: float,
    str: str,
    object: lambda text: text if text == "auto" else _read_int(text),
}


def available_cores() -> int:
    """Return the number of cores this process may use; containers limit it."""
    if hasattr(os, "sched_getaffinity"):  # only on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _VerbParser(argparse.ArgumentParser):
    """Reports a misspelt flag first; argparse would report it as missing."""

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        args = sys.argv[1:] if args is None else args
        known = [flag for action in self._actions for flag in action.option_strings]
        for word in args:
            flag = word.partition("=")[0]
            if word == "--":
                break
            if re.match("-+[a-zA-Z]", flag) and flag not in known:
                self.error(f"no such flag: {flag}{did_you_mean(flag, known)}")
        return super().parse_known_args(args, namespace)


def verb_parser(verb: str, documentation: str) -> argparse.ArgumentParser:
    """Make a parser that shows the verb's module docstring as --help."""
    return _VerbParser(
        prog=f"python -m migan_jax.{verb}",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config and, for the help, --config.KEY, which `split_settings` reads."""
    parser.add_argument(
        "--config",
        metavar="RECIPE[:VARIANT]",
        required=True,
        help=f"a .py file, or one of {', '.join(recipe_names())}",
    )
    parser.add_argument(
        "--config.KEY",
        metavar="VALUE",
        help="override a setting, such as --config.batch_size=16; "
        "migan_jax/config.py lists all of them",
    )


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off --config.KEY=VALUE and --config.KEY VALUE, as "KEY=VALUE"."""
    settings, others = [], []
    remaining = iter(words)
    for word in remaining:
        key = word.removeprefix("--config.")
        if key == word:
            others.append(word)
        elif "=" in word:
            settings.append(key)
        else:
            value = next(remaining, "")
            settings.append(f"{key}={'' if value.startswith('--') else value}")
            others += [value] if value.startswith("--") else []
    return settings, others


def whole_number(minimum: int, maximum: int = 1_000_000_000) -> Callable[[str], int]:
    """Make an argument type: a whole number from `minimum` to `maximum`."""

    def read(text: str) -> int:
        # int() rejects thousands of digits.
        readable = text.isdecimal() and len(text) < 20
        if not readable or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {minimum} to {maximum:,}"
            )
        return int(text)

    return read


def run_verb(main: Callable[[], None]) -> None:
    """Run a verb. A UserError becomes one sentence on stderr and exit status 1."""
    # Shells ignore it for background jobs; leave that as it is.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    for name in ("stdin", "stdout", "stderr"):  # in the order of their descriptors
        if getattr(sys, name) is None:  # closed by `>&-`: reserve its descriptor
            setattr(sys, name, open(os.devnull, "r+"))
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    try:
        os.write(1, b"")  # fails early if stdout cannot be written
        main()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        # Python flushes stdout again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # as with `| head`
            sys.exit(1)
        sys.exit(f"error: Cannot write to stdout: {reason(error)}.")
    except KeyboardInterrupt:
        sys.exit("interrupted")


_UNWRITABLE = errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not during imports or garbage collection.

    There it would be swallowed, or crash; then it is raised a bit later.
    """
    collecting = [getattr(call, "__code__", None) for call in gc.callbacks]
    while frame is not None:
        code = frame.f_code
        if "importlib._bootstrap" in code.co_filename or code in collecting:
            if not _pending:
                _pending.append(number)
                threading.Thread(target=_repeat, args=(number,), daemon=True).start()
            return
        frame = frame.f_back
    _pending.clear()
    raise KeyboardInterrupt


_pending: list[int] = []  # without a lock: a second signal could deadlock on it
_REPEAT_SECONDS = 0.05


def _repeat(number: int) -> None:
    """Send the signal until it is handled, since a blocking call may miss one."""
    while True:
        time.sleep(_REPEAT_SECONDS)
        if not _pending:
            return
        if signal.getsignal(number) is not _interrupt:
            _pending.clear()  # another handler gets it once
        if hasattr(signal, "pthread_kill"):  # interrupts blocking calls
            signal.pthread_kill(threading.main_thread().ident, number)
        else:  # Windows
            signal.raise_signal(number)


@contextlib.contextmanager
def progress(total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """Show progress: a bar on a terminal, elsewhere a line every 10 %.

    Yields a function to call with the number of units just done.
    """
    from tqdm import tqdm

    done = 0

    def print_tenths(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if 10 * before // total < 10 * done // total:
            print(f"{done:,} of {total:,} {unit}s", flush=True)

    with tqdm(
        total=total, unit=unit, disable=None
    ) as bar:  # None: off without a terminal
        yield print_tenths if bar.disable else bar.update
