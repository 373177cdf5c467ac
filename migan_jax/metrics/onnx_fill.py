"""Fills by exported networks and pipelines, to evaluate them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from migan_jax.errors import UserError, missing_extra
from migan_jax.files import reason, refuse_undecodable
from migan_jax.metrics.evaluator import Fill
from migan_jax.metrics.fills import network_fill

FLOAT_TYPES = "tensor(float)", "tensor(float16)", "tensor(double)"


def list_files(path: Path) -> list[Path]:
    """Return a model's file and the files of weights that it names."""
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
            f"{path} is damaged or not an ONNX file: export it again."
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
                f"{path} keeps weights in {name}, which is not in its folder. Keep the "
                f"exported files together."
            )
    return [path, *(path.parent / name for name in sorted(named))]


def _tensors_in(message: Any) -> Iterator[Any]:
    """Yield the tensors of a graph, of its nodes and of their subgraphs."""
    from google.protobuf.message import Message

    for field, value in message.ListFields():
        if field.message_type is None:  # a number or a string
            continue
        for part in [value] if isinstance(value, Message) else value:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from _tensors_in(part)


def open_onnx(path: Path) -> tuple[Fill, int | None]:
    """Return the model's fill, and its resolution if that is fixed.

    A network takes one float [N, 4, R, R]; a pipeline takes the photo and its mask as
    bytes, 255 where known.
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
    except Exception as error:  # onnxruntime's errors have no common base class
        why = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be run by onnxruntime: {why}") from error
    inputs = {entry.name: entry for entry in session.get_inputs()}
    signature = ", ".join(f"{name} {entry.shape}" for name, entry in inputs.items())
    sizes = [size for entry in inputs.values() for size in entry.shape]
    if any(isinstance(size, int) and size < 1 for size in sizes):
        raise UserError(
            f"{path} takes {signature}, which is not an image: export it again."
        )
    if {"image", "mask"} == inputs.keys():
        _check_output_type(path, session, "tensor(uint8)")
        shape, fill = inputs["image"].shape, _make_pipeline_fill(path, session)
        return fill, _fixed_size(path, shape)
    shapes = [entry.shape for entry in inputs.values()]
    if len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] == 4:
        _check_output_type(path, session, *FLOAT_TYPES)
        run = _make_network(path, session, batch=shapes[0][0])

        def complete(image: np.ndarray, known: np.ndarray) -> np.ndarray:
            return run(np.concatenate([known - 0.5, image], axis=-1))

        return network_fill(complete), _fixed_size(path, shapes[0])
    raise UserError(
        f"{path} takes {signature}, but a network takes one input of four channels, "
        f"and a pipeline takes image and mask."
    )


def _check_output_type(path: Path, session: Any, *types: str) -> None:
    output = next((entry.type for entry in session.get_outputs()), "nothing")
    if output not in types:
        raise UserError(
            f"{path} outputs {output}, not {' or '.join(types)}: export it again."
        )


def _fixed_size(path: Path, shape: list[Any]) -> int | None:
    """Return the size in [N, C, H, W] if it is fixed; raise UserError unless square."""
    fixed = {size for size in shape[2:] if isinstance(size, int)}
    if len(fixed) > 1:
        raise UserError(f"{path} takes {shape}: only square inputs can be evaluated.")
    return next(iter(fixed), None)


def _run(path: Path, session: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    """Run the model; raise UserError unless it returns one RGB image per input."""
    first = next(iter(feed.values()))
    try:
        result = session.run(None, feed)[0]
    except Exception as error:  # onnxruntime's errors have no common base class
        why = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be run on {first.shape}: {why}") from error
    expected = len(first), 3, *first.shape[2:]
    if result.shape != expected:
        raise UserError(
            f"{path} outputs {result.shape} for {first.shape}, not {expected}."
        )
    return result


def _make_network(path: Path, session: Any, batch: Any) -> Any:
    name = session.get_inputs()[0].name

    def complete(x: np.ndarray) -> np.ndarray:
        nchw = np.ascontiguousarray(np.moveaxis(x, -1, 1), np.float32)
        step = batch if isinstance(batch, int) else len(nchw)
        padding = np.zeros((-len(nchw) % step, *nchw.shape[1:]), np.float32)
        padded = np.concatenate([nchw, padding])
        outputs = [
            _run(path, session, {name: padded[start : start + step]})
            for start in range(0, len(padded), step)
        ]
        return np.moveaxis(np.concatenate(outputs)[: len(x)], 1, -1)

    return complete


def _make_pipeline_fill(path: Path, session: Any) -> Fill:
    def fill(truths: np.ndarray, holes: np.ndarray) -> np.ndarray:
        results = []
        for truth, hole in zip(truths, holes, strict=True):
            photo = np.ascontiguousarray(np.moveaxis(truth, -1, 0)[None])
            mask = np.where(hole, np.uint8(0), np.uint8(255))[None, None]
            result = _run(path, session, {"image": photo, "mask": mask})
            results.append(np.moveaxis(result[0], 0, -1))
        return np.stack(results)

    return fill
