"""Exported graphs in onnxruntime, beside what they are instead of.

  python benchmarks/onnx.py --threads=1 --json=out/onnx.json
  python benchmarks/onnx.py --threads=1 --trained=runs/scenes64

Networks, by resolution, of random weights: `exported` is what export writes, and the
others are it in float16 and int8; the reference form, zero-stuffing, gains and limits
included, through the same exporter; and Co-Mod-GAN's generator. `ratio` is the time of
each over that of `exported`. The reference form must give the same picture.

Pipelines of the largest resolution fill photos, uint8 to uint8: a small hole, and one
that takes in most of the photo.

With --trained, also how far holes of float16 and int8 are from those of float32, in
decibels, on scenes that no range is from.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

TOLERANCE = 2e-4  # of the outputs' range
HOLES = {"small hole": 0.1, "wide hole": 0.8}  # share of each side


def main() -> None:
    parser = benchmark_parser(__doc__, repeats=5)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--width", type=float, default=1.0, help="of all layers")
    parser.add_argument(
        "--photos", nargs="+", default=["512x512", "1024x768", "3000x2000"]
    )
    parser.add_argument("--trained", type=Path, help="a checkpoint, for int8's figure")
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    rows = []
    for resolution in arguments.resolutions:
        rows += networks(resolution, arguments)
    rows += pipelines(max(arguments.resolutions), arguments)
    if arguments.trained is not None:
        rows += quality(arguments)
    print_table(rows)
    save_json(arguments.json, rows)


def checkpoint_of(resolution: int, width: float) -> Any:
    """Random weights."""
    import jax

    from migan_jax.models import migan
    from migan_jax.weights.checkpoint import Checkpoint

    network = migan.Generator(resolution, int(32768 * width), int(512 * width))
    sample = np.zeros((1, resolution, resolution, 4), np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), sample)
    return Checkpoint(network, variables["params"], variables["stats"])


def networks(resolution: int, arguments: Any) -> Iterable[dict[str, Any]]:
    from migan_jax.exporting.building import Wanted, build
    from migan_jax.exporting.checking import pictures_of

    checkpoint = checkpoint_of(resolution, arguments.width)
    size = resolution, resolution
    inputs = [picture.network_input for picture in pictures_of("scenes", size, 3)]
    models = {}
    for name, precision in (
        ("exported", "float32"),
        ("float16", "float16"),
        ("int8", "int8"),
    ):
        wanted = Wanted("network", size, 1, precision=precision)
        models[name] = build(checkpoint, wanted, inputs).model
    models["reference form"] = reference_form(checkpoint)
    models["Co-Mod-GAN"] = comodgan(resolution, arguments.width)
    x = np.ascontiguousarray(np.moveaxis(inputs[0], -1, 1))
    runs = {name: run_of(model, x, arguments.threads) for name, model in models.items()}
    ours, theirs = runs["exported"](), runs["reference form"]()
    if np.abs(ours - theirs).max() > TOLERANCE * np.ptp(theirs):
        raise SystemExit("error: the reference form gives another picture.")
    best = minimum_ms(runs, arguments.repeats)
    for name, ms in best.items():
        yield {
            "": f"{name} {resolution}",
            "ms": ms,
            "ratio": ms / best["exported"],
            "MB": models[name].ByteSize() / 1e6,
            "dB": "-",
        }


def reference_form(checkpoint: Any) -> Any:
    """The twin as its authors have it, through the same exporter."""
    from migan_jax.families import to_tensors
    from migan_jax.twins.build import build_twin, load_twin
    from migan_jax.weights.checkpoint import to_form

    fused = to_form(checkpoint, "fused")
    twin = build_twin(fused.network, upsampling="reference")
    twin.load_state_dict(load_twin(fused.network, to_tensors(fused)).state_dict())
    return in_onnx(twin, (4, fused.network.resolution, fused.network.resolution))


def comodgan(resolution: int, width: float) -> Any:
    from migan_jax.models import comodgan
    from migan_jax.twins.build import build_twin

    network = comodgan.Generator(resolution, int(32768 * width), int(512 * width))
    shapes = (4, resolution, resolution), (network.z_dim,)
    return in_onnx(build_twin(network), *shapes)


def in_onnx(twin: Any, *shapes: tuple[int, ...]) -> Any:
    import torch

    from migan_jax.twins.onnx_network import OPSET, quietly

    examples = tuple(torch.zeros(1, *shape) for shape in shapes)
    with quietly(), torch.no_grad():
        program = torch.onnx.export(
            twin, examples, dynamo=True, opset_version=OPSET, verbose=False
        )
    return program.model_proto


def run_of(model: Any, x: np.ndarray, threads: int) -> Any:
    from migan_jax.exporting.building import session_of

    session = session_of(model, threads)
    first, *codes = session.get_inputs()
    rng = np.random.default_rng(0)
    feed = {code.name: rng.standard_normal(code.shape, np.float32) for code in codes}
    return lambda: session.run(None, {first.name: x, **feed})[0]


def pipelines(resolution: int, arguments: Any) -> Iterable[dict[str, Any]]:
    from migan_jax.exporting.building import Wanted, build, session_of

    checkpoint = checkpoint_of(resolution, arguments.width)
    inputs = [np.zeros((1, resolution, resolution, 4), np.float32)]
    wanted = Wanted("pipeline", None, None)
    session = session_of(build(checkpoint, wanted, inputs).model, arguments.threads)
    rng = np.random.default_rng(0)
    for text in arguments.photos:
        width, height = map(int, text.split("x"))
        photo = rng.integers(0, 256, (1, 3, height, width), np.uint8)
        runs = {}
        for name, share in HOLES.items():
            mask = np.full((1, 1, height, width), 255, np.uint8)
            rows, columns = (
                slice(int(n * (1 - share) / 2), int(n * (1 + share) / 2))
                for n in (height, width)
            )
            mask[..., rows, columns] = 0
            feed = {"image": photo, "mask": mask}
            runs[name] = lambda feed=feed: session.run(None, feed)
        for name, ms in minimum_ms(runs, arguments.repeats).items():
            about = f"pipeline {text}, {name}"
            yield {"": about, "ms": ms, "ratio": "-", "MB": "-", "dB": "-"}


def quality(arguments: Any) -> Iterable[dict[str, Any]]:
    import migan_jax
    from migan_jax.export import CHECKED, TYPICAL
    from migan_jax.exporting.building import Wanted, build
    from migan_jax.exporting.checking import pictures_of, report

    model = migan_jax.load(arguments.trained)
    size = (model.network.resolution,) * 2
    pictures = pictures_of("scenes", size, TYPICAL + CHECKED)
    for precision in ("float16", "int8"):
        wanted = Wanted("network", size, 1, precision=precision)
        exported = build(
            model.checkpoint, wanted, [p.network_input for p in pictures[:TYPICAL]]
        )
        checked = pictures[TYPICAL:]
        result = report(model, exported, wanted, checked, arguments.threads)
        psnr = result["from_float32"]["psnr"]
        yield {
            "": f"{precision} of {arguments.trained}",
            "ms": "-",
            "ratio": "-",
            "MB": "-",
            "dB": psnr,
        }


if __name__ == "__main__":
    main()
