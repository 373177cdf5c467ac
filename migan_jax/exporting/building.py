"""The ONNX graph of a checkpoint: fused weights, PyTorch twin, exporter, precision."""

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
    family_of,
    inpaints,
    name_of,
    to_tensors,
)
from migan_jax.weights.checkpoint import Checkpoint, to_form
from migan_jax.weights.kinds import describe
from migan_jax.weights.reading import import_torch

if TYPE_CHECKING:
    import onnx

Kind = Literal["network", "pipeline"]
Precision = Literal["float32", "float16", "int8"]
# The limit of activations is left out where none comes nearer to it than this.
SAFE_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be exported.

    Attributes:
      kind: the bare network, or everything from photo to photo around it.
      size: height and width that a network takes; None for any.
      batch: pictures at a time; None for any number.
      noise: whether the stored noise is kept.
    """

    kind: Kind
    size: tuple[int, int] | None
    batch: int | None
    noise: bool = True
    precision: Precision = "float32"


@dataclasses.dataclass(frozen=True)
class Exported:
    """A graph, the same in float32, and the largest activation that was seen."""

    model: "onnx.ModelProto"
    in_float32: "onnx.ModelProto"
    largest_activation: float
    limited: bool


def import_tools() -> None:
    """Everything that exporting needs, or the sentence that says how to get it."""
    import_torch("Exporting")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise missing_extra(package, "onnx", "Exporting") from error


def check_exportable(checkpoint: Checkpoint, wanted: Wanted) -> None:
    """Say in one sentence what cannot be exported."""
    network = checkpoint.network
    if not (family_of(network).is_exportable and inpaints(network)):
        titles = [f.title for f in FAMILIES.values() if f.is_exportable]
        raise UserError(
            f"{checkpoint.source} is a {name_of(network)}: only {', '.join(titles)}'s "
            f"generator can be exported."
        )
    step = network.resolution // 4
    if wanted.size is not None and any(n % step or n < step for n in wanted.size):
        height, width = wanted.size
        raise UserError(
            f"{checkpoint.source} takes heights and widths that are multiples of "
            f"{step}, not {height}x{width}."
        )


def build(
    checkpoint: Checkpoint, wanted: Wanted, inputs: Sequence[np.ndarray]
) -> Exported:
    """The graph, with what it is written into it.

    Args:
      checkpoint: a MI-GAN generator's.
      inputs: of the network on typical pictures, float32 [1, H, W, 4]: whether the
        limit of activations is needed, and the ranges of whole numbers, come from them.
    """
    from migan_jax.twins.build import load_twin
    from migan_jax.twins.deployed import LIMIT, Deployed
    from migan_jax.twins.onnx_network import FILE_VERSION, to_onnx
    from migan_jax.twins.onnx_pipeline import to_pipeline

    fused = to_form(checkpoint, "fused")
    resolution = fused.network.resolution
    twin = load_twin(fused.network, to_tensors(fused))
    whole = wanted.kind == "pipeline"
    size = (resolution, resolution) if whole else wanted.size
    batch = None if whole else wanted.batch
    inputs = [np.ascontiguousarray(np.moveaxis(x, -1, 1)) for x in inputs]
    trial = Deployed(twin, None, wanted.noise, limited=True)
    largest = 0.0
    with progress(len(inputs), "picture") as advance:
        for x in inputs:
            largest = max(largest, trial.largest_activation(x))
            advance(1)
    limited = largest > SAFE_SHARE * LIMIT
    deployed = Deployed(twin, size, wanted.noise, limited)
    network = to_onnx(deployed, resolution, size, batch)
    about = {
        **_description(checkpoint, wanted),
        "activation_limit": str(LIMIT) if limited else "none",
    }

    def finished(network: "onnx.ModelProto") -> "onnx.ModelProto":
        model = to_pipeline(network, resolution) if whole else network
        described = _with_metadata(model, about)
        described.ir_version = FILE_VERSION  # which converters raise again
        return described

    smaller = network
    if wanted.precision == "float16":
        smaller = to_float16(network)
    elif wanted.precision == "int8":
        if not limited:
            deployed.equalise(inputs)
        smaller = to_int8(to_onnx(deployed, resolution, size, batch), inputs)
    return Exported(finished(smaller), finished(network), largest, limited)


def _description(checkpoint: Checkpoint, wanted: Wanted) -> dict[str, str]:
    """What people need who have nothing but the file."""
    tensors = {
        "network": "input float32 (N, 4, H, W): mask - 0.5, then RGB * mask; mask 1 "
        "where known, 0 in the hole; RGB / 127.5 - 1, so from -1 to 1; output (N, 3, "
        "H, W), whole pictures in the same range: clip them, and paste the hole",
        "pipeline": "image uint8 (N, 3, H, W) RGB; mask uint8 (N, 1, H, W): 255 known, "
        "0 hole; result like image, of any size",
    }
    return {
        "tensors": tensors[wanted.kind],
        "mask": "high is known, low is the hole",
        "kind": wanted.kind,
        "precision": wanted.precision,
        "noise": "stored" if wanted.noise else "dropped",
        "resolution": str(checkpoint.network.resolution),
        "config": json.dumps(describe(checkpoint.network, all_kinds())),
        "checkpoint_sha256": checkpoint.digest,
        "exported_by": f"migan_jax {migan_jax.__version__}",
    }


def _with_metadata(
    model: "onnx.ModelProto", about: Mapping[str, str]
) -> "onnx.ModelProto":
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.producer_name = "migan_jax"
    result.producer_version = migan_jax.__version__
    del result.metadata_props[:]
    onnx.helper.set_model_props(result, dict(about))
    used = {node.domain for node in result.graph.node}
    opsets = [opset for opset in result.opset_import if opset.domain in used]
    del result.opset_import[:]  # which converters fill with what is too new for many
    result.opset_import.extend(opsets)
    for node in result.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    return result


def session_of(model: "onnx.ModelProto", threads: int) -> Any:
    """onnxruntime's, on processors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
