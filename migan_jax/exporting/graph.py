"""Building of a checkpoint's ONNX graph: fuse, trace the twin, set the precision."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import migan_jax
from migan_jax.config import progress
from migan_jax.errors import UserError, missing_extra
from migan_jax.exporting.float16 import to_float16
from migan_jax.exporting.int8 import to_int8
from migan_jax.families import (
    FAMILIES,
    all_kinds,
    can_inpaint,
    family_of,
    name_of,
    to_tensors,
)
from migan_jax.weights.checkpoint import Checkpoint, to_form
from migan_jax.weights.kinds import describe
from migan_jax.weights.tensor_files import import_torch

if TYPE_CHECKING:
    import onnx

ExportKind = Literal["network", "pipeline"]
Precision = Literal["float32", "float16", "int8"]
# The activation limit is removed if no activation exceeds this fraction of it.
SAFE_FRACTION = 0.25


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
      kind: the bare network, or the whole pipeline from photo to photo.
      size: height and width that a network takes; None for any.
      batch: batch size; None for any.
      noise: whether to keep the stored noise.
    """

    kind: ExportKind
    size: tuple[int, int] | None
    batch: int | None
    noise: bool = True
    precision: Precision = "float32"


@dataclasses.dataclass(frozen=True)
class Exported:
    """A graph, its float32 version, and the largest activation found."""

    model: "onnx.ModelProto"
    in_float32: "onnx.ModelProto"
    largest_activation: float
    limited: bool  # keeps the activation limit


def import_tools() -> None:
    """Import all that exporting needs; raise UserError saying how to install it."""
    import_torch("Exporting")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise missing_extra(package, "onnx", "Exporting") from error


def check_exportable(checkpoint: Checkpoint, options: ExportOptions) -> None:
    """Raise UserError if the checkpoint or the size cannot be exported."""
    network = checkpoint.network
    if not (family_of(network).is_exportable and can_inpaint(network)):
        titles = [f.title for f in FAMILIES.values() if f.is_exportable]
        raise UserError(
            f"{checkpoint.source} holds {name_of(network)}. Only {', '.join(titles)} "
            f"generators can be exported."
        )
    step = network.resolution // 4
    if options.size is not None and any(n % step or n < step for n in options.size):
        height, width = options.size
        raise UserError(
            f"--resolution={height}x{width}: {checkpoint.source} needs multiples of "
            f"{step}."
        )


def build(
    checkpoint: Checkpoint, options: ExportOptions, inputs: Sequence[np.ndarray]
) -> Exported:
    """Build the graph, with metadata.

    Args:
      checkpoint: of a MI-GAN generator.
      inputs: calibration inputs, float32 [1, H, W, 4] each. They decide whether the
        activation limit is kept, and the ranges of int8.
    """
    from migan_jax.twins.build import load_twin
    from migan_jax.twins.deployed import LIMIT, Deployed
    from migan_jax.twins.onnx_network import FILE_VERSION, to_onnx
    from migan_jax.twins.onnx_pipeline import to_pipeline

    fused = to_form(checkpoint, "fused")
    resolution = fused.network.resolution
    twin = load_twin(fused.network, to_tensors(fused))
    is_pipeline = options.kind == "pipeline"
    size = (resolution, resolution) if is_pipeline else options.size
    batch = None if is_pipeline else options.batch
    inputs = [np.ascontiguousarray(np.moveaxis(x, -1, 1)) for x in inputs]
    probe = Deployed(twin, None, options.noise, limited=True)
    largest = 0.0
    with progress(len(inputs), "image") as advance:
        for x in inputs:
            largest = max(largest, probe.largest_activation(x))
            advance(1)
    limited = largest > SAFE_FRACTION * LIMIT
    deployed = Deployed(twin, size, options.noise, limited)
    network = to_onnx(deployed, resolution, size, batch)
    metadata = {
        **_describe(checkpoint, options),
        "activation_limit": str(LIMIT) if limited else "none",
    }

    def finish(network: "onnx.ModelProto") -> "onnx.ModelProto":
        model = to_pipeline(network, resolution) if is_pipeline else network
        result = _add_metadata(model, metadata)
        result.ir_version = FILE_VERSION  # converters raise it
        return result

    converted = network
    if options.precision == "float16":
        converted = to_float16(network)
    elif options.precision == "int8":
        if not limited:
            deployed.equalise(inputs)
        converted = to_int8(to_onnx(deployed, resolution, size, batch), inputs)
    return Exported(finish(converted), finish(network), largest, limited)


def _describe(checkpoint: Checkpoint, options: ExportOptions) -> dict[str, str]:
    """Return what someone needs to know who has only the file."""
    tensors = {
        "network": "input float32 (N, 4, H, W): mask - 0.5, then RGB * mask; mask 1 "
        "where known, 0 in the hole; RGB / 127.5 - 1, so from -1 to 1; output (N, 3, "
        "H, W), whole pictures in the same range: clip them, and paste the hole",
        "pipeline": "image uint8 (N, 3, H, W) RGB; mask uint8 (N, 1, H, W): 255 known, "
        "0 hole; result like image, of any size",
    }
    return {
        "tensors": tensors[options.kind],
        "mask": "high is known, low is the hole",
        "kind": options.kind,
        "precision": options.precision,
        "noise": "stored" if options.noise else "dropped",
        "resolution": str(checkpoint.network.resolution),
        "config": json.dumps(describe(checkpoint.network, all_kinds())),
        "checkpoint_sha256": checkpoint.digest,
        "exported_by": f"migan_jax {migan_jax.__version__}",
    }


def _add_metadata(
    model: "onnx.ModelProto", metadata: Mapping[str, str]
) -> "onnx.ModelProto":
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.producer_name = "migan_jax"
    result.producer_version = migan_jax.__version__
    del result.metadata_props[:]
    onnx.helper.set_model_props(result, dict(metadata))
    used = {node.domain for node in result.graph.node}
    opsets = [opset for opset in result.opset_import if opset.domain in used]
    del result.opset_import[:]  # converters add unused domains that few runtimes know
    result.opset_import.extend(opsets)
    for node in result.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    return result


def make_session(model: "onnx.ModelProto", threads: int) -> Any:
    """Create an onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
