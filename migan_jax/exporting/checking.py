"""Does an exported graph do what the network does, and at what cost?"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from migan_jax.data.sources import open_source
from migan_jax.errors import UserError
from migan_jax.exporting.building import Exported, Wanted, session_of
from migan_jax.geometry.filling import fill_holes
from migan_jax.metrics.test_set import TestSet

if TYPE_CHECKING:
    import onnx

REPEATS = 5  # of which the fastest counts
SMALLEST_ERROR = 1e-12  # a mean square, so that no PSNR is infinite
# What two implementations in float32 may differ by, as a share of the outputs' range;
# of pipelines, in grey levels, and by more than one for so small a share of the values.
NETWORK_TOLERANCE = 2e-4
LARGEST_STEP, STEPPED_SHARE = 3, 1e-3
# PSNR over holes, against float32, that other precisions must reach.
LEAST_PSNR = {"float16": 50.0, "int8": 35.0}


class Picture(NamedTuple):
    """uint8 [H, W, 3] and its hole, bool [H, W]."""

    photo: np.ndarray
    hole: np.ndarray

    @property
    def network_input(self) -> np.ndarray:
        """Float32 [1, H, W, 4]."""
        known = (~self.hole).astype(np.float32)[..., None]
        image = self.photo.astype(np.float32) / np.float32(127.5) - 1
        return np.concatenate([known - 0.5, image * known], axis=-1)[None]


def pictures_of(source: str, size: tuple[int, int], count: int) -> list[Picture]:
    """Squares of a source with free-form holes, cut to a size; at most so many."""
    side = max(size)
    opened = open_source(source, masks=None, mask_hole="white", resolution=side, seed=0)
    squares = TestSet(opened, resolution=side, count=count)
    if len(squares) < 2:
        raise UserError(
            f"{source} has {len(squares)} picture: two at least are needed, one to "
            f"find ranges and one to check."
        )
    rows, columns = (slice(length) for length in size)
    return [
        Picture(squares[n].truth[rows, columns], squares[n].hole[rows, columns])
        for n in range(len(squares))
    ]


class Reference(Protocol):
    """The Flax network, as `migan_jax.load` gives it."""

    @property
    def network(self) -> Any: ...

    def forward(self, x: np.ndarray) -> Any: ...

    def predict(self, image: np.ndarray, known: np.ndarray) -> np.ndarray: ...


class Difference(NamedTuple):
    """Of outputs from what they should be."""

    largest: float
    mean: float
    range: float  # of what they should be
    stepped: float  # share of values that are more than 1 away
    psnr: float  # over holes


def difference(
    actual: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    pictures: Sequence[Picture],
    white: float,
) -> Difference:
    """Over all pictures; outputs are [H, W, 3]. `white` is the range of the PSNR."""
    apart = [
        np.abs(np.asarray(a, np.float64) - e)
        for a, e in zip(actual, expected, strict=True)
    ]
    everything = np.concatenate([x.ravel() for x in apart])
    holes = [x[p.hole].ravel() for x, p in zip(apart, pictures, strict=True)]
    error = max(np.mean(np.concatenate(holes) ** 2), SMALLEST_ERROR)
    return Difference(
        float(everything.max()),
        float(everything.mean()),
        float(max(map(np.max, expected)) - min(map(np.min, expected))),
        float(np.mean(everything > 1)),
        float(10 * np.log10(white**2 / error)),
    )


def report(
    model: Reference,
    exported: Exported,
    wanted: Wanted,
    pictures: Sequence[Picture],
    threads: int,
) -> dict[str, Any]:
    """Everything that is said of an export, as JSON."""
    sessions = {
        wanted.precision: session_of(exported.model, threads),
        "float32": session_of(exported.in_float32, threads),
    }
    run, reference, white = (
        (_pipeline, _inpainted(model), 255.0)
        if wanted.kind == "pipeline"
        else (_network(wanted), _forward(model), 2.0)
    )
    outputs = {
        name: [run(session, picture) for picture in pictures]
        for name, session in sessions.items()
    }
    truth = [reference(picture) for picture in pictures]
    against_flax = difference(outputs[wanted.precision], truth, pictures, white)
    of_float32 = difference(outputs["float32"], truth, pictures, white)
    against_float32 = difference(
        outputs[wanted.precision], outputs["float32"], pictures, white
    )
    models = {wanted.precision: exported.model, "float32": exported.in_float32}
    latency = fastest(
        {name: lambda s=s: run(s, pictures[0]) for name, s in sessions.items()}
    )
    result = {
        "kind": wanted.kind,
        "precision": wanted.precision,
        "pictures": len(pictures),
        "from_flax": against_flax._asdict(),
        "from_float32": against_float32._asdict(),
        "float32_from_flax": of_float32._asdict(),
        "largest_activation": exported.largest_activation,
        "activation_limit_kept": exported.limited,
        "opset": {
            o.domain or "ai.onnx": o.version for o in exported.model.opset_import
        },
        "threads": threads,
        "graphs": {
            name: {**_cost(models[name]), "milliseconds": latency[name]}
            for name in models
        },
        "sha256": hashlib.sha256(exported.model.SerializeToString()).hexdigest(),
        "metadata": {p.key: p.value for p in exported.model.metadata_props},
    }
    return result | {"remark": remark(result)}


def remark(result: dict[str, Any]) -> str | None:
    """That fewer bits cost time where this was measured, if they do."""
    graphs, precision = result["graphs"], result["precision"]
    if graphs[precision]["milliseconds"] > graphs["float32"]["milliseconds"]:
        return (
            f"On this machine {precision} is slower than float32, so it only saves "
            f"space."
        )
    return None


def complaint(result: dict[str, Any]) -> str | None:
    """Why a file with such a report should not be shipped."""
    flax, precision = result["float32_from_flax"], result["precision"]
    if precision != "float32":
        psnr, least = result["from_float32"]["psnr"], LEAST_PSNR[precision]
        if not psnr >= least:  # nor NaN
            return (
                f"holes of {precision} are {psnr:.1f} dB from those of float32, and "
                f"{least:g} are wanted"
            )
    if result["kind"] == "pipeline":
        if not (flax["largest"] <= LARGEST_STEP and flax["stepped"] <= STEPPED_SHARE):
            return (
                f"in float32 its pictures are up to {flax['largest']:g} grey levels "
                f"from Flax's, {flax['stepped']:.2%} of the values by more than one"
            )
    elif not flax["largest"] <= NETWORK_TOLERANCE * flax["range"]:
        return (
            f"in float32 it is up to {flax['largest']:.1e} from Flax's at outputs of a "
            f"range of {flax['range']:.3g}"
        )
    return None


def _network(wanted: Wanted) -> Callable[[Any, Picture], np.ndarray]:
    def run(session: Any, picture: Picture) -> np.ndarray:
        x = np.moveaxis(picture.network_input, -1, 1)
        x = np.repeat(x, wanted.batch or 1, axis=0)
        (y,) = session.run(None, {session.get_inputs()[0].name: x})
        return np.moveaxis(y[0], 0, -1)

    return run


def _forward(model: Reference) -> Callable[[Picture], np.ndarray]:
    return lambda picture: np.asarray(model.forward(picture.network_input))[0]


def _pipeline(session: Any, picture: Picture) -> np.ndarray:
    photo = np.ascontiguousarray(np.moveaxis(picture.photo, -1, 0)[None])
    mask = np.where(picture.hole, 0, 255).astype(np.uint8)[None, None]
    (result,) = session.run(None, {"image": photo, "mask": mask})
    return np.moveaxis(result[0], 0, -1)


def _inpainted(model: Reference) -> Callable[[Picture], np.ndarray]:
    """What `inpaint` does, without its doubts about holes, which are drawn here."""
    size = model.network.resolution
    return lambda picture: fill_holes(*picture, model.predict, size, crops="one")


def _cost(model: "onnx.ModelProto") -> dict[str, Any]:
    nodes = Counter(node.op_type for node in model.graph.node)
    return {
        "bytes": model.ByteSize(),
        "nodes": len(model.graph.node),
        "nodes_by_operator": dict(nodes.most_common()),
    }


def fastest(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of each, in turns, so that all meet the same machine."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(REPEATS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def table(result: dict[str, Any]) -> str:
    """For people."""
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
        f"from Flax  at most {flax['largest']:.3g}{unit}, {flax['mean']:.2g} on "
        f"average, at outputs of a range of {flax['range']:.3g} "
        f"({result['pictures']} pictures)"
    )
    if result["precision"] != "float32":
        lines.append(
            f"from float32  at most {float32['largest']:.3g}{unit}; holes "
            f"{float32['psnr']:.1f} dB"
        )
    kept = "kept" if result["activation_limit_kept"] else "left out"
    lines.append(
        f"the limit of activations, 256, is {kept}: the largest seen is "
        f"{result['largest_activation']:.0f}"
    )
    if result["remark"]:
        lines.append(result["remark"])
    return "\n".join(lines)
