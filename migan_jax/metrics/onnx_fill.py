"""Exported networks and pipelines as what fills holes, so that they can be measured."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from migan_jax.errors import UserError, missing_extra
from migan_jax.files import reason, refuse_undecodable
from migan_jax.metrics.evaluator import Fill
from migan_jax.metrics.fills import network_fill

FLOATS = "tensor(float)", "tensor(float16)", "tensor(double)"


def files_of(path: Path) -> list[Path]:
    """A model's own file, and those that it names as holding weights."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        raise missing_extra("onnx", "onnx", f"Reading {path.name}") from error
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from error
    except DecodeError as error:
        raise UserError(
            f"{path} is damaged or no ONNX file: export it again."
        ) from error
    named = {
        entry.value
        for tensor in _tensors_in(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = os.path.abspath(path.parent)
    for name in named:
        inside = Path(os.path.abspath(path.parent / name)).is_relative_to(folder)
        if not inside or not os.path.isfile(path.parent / name):
            raise UserError(
                f"{path} has weights in {name}, and its folder has no such file: keep "
                f"the two together, as they were exported."
            )
    return [path, *(path.parent / name for name in sorted(named))]


def _tensors_in(message: Any) -> Iterator[Any]:
    """Those of a graph, of its nodes and of the graphs in them."""
    from google.protobuf.message import Message

    for field, value in message.ListFields():
        if field.message_type is None:  # a number or a text
            continue
        for part in [value] if isinstance(value, Message) else value:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from _tensors_in(part)


def open_onnx(path: Path) -> tuple[Fill, int | None]:
    """What it does to pictures, and its resolution if it has only one.

    A network takes one float [N, 4, R, R], a pipeline the photo and its mask as bytes,
    255 where known.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}.")
    refuse_undecodable(path)
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
    taken = ", ".join(f"{name} {entry.shape}" for name, entry in inputs.items())
    sizes = [size for entry in inputs.values() for size in entry.shape]
    if any(isinstance(size, int) and size < 1 for size in sizes):
        raise UserError(f"{path} takes {taken}, which is no picture: export it again.")
    if {"image", "mask"} == inputs.keys():
        _check_made(path, session, "tensor(uint8)")
        shape, fill = inputs["image"].shape, _pipeline_fill(path, session)
        return fill, _only_size(path, shape)
    shapes = [entry.shape for entry in inputs.values()]
    if len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] == 4:
        _check_made(path, session, *FLOATS)
        run = _network(path, session, batch_of=shapes[0][0])

        def complete(image: np.ndarray, known: np.ndarray) -> np.ndarray:
            return run(np.concatenate([known - 0.5, image], axis=-1))

        return network_fill(complete), _only_size(path, shapes[0])
    raise UserError(
        f"{path} takes {taken}: neither a network's one input of four channels, nor a "
        f"pipeline's image and mask."
    )


def _check_made(path: Path, session: Any, *kinds: str) -> None:
    made = next((entry.type for entry in session.get_outputs()), "nothing")
    if made not in kinds:
        raise UserError(
            f"{path} makes {made} and not {' or '.join(kinds)}: export it again."
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
