"""Paths of checkpoints, and checks of the paths that users give.

Does not import JAX, so that a wrong path is reported at once.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from migan_jax.buckets import Bucket, bucket_address
from migan_jax.errors import UserError
from migan_jax.files import CACHE, refuse_address, refuse_undecodable

# To write and to read; `.ckpt` is of training checkpoints, which are only read.
OUTPUT_SUFFIXES = ".pt", ".pth", ".safetensors"
TORCH_SUFFIXES = ".pt", ".pth", ".ckpt"
FILE_SUFFIXES = *TORCH_SUFFIXES, ".safetensors"
# In a run's workdir: its checkpoints and its initial settings.
CHECKPOINTS, CONFIG_FILE = "checkpoints", "config.json"
# In a checkpoint: the digests of its files, written last, and what only runs read.
MANIFEST, OPTIMIZER = "manifest.json", "optimizer"


def resolve_path(path: Path) -> tuple[Path, int | None]:
    """Split `<workdir>/checkpoints/<step>`; the step of other paths is None."""
    if path.parent.name == CHECKPOINTS and path.name.isdecimal():
        return path.parent.parent, int(path.name)
    return path, None


def find_checkpoint(path: Path, more_suffixes: Sequence[str] = ()) -> Path:
    """Return a checkpoint's local path; download it first if it is in a bucket.

    Raises UserError if it cannot be a checkpoint.

    Args:
      path: a file, a workdir, or one of its checkpoints.
      more_suffixes: further extensions that the caller accepts.
    """
    if bucket_address(path):
        path = _download(path)
    refuse_address(path)
    if os.path.isdir(path):
        refuse_undecodable(path)
        workdir, _ = resolve_path(path)
        if not (workdir / CHECKPOINTS).is_dir():
            raise UserError(
                f"{path} is not a run's workdir: it has no folder {CHECKPOINTS}/."
            )
    else:
        check_file(path, more_suffixes)
    return path


def _download(path: Path) -> Path:
    """Download a file, or the newest or given checkpoint of a workdir.

    The state of a run's optimizers stays there: only the run itself reads it.
    """
    workdir, step = resolve_path(path)
    address = bucket_address(workdir)
    folder = CACHE / "downloads" / address.replace("://", "/")
    bucket = Bucket(address)
    names = bucket.names()
    if "" in names:
        parent, _, name = address.rpartition("/")
        Bucket(parent).download([name], folder.parent)
        return folder
    complete = (re.fullmatch(f"{CHECKPOINTS}/([0-9]+)/{MANIFEST}", n) for n in names)
    steps = [int(found[1]) for found in complete if found]
    if not steps or step not in (None, *steps):
        which = "" if step is None else f" of step {step}"
        raise UserError(f"{address} holds no finished checkpoint{which}.")
    item = f"{CHECKPOINTS}/{max(steps) if step is None else step}/"
    bucket.download(
        [
            name
            for name in names
            if name == CONFIG_FILE
            or (name.startswith(item) and not name.startswith(f"{item}{OPTIMIZER}/"))
        ],
        folder,
    )
    return folder / item


def check_file(path: Path, more_suffixes: Sequence[str] = ()) -> None:
    """Raise UserError if the path cannot be a tensor file."""
    if not os.path.isfile(path):  # unlike Path.is_file, False in forbidden folders
        raise UserError(f"There is no checkpoint at {path}.")
    if path.suffix in (".pkl", ".pickle"):
        raise pickled_code_error(path)
    if path.suffix not in (suffixes := (*FILE_SUFFIXES, *more_suffixes)):
        raise UserError(
            f"{path} is not a checkpoint: its extension must be one of "
            f"{', '.join(suffixes)}. A run's workdir is accepted too."
        )


def pickled_code_error(path: Path) -> UserError:
    """Return the error for a file that pickles more than tensors."""
    return UserError(
        f"{path} was not loaded, because that would run code stored in the file (it "
        f"pickles more than tensors). If you trust it, load it in the program that "
        f"wrote it and save only the weights: torch.save(network.state_dict(), "
        f"'weights.pt')."
    )
