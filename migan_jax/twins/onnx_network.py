"""The deployed network as ONNX."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from migan_jax.twins.deployed import Deployed

# Of ONNX's operators, and of the file: what onnxruntime 1.15 and later read.
OPSET, FILE_VERSION = 18, 8
INPUT, OUTPUT = "input", "output"
AXES = {0: "batch", 2: "height", 3: "width"}
NO_ROI = numpy_helper.from_array(np.zeros(0, np.float32), "no_roi")


def to_onnx(
    network: Deployed, resolution: int, size: tuple[int, int] | None, batch: int | None
) -> onnx.ModelProto:
    """Float32 (N, 4, H, W) -> (N, 3, H, W).

    Args:
      resolution: of the network.
      size: height and width; None for all that are multiples of a quarter of it.
      batch: how many pictures at a time; None for any number.
    """
    # Sizes of the example must differ, or the exporter takes them for the same.
    step = resolution // 4
    example = torch.zeros(batch or 2, 4, *(size or (resolution, resolution + step)))
    free = {}
    if batch is None:
        free[0] = torch.export.Dim(AXES[0])
    if size is None:
        free |= {
            axis: step * torch.export.Dim(f"{AXES[axis]}_steps") for axis in (2, 3)
        }
    with quietly():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(free,) if free else None,
            verbose=False,
        )
    model = program.model_proto
    model.ir_version = FILE_VERSION  # the exporter's own is for later ones
    _name_axes(model, free)
    _fill_roi(model)
    onnx.checker.check_model(model)
    return model


def _name_axes(model: onnx.ModelProto, free: dict[int, object]) -> None:
    """As people call them; what the exporter calls those in between is left out."""
    for value in (*model.graph.input, *model.graph.output):
        for axis in free:
            dimension = value.type.tensor_type.shape.dim[axis]
            dimension.ClearField("dim_value")
            dimension.dim_param = AXES[axis]
    if free:
        del model.graph.value_info[:]


def _fill_roi(model: onnx.ModelProto) -> None:
    """Of all Resize nodes: onnxruntime's check for phones refuses them without one."""
    model.graph.initializer.append(NO_ROI)
    for node in model.graph.node:
        if node.op_type == "Resize":
            node.input[1] = NO_ROI.name


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what the exporter tells about itself."""
    before = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(before)
