"""Comparison of an exported graph with Flax and with float32: parity and cost."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from migan_jax.data.sources import open_source
from migan_jax.errors import UserError
from migan_jax.exporting.graph import Exported, ExportOptions, make_session
from migan_jax.geometry.fill import fill_holes
from migan_jax.metrics.test_set import TestSet

if TYPE_CHECKING:
    import onnx

REPEATS = 5  # of which the fastest counts
MIN_SQUARED_ERROR = 1e-12  # so that no PSNR is infinite
# Limits of the difference between two float32 implementations. Of networks: relative to
# the outputs' range.
NETWORK_TOLERANCE = 2e-4
# Of pipelines: grey levels, and the fraction of values that differ by more than one.
MAX_GREY_DIFFERENCE, MAX_STEPPED_FRACTION = 3, 1e-3
# PSNR over holes against float32, in dB.
MIN_PSNR = {"float16": 50.0, "int8": 35.0}


class MaskedPhoto(NamedTuple):
    """A photo, uint8 [H, W, 3], and its hole, bool [H, W]."""

    image: np.ndarray
    hole: np.ndarray

    @property
    def network_input(self) -> np.ndarray:
        """Return float32 [1, H, W, 4]."""
        known = (~self.hole).astype(np.float32)[..., None]
        image = self.image.astype(np.float32) / np.float32(127.5) - 1
        return np.concatenate([known - 0.5, image * known], axis=-1)[None]


def load_photos(location: str, size: tuple[int, int], count: int) -> list[MaskedPhoto]:
    """Load at most `count` square crops with free-form holes, cropped to `size`."""
    side = max(size)
    source = open_source(
        location, masks=None, mask_hole="white", resolution=side, seed=0
    )
    pairs = TestSet(source, resolution=side, count=count)
    if len(pairs) < 2:
        raise UserError(
            f"--images={location} has {len(pairs)} of at least 2 images: one to "
            f"calibrate, one to compare."
        )
    rows, columns = (slice(length) for length in size)
    return [
        MaskedPhoto(pairs[index].truth[rows, columns], pairs[index].hole[rows, columns])
        for index in range(len(pairs))
    ]


class Reference(Protocol):
    """The Flax network, as returned by `migan_jax.load`."""

    @property
    def network(self) -> Any: ...

    def forward(self, x: np.ndarray) -> Any: ...

    def predict(self, image: np.ndarray, known: np.ndarray) -> np.ndarray: ...


class Difference(NamedTuple):
    """Absolute differences of outputs from expected ones."""

    largest: float
    mean: float
    range: float  # of the expected outputs
    stepped: float  # fraction of values that differ by more than 1
    psnr: float  # over holes


def measure_difference(
    actual: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    photos: Sequence[MaskedPhoto],
    peak: float,
) -> Difference:
    """Compare outputs [H, W, 3] of all photos; `peak` is the PSNR's peak value."""
    differences = [
        np.abs(np.asarray(a, np.float64) - e)
        for a, e in zip(actual, expected, strict=True)
    ]
    pixels = np.concatenate([x.ravel() for x in differences])
    holes = [x[p.hole].ravel() for x, p in zip(differences, photos, strict=True)]
    error = max(np.mean(np.concatenate(holes) ** 2), MIN_SQUARED_ERROR)
    return Difference(
        float(pixels.max()),
        float(pixels.mean()),
        float(max(map(np.max, expected)) - min(map(np.min, expected))),
        float(np.mean(pixels > 1)),
        float(10 * np.log10(peak**2 / error)),
    )


def make_report(
    model: Reference,
    exported: Exported,
    options: ExportOptions,
    photos: Sequence[MaskedPhoto],
    threads: int,
) -> dict[str, Any]:
    """Compare an export with Flax and float32, and return a JSON-ready report."""
    precision = options.precision
    models = {precision: exported.model, "float32": exported.in_float32}
    sessions = {name: make_session(graph, threads) for name, graph in models.items()}
    run, reference, peak = (
        (_run_pipeline, _inpaint_reference(model), 255.0)
        if options.kind == "pipeline"
        else (_network_runner(options), _forward_reference(model), 2.0)
    )
    outputs = {
        name: [run(session, photo) for photo in photos]
        for name, session in sessions.items()
    }
    flax = [reference(photo) for photo in photos]

    def compare(actual: list[np.ndarray], expected: list[np.ndarray]) -> dict[str, Any]:
        return measure_difference(actual, expected, photos, peak)._asdict()

    latency = fastest_ms(
        {name: lambda s=s: run(s, photos[0]) for name, s in sessions.items()}
    )
    result = {
        "kind": options.kind,
        "precision": precision,
        "pictures": len(photos),
        "from_flax": compare(outputs[precision], flax),
        "from_float32": compare(outputs[precision], outputs["float32"]),
        "float32_from_flax": compare(outputs["float32"], flax),
        "largest_activation": exported.largest_activation,
        "activation_limit_kept": exported.limited,
        "opset": {
            o.domain or "ai.onnx": o.version for o in exported.model.opset_import
        },
        "threads": threads,
        "graphs": {
            name: {**_measure_graph(models[name]), "milliseconds": latency[name]}
            for name in models
        },
        "sha256": hashlib.sha256(exported.model.SerializeToString()).hexdigest(),
        "metadata": {p.key: p.value for p in exported.model.metadata_props},
    }
    return result | {"remark": speed_note(result)}


def speed_note(result: dict[str, Any]) -> str | None:
    """Return a note if the precision is slower than float32 on this machine."""
    graphs, precision = result["graphs"], result["precision"]
    if graphs[precision]["milliseconds"] > graphs["float32"]["milliseconds"]:
        return (
            f"On this machine {precision} is slower than float32; it only saves space."
        )
    return None


def parity_error(result: dict[str, Any]) -> str | None:
    """Return how the export differs too much, or None."""
    flax, precision = result["float32_from_flax"], result["precision"]
    if precision != "float32":
        psnr, minimum = result["from_float32"]["psnr"], MIN_PSNR[precision]
        if not psnr >= minimum:  # also true for NaN
            return (
                f"holes in {precision} have a PSNR of {psnr:.1f} dB against float32, "
                f"below the minimum of {minimum:g} dB"
            )
    if result["kind"] == "pipeline":
        if not (
            flax["largest"] <= MAX_GREY_DIFFERENCE
            and flax["stepped"] <= MAX_STEPPED_FRACTION
        ):
            return (
                f"in float32 it differs from Flax by up to {flax['largest']:g} grey "
                f"levels, in {flax['stepped']:.2%} of the values by more than one"
            )
    elif not flax["largest"] <= NETWORK_TOLERANCE * flax["range"]:
        return (
            f"in float32 it differs from Flax by up to {flax['largest']:.1e}, with an "
            f"output range of {flax['range']:.3g}"
        )
    return None


def _network_runner(options: ExportOptions) -> Callable[[Any, MaskedPhoto], np.ndarray]:
    def run(session: Any, photo: MaskedPhoto) -> np.ndarray:
        x = np.moveaxis(photo.network_input, -1, 1)
        x = np.repeat(x, options.batch or 1, axis=0)
        (y,) = session.run(None, {session.get_inputs()[0].name: x})
        return np.moveaxis(y[0], 0, -1)

    return run


def _forward_reference(model: Reference) -> Callable[[MaskedPhoto], np.ndarray]:
    return lambda photo: np.asarray(model.forward(photo.network_input))[0]


def _run_pipeline(session: Any, photo: MaskedPhoto) -> np.ndarray:
    image = np.ascontiguousarray(np.moveaxis(photo.image, -1, 0)[None])
    mask = np.where(photo.hole, 0, 255).astype(np.uint8)[None, None]
    (result,) = session.run(None, {"image": image, "mask": mask})
    return np.moveaxis(result[0], 0, -1)


def _inpaint_reference(model: Reference) -> Callable[[MaskedPhoto], np.ndarray]:
    """Return what `inpaint` does, without its checks of the mask."""
    size = model.network.resolution
    return lambda photo: fill_holes(*photo, model.predict, size, crops="one")


def _measure_graph(model: "onnx.ModelProto") -> dict[str, Any]:
    nodes = Counter(node.op_type for node in model.graph.node)
    return {
        "bytes": model.ByteSize(),
        "nodes": len(model.graph.node),
        "nodes_by_operator": dict(nodes.most_common()),
    }


def fastest_ms(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Time runs in turns, so that a slow phase of the machine affects all alike."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(REPEATS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def format_report(result: dict[str, Any]) -> str:
    """Format the report as readable text."""
    flax, float32 = result["from_flax"], result["from_float32"]
    lines = [
        f"{'':10} {'MB':>8} {'nodes':>6} {'ms':>8}   on {result['threads']} cores",
        *(
            f"{name:10} {graph['bytes'] / 1e6:8.2f} {graph['nodes']:6} "
            f"{graph['milliseconds']:8.1f}"
            for name, graph in result["graphs"].items()
        ),
    ]
    unit = " grey levels" if result["kind"] == "pipeline" else ""
    lines.append(
        f"difference from Flax: at most {flax['largest']:.3g}{unit}, mean "
        f"{flax['mean']:.2g}, output range {flax['range']:.3g} "
        f"({result['pictures']} images)"
    )
    if result["precision"] != "float32":
        lines.append(
            f"difference from float32: at most {float32['largest']:.3g}{unit}, PSNR of "
            f"holes {float32['psnr']:.1f} dB"
        )
    kept = "kept" if result["activation_limit_kept"] else "removed"
    lines.append(
        f"activation limit of 256: {kept}; largest activation: "
        f"{result['largest_activation']:.0f}"
    )
    if result["remark"]:
        lines.append(result["remark"])
    return "\n".join(lines)
