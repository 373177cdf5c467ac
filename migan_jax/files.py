"""Writing files whole or not at all, and saying why one cannot be read or written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from migan_jax.errors import UserError

REASON_LENGTH = 200


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or folder that appears at `path` whole or not at all."""
    part = path.with_name(f".{path.name[:50]}.part-{os.getpid()}")  # no name too long
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        os.replace(part, path)
    except (OSError, ValueError) as error:  # TensorStore has only ValueError
        raise UserError(f"{path} cannot be written: {reason(error)}.") from error
    finally:
        remove(part)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def reason(error: Exception | str) -> str:
    """What a library's error says, short enough for one sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}"
    return text.splitlines()[0][:REASON_LENGTH].rstrip(".")
