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
        shape, fill = inputs["image"].shape, _pipeline_fill(path, session)
        return fill, _only_size(path, shape)
    shapes = [entry.shape for entry in inputs.values()]
    if len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] == 4:
        complete = _network(path, session, batch_of=shapes[0][0])
        return network_fill(complete), _only_size(path, shapes[0])
    taken = ", ".join(f"{name} {entry.shape}" for name, entry in inputs.items())
    raise UserError(
        f"{path} takes {taken}: neither a network's one input of four channels, nor a "
        f"pipeline's image and mask."
    )


def _only_size(path: Path, shape: list[Any]) -> int | None:
    """Of [N, C, H, W], if the exporter has fixed it."""
    fixed = {size for size in shape[2:] if isinstance(size, int)}
    if len(fixed) > 1:
        raise UserError(f"{path} takes {shape}: only squares are measured.")
    return next(iter(fixed), None)


def _run(path: Path, session: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    """The first output, of as many pictures of three channels as went in."""
    shown = next(iter(feed.values()))
    try:
        result = session.run(None, feed)[0]
    except Exception as error:  # its errors have no common class below this
        why = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be run on {shown.shape}: {why}") from error
    expected = len(shown), 3, *shown.shape[2:]
    if result.shape != expected:
        raise UserError(f"{path} makes {result.shape} of {shown.shape}.")
    return result


def _network(path: Path, session: Any, batch_of: Any) -> Any:
    name = session.get_inputs()[0].name

    def complete(x: np.ndarray) -> np.ndarray:
        moved = np.ascontiguousarray(np.moveaxis(x, -1, 1), np.float32)
        step = batch_of if isinstance(batch_of, int) else len(moved)
        missing = np.zeros((-len(moved) % step, *moved.shape[1:]), np.float32)
        whole = np.concatenate([moved, missing])
        parts = [
            _run(path, session, {name: whole[start : start + step]})
            for start in range(0, len(whole), step)
        ]
        return np.moveaxis(np.concatenate(parts)[: len(x)], 1, -1)

    return complete


def _pipeline_fill(path: Path, session: Any) -> Fill:
    def fill(truths: np.ndarray, holes: np.ndarray) -> np.ndarray:
        results = []
        for truth, hole in zip(truths, holes, strict=True):
            photo = np.ascontiguousarray(np.moveaxis(truth, -1, 0)[None])
            known = np.where(hole, np.uint8(0), np.uint8(255))[None, None]
            result = _run(path, session, {"image": photo, "mask": known})
            results.append(np.moveaxis(result[0], 0, -1))
        return np.stack(results)

    return fill
