"""Read and write tensor files without ever running code from a file.

`.safetensors` holds only tensors. `.pt`, `.pth` and `.ckpt` are pickles, and only
instructions that build tensors are accepted. Reading does not need PyTorch.
"""

from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from migan_jax.errors import UserError, missing_extra
from migan_jax.files import reason, write_whole
from migan_jax.weights import torch_format
from migan_jax.weights.locations import TORCH_SUFFIXES, check_file, pickled_code_error

Tensors = dict[str, np.ndarray]

# Supported types by their names in safetensors.
_DTYPES = {
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(bool),
}


def read_tensors(path: Path) -> Tensors:
    """Read the tensors of a `.pt` or `.safetensors` file by name, at least float32."""
    check_file(path)
    read = _read_torch if path.suffix in TORCH_SUFFIXES else _read_safetensors
    try:
        with path.open("rb") as file:
            return read(path, file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from error


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a `.pt` or `.safetensors` file atomically."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        content = save(tensors)
    else:
        torch = import_torch(f"Writing {path.suffix} files")
        buffer = BytesIO()
        torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, buffer)
        content = buffer.getvalue()
    write_whole(path, lambda partial: partial.write_bytes(content))


def import_torch(purpose: str) -> Any:
    """Return the module torch, or raise UserError that says how to install it."""
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
        raise _damaged_error(path, error) from error
    unsupported = [name for name, view in views if view["dtype"] not in _DTYPES]
    if unsupported:
        raise UserError(
            f"{path} has tensors of unsupported types ({_shorten(unsupported)}). Save "
            f"them as float32."
        )
    try:
        return {name: _make_array(view) for name, view in views}
    except ValueError as error:  # a shape that no array can have
        raise _damaged_error(path, error) from error


def _make_array(view: dict[str, Any]) -> np.ndarray:
    array = np.frombuffer(view["data"], _DTYPES[view["dtype"]])
    half = view["dtype"] in ("F16", "BF16")
    return (array.astype(np.float32) if half else array).reshape(view["shape"])


def _read_torch(path: Path, file: BinaryIO) -> Tensors:
    try:
        return torch_format.read_state(file)
    except torch_format.NeedsCode as error:
        raise pickled_code_error(path) from error
    except torch_format.NotStateDict as error:
        content, *names = error.args
        more = f" ({_shorten(names)})" if names else ""
        raise UserError(
            f"{path} holds {content}{more} instead of one network's tensors. Save the "
            f"network's `state_dict()` and use that file."
        ) from error
    except torch_format.NotPlain as error:
        name, why = error.args
        raise UserError(
            f"{path} cannot be used: {name} is not a plain tensor ({why}). Save dense "
            f"float32 tensors."
        ) from error
    except Exception as error:  # a damaged file can fail anywhere
        raise _damaged_error(path, error) from error


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _damaged_error(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read as a checkpoint: it is damaged, incomplete or in "
        f"another format ({reason(error)}). Get the file again."
    )
