"""Read and write tensor files without ever running code that a file contains.

`.safetensors` holds nothing but tensors. `.pt` is a pickle, read by PyTorch's
restricted unpickler; whatever needs more than tensors is refused.
"""

import os
import warnings
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from migan_jax.errors import UserError, missing_extra
from migan_jax.files import reason, write_whole

TORCH_ENDINGS = (".pt", ".pth")
FILE_ENDINGS = (*TORCH_ENDINGS, ".safetensors")

Tensors = dict[str, np.ndarray]

# Safetensors' names of types; what it calls otherwise is refused.
_DTYPES = {
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "BF16": jnp.dtype(jnp.bfloat16),
    "BOOL": np.dtype(bool),
}

# The first bytes of PyTorch's files: a zip, or (before 1.6) a pickle.
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")


def read_tensors(path: Path) -> Tensors:
    """The tensors of a `.pt` or `.safetensors` file by name, at least float32."""
    if not os.path.isfile(path):  # unlike Path.is_file, False for forbidden folders
        raise UserError(f"There is no checkpoint at {path}.")
    if path.suffix in FILE_ENDINGS:
        read = _read_torch if path.suffix in TORCH_ENDINGS else _read_safetensors
        try:
            with path.open("rb") as file:
                return read(path, file)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {reason(error)}.") from error
    if path.suffix in (".pkl", ".pickle"):
        raise _needs_code(path)
    raise UserError(
        f"{path} is not a checkpoint: expected a file ending in "
        f"{', '.join(FILE_ENDINGS)}, or a run's workdir."
    )


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
    tensors = {}
    for name, view in views:
        array = np.frombuffer(view["data"], _DTYPES[view["dtype"]])
        half = view["dtype"] in ("F16", "BF16")
        tensors[name] = (array.astype(np.float32) if half else array).reshape(
            view["shape"]
        )
    return tensors


def _read_torch(path: Path, file: BinaryIO) -> Tensors:
    torch = import_torch(f"Reading {path.name}")
    start = file.read(4)
    if not start.startswith(_TORCH_STARTS):
        raise _damaged(path, f"it starts with {start!r}")
    file.seek(0)
    try:
        with warnings.catch_warnings():  # about the file's age and kind
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # The restricted unpickler's own refusals say so; other errors are damage.
        if "weights_only" in str(error):
            raise _needs_code(path) from error
        raise _damaged(path, error) from error
    except Exception as error:  # a damaged file can fail anywhere in PyTorch's reader
        if "TorchScript" in str(error):
            raise _needs_code(path) from error
        raise _damaged(path, error) from error
    if not isinstance(state, dict) or not state:
        empty = "an empty" if isinstance(state, dict) else "a"
        raise _no_state_dict(path, f"{empty} {type(state).__name__}")
    others = [str(k) for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if others:
        raise _no_state_dict(path, f"other things than tensors, {_some(others)}")
    return {str(k): _torch_to_numpy(path, k, v) for k, v in state.items()}


def _torch_to_numpy(path: Path, name: object, tensor: Any) -> np.ndarray:
    try:
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError("it has more elements than are stored")
        half = tensor.is_floating_point() and tensor.element_size() < 4
        return (tensor.float() if half else tensor).numpy(force=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is of no use, {name} in it is not a plain tensor "
            f"({reason(error)}): save dense float32 tensors."
        ) from error


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


def _needs_code(path: Path) -> UserError:
    return UserError(
        f"{path} is refused: reading it would run code stored in the file (it pickles "
        f"more than tensors). Where you trust it, load it in the program that made it "
        f"and save only the weights: torch.save(network.state_dict(), 'weights.pt')."
    )
