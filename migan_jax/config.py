"""The settings of a run with their defaults, and what all command lines share."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from migan_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def base_config() -> "ConfigDict":
    """Every setting that there is; a recipe changes some of them."""
    from ml_collections import ConfigDict
    from ml_collections.config_dict import placeholder

    return ConfigDict(
        {
            "seed": 0,
            "resolution": 512,
            "batch_size": 32,  # of all processes together
            "data": {
                # A folder, a zip, prepared shards, "tfds:NAME[SPLIT]" or "scenes".
                "source": "scenes",
                # Own masks, of the pictures' names: a folder or zip.
                "masks": placeholder(str),
                "mask_hole": "white",  # or "black": what own masks show the hole in
                "mask_kind": "free_form",  # drawn where there are no own masks
                "crop": "square",  # the largest; or "whole" (squeezed), "native"
                "crop_scale": 1.0,  # smallest share of the square's side
                # Refuse pictures with a shorter side; default half the resolution.
                "smallest_side": placeholder(int),
                "bad_share": 0.05,  # more pictures that cannot be used end the run
                "workers": 0,  # processes that load; 0: threads, as fast for photos
            },
        }
    )


def available_cores() -> int:
    """Those that this process may use, which in a container are not all."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def verb_parser(verb: str, documentation: str) -> argparse.ArgumentParser:
    """A parser whose --help is the verb's own module docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m migan_jax.{verb}",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run_verb(main: Callable[[], None]) -> None:
    """Run a verb; a user's mistake is one sentence on stderr and exit status 1."""
    sys.stdout.reconfigure(errors="backslashreplace")  # file names are any bytes
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("interrupted")


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
