"""The settings of a run with their defaults, and what all command lines share."""

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import getitem
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from migan_jax.errors import UserError
from migan_jax.files import reason

if TYPE_CHECKING:
    from ml_collections import ConfigDict


# Where the authors' weights are.
RELEASED = "https://github.com/Picsart-AI-Research/MI-GAN"


def base_config() -> "ConfigDict":
    """Every setting that there is; a recipe changes some of them.

    Sizes in kimg are thousands of training images.
    """
    from ml_collections import ConfigDict
    from ml_collections.config_dict import FieldReference, placeholder

    return ConfigDict(
        {
            "system": "migan",  # a family of families.py
            "seed": 0,
            "resolution": 512,
            "batch_size": 32,  # of all processes together
            "total_kimg": 25_000.0,
            # A Co-Mod-GAN to distil from: a .pt, a .safetensors or a run's workdir.
            "teacher": placeholder(str),
            "networks": {
                "channel_base": 32768,  # channels at resolution r: base / r ...
                "channel_max": 512,  # ... but no more than these
                # Of activations; parameters are float32. "auto" is bfloat16 where the
                # devices have it, else float32; a run keeps what it began with.
                "dtype": "auto",
                "remat": False,  # compute activations twice, to save memory
            },
            "reparam": {  # MI-GAN's kernels
                "kernels": 9,  # that each convolution's kernel is the sum of
                "expanded": False,  # keep all of them, for the same result
            },
            "comodgan": {
                "z_dim": 512,
                "w_dim": 512,
                "encoder_dim": 1024,
                "mixing_probability": 0.5,  # of two styles in one picture
            },
            "losses": {
                "distillation": 2.0,  # weight, where there is a teacher
                "l1": 0.0,  # weight of the distance to the truth, inside holes
                "r1_gamma": 10.0,
                "r1_interval": 16,  # steps from one R1 update to the next
            },
            "optimizer": _optimizer_settings(),
            "parts": 1,  # of a batch, that are used in turns, to save memory
            "mesh": {
                # Devices that share an image, by rows; "auto" is as few as let all
                # devices have some of the batch.
                "space": FieldReference("auto", field_type=object),
            },
            "data": _data_settings(),
            "log_every_steps": 100,
            "save_every_steps": 2500,  # checkpoint, sample grid, held-out figures
            "keep_last": 2,  # checkpoints
            "keep_best": 1,  # by the held-out figure that best_by names
            # Or psnr, ssim, hole_ssim, l1, hole_l1; and with their networks' weights
            # fid, kid, lpips_alex, lpips_vgg, for which many should be held out.
            "best_by": "hole_psnr",
            # Stop when that figure has not improved for so long.
            "patience_kimg": placeholder(float),
            # Steps in a row with a loss that is not finite, until the run is stopped.
            "nonfinite_steps": 20,
        }
    ).lock()


def _optimizer_settings() -> dict[str, Any]:
    from ml_collections.config_dict import placeholder

    return {
        "learning_rate": 1e-3,
        "discriminator_learning_rate": placeholder(float),  # if it is another
        "b1": 0.0,
        "b2": 0.99,
        # As if the generator had a lazy penalty too, like the reference.
        "generator_interval": 4,
        "ema_halflife_kimg": 20.0,  # of the exported weights' average; 0: none
        # Of the run's beginning, in which the discriminator learns alone.
        "warmup_kimg": 0.0,
        # Levels of the discriminator, from the largest on, that stay as they are.
        "frozen_levels": 0,
    }


def _data_settings() -> dict[str, Any]:
    from ml_collections.config_dict import placeholder

    return {
        # A folder, a zip, prepared shards, "tfds:NAME[SPLIT]" or "scenes".
        "source": "scenes",
        # Own masks, of the pictures' names: a folder or zip.
        "masks": placeholder(str),
        "mask_hole": "white",  # or "black": what own masks show the hole in
        "mask_kind": "free_form",  # drawn where there are no own masks
        "draw_masks_on": "device",  # or "host", which a CPU is faster at
        "crop": "square",  # the largest; or "whole" (squeezed), "native"
        "crop_scale": 1.0,  # smallest share of the square's side
        # Refuse pictures with a shorter side; default half the resolution.
        "smallest_side": placeholder(int),
        "bad_share": 0.05,  # more pictures that cannot be used end the run
        "workers": 0,  # processes that load; 0: threads, as fast for photos
        "held_out": 8,  # pictures to watch the run by; never trained on
        # What they are of, given like `source`; else some of its own are held out.
        "validation": placeholder(str),
    }


ABOVE_0 = math.ulp(0.0)  # the next float
STEPS = 2**31 - 1  # which are counted in int32
KIMG = 1e6  # of batches of one no more steps than that
# What numbers may be, both ends included; where these are whole, so are those.
RANGES = {
    "seed": (0, 2**32 - 1),  # JAX takes no more bits
    "resolution": (8, 16_384),  # as masks
    "batch_size": (1, 65_536),
    "total_kimg": (ABOVE_0, KIMG),
    "networks.channel_base": (1, 2**24),
    "networks.channel_max": (1, 8192),
    "reparam.kernels": (1, 100),
    "comodgan.z_dim": (1, 8192),
    "comodgan.w_dim": (1, 8192),
    "comodgan.encoder_dim": (1, 8192),
    "comodgan.mixing_probability": (0.0, 1.0),
    "losses.distillation": (0.0, 1e6),
    "losses.l1": (0.0, 1e6),
    "losses.r1_gamma": (0.0, 1e6),
    "losses.r1_interval": (1, STEPS),
    "optimizer.learning_rate": (1e-30, 1e38),  # as float32
    "optimizer.discriminator_learning_rate": (1e-30, 1e38),
    "optimizer.b1": (0.0, 0.999999),  # float32 takes what is nearer to 1 for 1
    "optimizer.b2": (0.0, 0.999999),
    "optimizer.generator_interval": (1, STEPS),
    "optimizer.ema_halflife_kimg": (0.0, KIMG),
    "optimizer.warmup_kimg": (0.0, KIMG),
    "optimizer.frozen_levels": (0, 100),
    "parts": (1, 65_536),
    "mesh.space": (1, 16_384),
    "data.crop_scale": (ABOVE_0, 1.0),
    "data.smallest_side": (1, 1_000_000),
    "data.bad_share": (0.0, 1.0),
    "data.workers": (0, 1024),
    "data.held_out": (0, 1_000_000),
    "log_every_steps": (1, STEPS),
    "save_every_steps": (1, STEPS),
    "keep_last": (1, 1_000_000),
    "keep_best": (0, 1_000_000),
    "patience_kimg": (ABOVE_0, KIMG),
    "nonfinite_steps": (1, STEPS),
}


def check_numbers(config: "ConfigDict") -> None:
    """UserError for a setting that is no number of its range, by its name."""
    settings, defaults = flat(config), flat(base_config())
    for key, (least, most) in RANGES.items():
        value, default = settings.get(key), defaults[key]
        besides = {None: ", or none", "auto": ", or auto"}.get(default, "")
        if besides and value == default:
            continue
        whole = isinstance(least, int)
        is_number = isinstance(value, int if whole else (int, float))
        if is_number and not isinstance(value, bool) and least <= value <= most:
            continue
        kind = "a whole number " if whole else ""
        span = "above 0 and at most" if least == ABOVE_0 else f"from {least:g} to"
        raise UserError(
            f"{key} is {value!r}, but must be {kind}{span} {most:,.10g}{besides}."
        )


def smoke(config: "ConfigDict", devices: int = 1) -> None:
    """Shrink a recipe to two steps of tiny networks on scenes: does it run at all?

    The batch is one that can be split over so many devices, however odd their number.
    """
    batch_size = math.lcm(8 if 8 % devices == 0 else 4, devices)
    config.update(
        {
            "resolution": 16,
            "batch_size": batch_size,
            "parts": 1,
            "mesh": {"space": "auto"},
            "total_kimg": 2 * batch_size / 1000,
            "networks": {"channel_base": 256, "channel_max": 8},
            "comodgan": {"z_dim": 8, "w_dim": 8, "encoder_dim": 8},
            "optimizer": {"warmup_kimg": 0, "frozen_levels": 0},
            "data": {
                "source": "scenes",
                "draw_masks_on": "host",
                "held_out": 2,
                "workers": 0,
            },
            "log_every_steps": 1,
            "save_every_steps": 1,
        }
    )
    for key in ("teacher", "data.masks", "data.validation"):
        config.update_from_flattened_dict({key: None})


def load_config(
    recipe: str, settings: Sequence[str], tiny: bool, devices: int = 1
) -> "ConfigDict":
    """A recipe's configuration, with settings "key=value" put over it.

    Args:
      recipe: a file, or the name of one that comes with the package; ":NAME" after it
        is the recipe's argument.
      settings: "key=value", nested keys with dots.
      tiny: shrink the recipe before the settings are applied.
      devices: how many a tiny recipe is for.
    """
    location, _, argument = recipe.partition(":")
    path = _recipe_path(location)
    module = importlib.util.module_from_spec(
        spec := importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    )
    try:
        spec.loader.exec_module(module)
        made = module.get_config(*([argument] if argument else []))
        if not isinstance(made, type(base_config())):
            raise TypeError("get_config returns none")
        config = base_config()  # whatever was made, settings are of these types
        config.update_from_flattened_dict(flat(made))
    except UserError:
        raise
    # A recipe is a program, in which anything may fail.
    except (Exception, SystemExit) as error:
        unknown = re.search('Key "(.*?)" does not exist', str(error))
        what = f"there is no setting {unknown[1]}" if unknown else reason(error)
        near = nearest(unknown[1], flat(base_config())) if unknown else ""
        raise UserError(f"{path} makes no configuration: {what}{near}.") from error
    check_numbers(config)
    if tiny:
        smoke(config, devices)
    for setting in settings:
        _apply(config, setting)
    check_numbers(config)
    return config


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in _recipe_folder().glob("[a-z]*.py"))


def _recipe_folder() -> Path:
    """In an installation they are part of the package, in a checkout beside it."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _recipe_path(location: str) -> Path:
    if location.endswith(".py"):
        if os.path.isfile(location):
            return Path(location)
        raise UserError(f"There is no recipe {location}.")
    names = recipe_names()
    if location in names:
        return _recipe_folder() / f"{location}.py"
    raise UserError(
        f"There is no recipe {location!r}{nearest(location, names)}: name a file "
        f"that ends in .py, or one of {', '.join(names)}."
    )


def nearest(word: str, words: Iterable[str]) -> str:
    """What to add to a sentence on a misspelt word: the most similar one, if any."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def flat(config: "ConfigDict") -> dict[str, Any]:
    """All settings by their keys with dots."""
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
    """Put one "key=value" over a configuration."""
    key, _, text = setting.partition("=")
    keys = flat(config)
    if key not in keys:
        near = nearest(key, keys) or nearest(key.rpartition(".")[2], keys)
        raise UserError(f"--config.{key}: there is no such setting{near}.")
    *path, last = key.split(".")
    inner = functools.reduce(getitem, path, config)
    kind = inner.get_type(last)
    try:
        unset = flat(base_config())[key] is None and text.lower() == "none"
        inner[last] = None if unset else _READERS[kind](text)
    except ValueError as error:
        said = text[:40]
        raise UserError(f"--config.{key} is {_KINDS[kind]}, not {said!r}.") from error


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
    """Those that this process may use, which in a container are not all."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _VerbParser(argparse.ArgumentParser):
    """Names a misspelt flag before anything else that is wrong, such as a missing one.

    argparse would complain of what is missing, which often is what was misspelt.
    """

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
                self.error(f"there is no flag {flag}{nearest(flag, known)}")
        return super().parse_known_args(args, namespace)


def verb_parser(verb: str, documentation: str) -> argparse.ArgumentParser:
    """A parser whose --help is the verb's own module docstring."""
    return _VerbParser(
        prog=f"python -m migan_jax.{verb}",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def whole_number(least: int, most: int = 1_000_000_000) -> Callable[[str], int]:
    """What reads an argument that is a whole number from `least` to `most`."""

    def read(text: str) -> int:
        readable = text.isdecimal() and len(text) < 20  # int() refuses thousands
        if not readable or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no whole number from {least} to {most:,}"
            )
        return int(text)

    return read


def run_verb(main: Callable[[], None]) -> None:
    """Run a verb; a user's mistake is one sentence on stderr and exit status 1."""
    # Where a shell has it ignored, as for jobs in the background, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers
        if getattr(sys, name) is None:  # closed, as by `>&-`: no other file gets it
            setattr(sys, name, open(os.devnull, "r+"))
    sys.stdout.reconfigure(errors="backslashreplace")  # file names are any bytes
    try:
        os.write(1, b"")  # which fails where more would
        main()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        # Python writes what it still has when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # nobody reads on, as with `| head`
            sys.exit(1)
        sys.exit(f"error: What is printed cannot be written: {reason(error)}.")
    except KeyboardInterrupt:
        sys.exit("interrupted")


_UNWRITABLE = errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but where it would be swallowed, or crash, a bit later.

    That is while modules are imported, and in what is called by the garbage collector.
    """
    collecting = [getattr(call, "__code__", None) for call in gc.callbacks]
    while frame is not None:
        code = frame.f_code
        if "importlib._bootstrap" in code.co_filename or code in collecting:
            if not _pending:
                _pending.append(number)
                threading.Thread(target=_insist, args=(number,), daemon=True).start()
            return
        frame = frame.f_back
    _pending.clear()
    raise KeyboardInterrupt


_pending: list[int] = []  # and no lock, which a second signal might find taken
_LATER = 0.05  # seconds


def _insist(number: int) -> None:
    """Send the signal again and again, since a call that waits may miss one."""
    while True:
        time.sleep(_LATER)
        if not _pending:
            return
        if signal.getsignal(number) is not _interrupt:
            _pending.clear()  # what has replaced it is told once
        if hasattr(signal, "pthread_kill"):  # which wakes a call that waits
            signal.pthread_kill(threading.main_thread().ident, number)
        else:  # Windows
            signal.raise_signal(number)


@contextlib.contextmanager
def progress(total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """Show how far long work is: a bar on a terminal, elsewhere a line every tenth.

    Gives what is to be called with the number of things just done.
    """
    from tqdm import tqdm

    done = 0

    def say(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if 10 * before // total < 10 * done // total:
            print(f"{done:,} of {total:,} {unit}s", flush=True)

    with tqdm(total=total, unit=unit, disable=None) as bar:  # None: unless a terminal
        yield say if bar.disable else bar.update
