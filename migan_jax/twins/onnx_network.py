"""Export of the deployed network to ONNX."""

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

# Versions of the operators and of the file that onnxruntime 1.15 and later read.
OPSET, FILE_VERSION = 18, 8
INPUT, OUTPUT = "input", "output"
AXES = {0: "batch", 2: "height", 3: "width"}
NO_ROI = numpy_helper.from_array(np.zeros(0, np.float32), "no_roi")


def to_onnx(
    network: Deployed, resolution: int, size: tuple[int, int] | None, batch: int | None
) -> onnx.ModelProto:
    """Export a network from float32 (N, 4, H, W) to (N, 3, H, W).

    Args:
      resolution: of the network.
      size: fixed height and width; None for any multiples of a quarter of `resolution`.
      batch: fixed batch size; None for any.
    """
    # Height and width must differ, or the exporter takes them for one symbol.
    step = resolution // 4
    example = torch.zeros(batch or 2, 4, *(size or (resolution, resolution + step)))
    dynamic = {}
    if batch is None:
        dynamic[0] = torch.export.Dim(AXES[0])
    if size is None:
        dynamic |= {
            axis: step * torch.export.Dim(f"{AXES[axis]}_steps") for axis in (2, 3)
        }
    with silence_exporter():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(dynamic,) if dynamic else None,
            verbose=False,
        )
    model = program.model_proto
    model.ir_version = FILE_VERSION  # the exporter sets a later one
    _name_axes(model, dynamic)
    _fill_roi(model)
    onnx.checker.check_model(model)
    return model


def _name_axes(model: onnx.ModelProto, dynamic: dict[int, object]) -> None:
    """Give dynamic axes readable names, and drop the exporter's intermediate names."""
    for value in (*model.graph.input, *model.graph.output):
        for axis in dynamic:
            dimension = value.type.tensor_type.shape.dim[axis]
            dimension.ClearField("dim_value")
            dimension.dim_param = AXES[axis]
    if dynamic:
        del model.graph.value_info[:]


def _fill_roi(model: onnx.ModelProto) -> None:
    """Set an empty roi on Resize nodes: onnxruntime's mobile check requires one."""
    model.graph.initializer.append(NO_ROI)
    for node in model.graph.node:
        if node.op_type == "Resize":
            node.input[1] = NO_ROI.name


@contextlib.contextmanager
def silence_exporter() -> Iterator[None]:
    """A context manager that hides the exporter's messages."""
    before = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(before)
