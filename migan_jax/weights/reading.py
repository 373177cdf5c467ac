"""Read and write tensor files without ever running code that a file contains.

`.safetensors` holds nothing but tensors. `.pt` is a pickle, read by PyTorch's
restricted unpickler; whatever needs more than tensors is refused.
"""

import os
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from migan_jax.errors import UserError, missing_extra

TORCH_ENDINGS = (".pt", ".pth")
FILE_ENDINGS = (*TORCH_ENDINGS, ".safetensors")

Tensors = dict[str, np.ndarray]


def read_tensors(path: Path) -> Tensors:
    """The tensors of a `.pt` or `.safetensors` file by name, at least float32."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_ENDINGS:
        return _read_torch(path)
    if path.suffix in (".pkl", ".pickle"):
        raise _needs_code(path)
    raise UserError(
        f"{path} is not a checkpoint: expected a file ending in "
        f"{', '.join(FILE_ENDINGS)}, or a run's workdir."
    )


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a `.pt` or `.safetensors` file; it appears whole or not at all."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        _replace_atomically(path, lambda part: save_file(tensors, part))
    else:
        torch = import_torch(f"Writing {path.suffix} files")
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        _replace_atomically(path, lambda part: torch.save(state, part))


def import_torch(purpose: str) -> Any:
    """PyTorch, or the sentence that says how to get it."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise missing_extra("PyTorch", "torch", purpose) from error
    return torch


def _replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.flax import load_file  # numpy's reader knows no bfloat16

    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    return {name: _widen(np.asarray(array)) for name, array in tensors.items()}


def _read_torch(path: Path) -> Tensors:
    torch = import_torch(f"Reading {path.name}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
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
        raise _no_state_dict(path, f"a {type(state).__name__}")
    others = [str(k) for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if others:
        raise _no_state_dict(path, f"other things than tensors, {_some(others)}")
    return {str(k): _torch_to_numpy(v) for k, v in state.items()}


def _torch_to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    half = tensor.is_floating_point() and tensor.element_size() < 4
    return (tensor.float() if half else tensor).numpy()


def _widen(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _no_state_dict(path: Path, content: str) -> UserError:
    return UserError(
        f"{path} holds {content}, not one network's tensors: save the network's own "
        f"`state_dict()` and use that file."
    )


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{path} cannot be read as a checkpoint, it is damaged, incomplete or of "
        f"another format ({reason[:200]}): get the file again."
    )


def _needs_code(path: Path) -> UserError:
    return UserError(
        f"{path} is refused: reading it would run code stored in the file (it pickles "
        f"more than tensors). Where you trust it, load it in the program that made it "
        f"and save only the weights: torch.save(network.state_dict(), 'weights.pt')."
    )
