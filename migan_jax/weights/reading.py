"""Read and write tensor files without ever running code that a file contains.

`.safetensors` holds nothing but tensors. `.pt` is a pickle, of which only what makes
tensors is understood; whatever needs more is refused. Reading needs no PyTorch.
"""

from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from migan_jax.errors import UserError, missing_extra
from migan_jax.files import reason, write_whole
from migan_jax.weights import torch_format
from migan_jax.weights.locations import TORCH_ENDINGS, check_file, needs_code

Tensors = dict[str, np.ndarray]

# Safetensors' names of types; what it calls otherwise is refused.
_DTYPES = {
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(bool),
}


def read_tensors(path: Path) -> Tensors:
    """The tensors of a `.pt` or `.safetensors` file by name, at least float32."""
    check_file(path)
    read = _read_torch if path.suffix in TORCH_ENDINGS else _read_safetensors
    try:
        with path.open("rb") as file:
            return read(path, file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from error


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a `.pt` or `.safetensors` file; it appears whole or not at all."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        content = save(tensors)
    else:
        torch = import_torch(f"Writing {path.suffix} files")
        buffer = BytesIO()
        torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, buffer)
        content = buffer.getvalue()
    write_whole(path, lambda part: part.write_bytes(content))


def import_torch(purpose: str) -> Any:
    """PyTorch, or the sentence that says how to get it."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise missing_extra("PyTorch", "torch", purpose) from error
    return torch


def _read_safetensors(path: Path, file: BinaryIO) -> Tensors:
    from safetensors import SafetensorError, deserialize

    try:
        views = sorted(deserialize(file.read()), key=lambda view: view[0])
    except SafetensorError as error:
        raise _damaged(path, error) from error
    strange = [name for name, view in views if view["dtype"] not in _DTYPES]
    if strange:
        raise UserError(
            f"{path} has tensors of types that are not known here, {_some(strange)}: "
            f"save it as float32."
        )
    try:
        return {name: _array(view) for name, view in views}
    except ValueError as error:  # a shape that no array can have
        raise _damaged(path, error) from error


def _array(view: dict[str, Any]) -> np.ndarray:
    array = np.frombuffer(view["data"], _DTYPES[view["dtype"]])
    half = view["dtype"] in ("F16", "BF16")
    return (array.astype(np.float32) if half else array).reshape(view["shape"])


def _read_torch(path: Path, file: BinaryIO) -> Tensors:
    try:
        return torch_format.read_state(file)
    except torch_format.NeedsCode as error:
        raise needs_code(path) from error
    except torch_format.NoStateDict as error:
        content, *others = error.args
        names = f", {_some(others)}" if others else ""
        raise _no_state_dict(path, content + names) from error
    except torch_format.NotPlain as error:
        name, why = error.args
        raise UserError(
            f"{path} is of no use, {name} in it is not a plain tensor ({why}): "
            f"save dense float32 tensors."
        ) from error
    except Exception as error:  # a damaged file can fail anywhere
        raise _damaged(path, error) from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _no_state_dict(path: Path, content: str) -> UserError:
    return UserError(
        f"{path} holds {content}, not one network's tensors: save the network's own "
        f"`state_dict()` and use that file."
    )


def _damaged(path: Path, error: Exception | str) -> UserError:
    return UserError(
        f"{path} cannot be read as a checkpoint, it is damaged, incomplete or of "
        f"another format ({reason(error)}): get the file again."
    )
