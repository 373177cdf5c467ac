"""Exported networks and pipelines as what fills holes, so that they can be measured."""

from pathlib import Path
from typing import Any

import numpy as np

from migan_jax.errors import UserError, missing_extra
from migan_jax.metrics.evaluator import Fill
from migan_jax.metrics.fills import network_fill


def open_onnx(path: Path) -> tuple[Fill, int | None]:
    """What it does to pictures, and its resolution if it has only one.

    A network takes one float [N, 4, R, R], a pipeline the photo and its mask as bytes,
    255 where known.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}.")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing_extra("onnxruntime", "onnx", f"Running {path.name}") from error
    try:
        session = onnxruntime.InferenceSession(
            path, providers=onnxruntime.get_available_providers()
        )
    except Exception as error:  # its errors have no common class below this
        why = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be run by onnxruntime: {why}") from error
    inputs = {entry.name: entry for entry in session.get_inputs()}
    if {"image", "mask"} == inputs.keys():
        return _pipeline_fill(session), _only_size(inputs["image"].shape)
    shapes = [entry.shape for entry in inputs.values()]
    if len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] == 4:
        complete = _network(session, batch_of=shapes[0][0])
        return network_fill(complete), _only_size(shapes[0])
    taken = ", ".join(f"{name} {entry.shape}" for name, entry in inputs.items())
    raise UserError(
        f"{path} takes {taken}: neither a network's one input of four channels, nor a "
        f"pipeline's image and mask."
    )


def _only_size(shape: list[Any]) -> int | None:
    """Of [N, C, H, W], if the exporter has fixed it."""
    height, width = shape[2:]
    return height if isinstance(height, int) and height == width else None


def _network(session: Any, batch_of: Any) -> Any:
    name = session.get_inputs()[0].name

    def complete(x: np.ndarray) -> np.ndarray:
        moved = np.ascontiguousarray(np.moveaxis(x, -1, 1), np.float32)
        step = batch_of if isinstance(batch_of, int) else len(moved)
        parts = [
            session.run(None, {name: moved[start : start + step]})[0]
            for start in range(0, len(moved), step)
        ]
        return np.moveaxis(np.concatenate(parts), 1, -1)

    return complete


def _pipeline_fill(session: Any) -> Fill:
    def fill(truths: np.ndarray, holes: np.ndarray) -> np.ndarray:
        results = []
        for truth, hole in zip(truths, holes, strict=True):
            photo = np.ascontiguousarray(np.moveaxis(truth, -1, 0)[None])
            known = np.where(hole, np.uint8(0), np.uint8(255))[None, None]
            (result,) = session.run(None, {"image": photo, "mask": known})
            results.append(np.moveaxis(result[0], 0, -1))
        return np.stack(results)

    return fill
