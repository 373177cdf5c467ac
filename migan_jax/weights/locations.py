"""Where checkpoints lie: what a path that a user names may be, without reading it.

JAX is not needed for it, so that a wrong path is named before that is imported.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from migan_jax.errors import UserError
from migan_jax.files import refuse_address, refuse_undecodable

TORCH_ENDINGS = ".pt", ".pth"
FILE_ENDINGS = *TORCH_ENDINGS, ".safetensors"
# In a run's workdir: its checkpoints, and the settings that it was begun with.
CHECKPOINTS, CONFIG_FILE = "checkpoints", "config.json"


def located(path: Path) -> tuple[Path, int | None]:
    """The workdir and step that a path names: `<workdir>/checkpoints/<step>` or not."""
    if path.parent.name == CHECKPOINTS and path.name.isdecimal():
        return path.parent.parent, int(path.name)
    return path, None


def check_checkpoint(path: Path, more_endings: Sequence[str] = ()) -> None:
    """UserError for what is no checkpoint by its name or place.

    Args:
      path: a file, a workdir, or one of its checkpoints.
      more_endings: of files that the caller takes besides.
    """
    refuse_address(path)
    if os.path.isdir(path):
        refuse_undecodable(path)
        workdir, _ = located(path)
        if not (workdir / CHECKPOINTS).is_dir():
            raise UserError(
                f"{path} is not a run's workdir: it has no folder {CHECKPOINTS}/."
            )
    else:
        check_file(path, more_endings)


def check_file(path: Path, more_endings: Sequence[str] = ()) -> None:
    """The same of a file of tensors."""
    if not os.path.isfile(path):  # unlike Path.is_file, False for forbidden folders
        raise UserError(f"There is no checkpoint at {path}.")
    if path.suffix in (".pkl", ".pickle"):
        raise needs_code(path)
    if path.suffix not in (*FILE_ENDINGS, *more_endings):
        raise UserError(
            f"{path} is not a checkpoint: expected a file ending in "
            f"{', '.join((*FILE_ENDINGS, *more_endings))}, or a run's workdir."
        )


def needs_code(path: Path) -> UserError:
    """The sentence for a file that pickles more than tensors."""
    return UserError(
        f"{path} is refused: reading it would run code stored in the file (it pickles "
        f"more than tensors). Where you trust it, load it in the program that made it "
        f"and save only the weights: torch.save(network.state_dict(), 'weights.pt')."
    )
