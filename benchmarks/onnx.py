"""Exported graphs in onnxruntime, compared with other graphs of the network.

  python benchmarks/onnx.py --threads=1 --json=out/onnx.json
  python benchmarks/onnx.py --threads=1 --trained=runs/scenes64

Networks with random weights at several resolutions: `exported` is what export writes in
float32. The others are its float16 and int8 versions; the reference form with
zero-stuffing, gains and limits, through the same exporter; and Co-Mod-GAN's generator.
`ratio` is each one's time over that of `exported`. The reference form must give equal
outputs.

Pipelines of the largest resolution fill photos, uint8 to uint8: a small hole, and one
that covers most of the photo.

With --trained, also the PSNR of float16 and int8 holes against float32, in decibels, on
scenes not used for calibration.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

TOLERANCE = 2e-4  # of the outputs' range
HOLES = {"small hole": 0.1, "wide hole": 0.8}  # fraction of each side


def main() -> None:
    parser = benchmark_parser(__doc__, repeats=5)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[256, 512])
    parser.add_argument(
        "--width", type=float, default=1.0, help="factor of all layers' widths"
    )
    parser.add_argument(
        "--photos", nargs="+", default=["512x512", "1024x768", "3000x2000"]
    )
    parser.add_argument("--trained", type=Path, help="a checkpoint, for the PSNR")
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    rows = []
    for resolution in arguments.resolutions:
        rows += time_networks(resolution, arguments)
    rows += time_pipelines(max(arguments.resolutions), arguments)
    if arguments.trained is not None:
        rows += measure_psnr(arguments)
    print_table(rows)
    save_json(arguments.json, rows)


def make_checkpoint(resolution: int, width: float) -> Any:
    """Return a MI-GAN generator with random weights."""
    import jax

    from migan_jax.models import migan
    from migan_jax.weights.checkpoint import Checkpoint

    network = migan.MIGANGenerator(resolution, int(32768 * width), int(512 * width))
    sample = np.zeros((1, resolution, resolution, 4), np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), sample)
    return Checkpoint(network, variables["params"], variables["stats"])


def time_networks(resolution: int, arguments: Any) -> Iterable[dict[str, Any]]:
    from migan_jax.exporting.comparison import load_photos
    from migan_jax.exporting.graph import ExportOptions, build

    checkpoint = make_checkpoint(resolution, arguments.width)
    size = resolution, resolution
    inputs = [photo.network_input for photo in load_photos("scenes", size, 3)]
    models = {}
    for name, precision in (
        ("exported", "float32"),
        ("float16", "float16"),
        ("int8", "int8"),
    ):
        options = ExportOptions("network", size, 1, precision=precision)
        models[name] = build(checkpoint, options, inputs).model
    models["reference form"] = reference_form(checkpoint)
    models["Co-Mod-GAN"] = comodgan(resolution, arguments.width)
    x = np.ascontiguousarray(np.moveaxis(inputs[0], -1, 1))
    runs = {
        name: make_run(model, x, arguments.threads) for name, model in models.items()
    }
    ours, theirs = runs["exported"](), runs["reference form"]()
    if np.abs(ours - theirs).max() > TOLERANCE * np.ptp(theirs):
        raise SystemExit("error: the reference form gives another output.")
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
    """Export the twin with the reference upsampling."""
    from migan_jax.families import to_tensors
    from migan_jax.twins.build import build_twin, load_twin
    from migan_jax.weights.checkpoint import to_form

    fused = to_form(checkpoint, "fused")
    twin = build_twin(fused.network, upsampling="reference")
    twin.load_state_dict(load_twin(fused.network, to_tensors(fused)).state_dict())
    return export_twin(twin, (4, fused.network.resolution, fused.network.resolution))


def comodgan(resolution: int, width: float) -> Any:
    from migan_jax.models import comodgan
    from migan_jax.twins.build import build_twin

    network = comodgan.CoModGANGenerator(
        resolution, int(32768 * width), int(512 * width)
    )
    shapes = (4, resolution, resolution), (network.z_dim,)
    return export_twin(build_twin(network), *shapes)


def export_twin(twin: Any, *shapes: tuple[int, ...]) -> Any:
    import torch

    from migan_jax.twins.onnx_network import OPSET, silence_exporter

    examples = tuple(torch.zeros(1, *shape) for shape in shapes)
    with silence_exporter(), torch.no_grad():
        program = torch.onnx.export(
            twin, examples, dynamo=True, opset_version=OPSET, verbose=False
        )
    return program.model_proto


def make_run(model: Any, x: np.ndarray, threads: int) -> Any:
    from migan_jax.exporting.graph import make_session

    session = make_session(model, threads)
    first, *codes = session.get_inputs()
    rng = np.random.default_rng(0)
    feed = {code.name: rng.standard_normal(code.shape, np.float32) for code in codes}
    return lambda: session.run(None, {first.name: x, **feed})[0]


def time_pipelines(resolution: int, arguments: Any) -> Iterable[dict[str, Any]]:
    from migan_jax.exporting.graph import ExportOptions, build, make_session

    checkpoint = make_checkpoint(resolution, arguments.width)
    inputs = [np.zeros((1, resolution, resolution, 4), np.float32)]
    options = ExportOptions("pipeline", None, None)
    session = make_session(build(checkpoint, options, inputs).model, arguments.threads)
    rng = np.random.default_rng(0)
    for text in arguments.photos:
        width, height = map(int, text.split("x"))
        photo = rng.integers(0, 256, (1, 3, height, width), np.uint8)
        runs = {}
        for name, fraction in HOLES.items():
            mask = np.full((1, 1, height, width), 255, np.uint8)
            rows, columns = (
                slice(int(n * (1 - fraction) / 2), int(n * (1 + fraction) / 2))
                for n in (height, width)
            )
            mask[..., rows, columns] = 0
            feed = {"image": photo, "mask": mask}
            runs[name] = lambda feed=feed: session.run(None, feed)
        for name, ms in minimum_ms(runs, arguments.repeats).items():
            label = f"pipeline {text}, {name}"
            yield {"": label, "ms": ms, "ratio": "-", "MB": "-", "dB": "-"}


def measure_psnr(arguments: Any) -> Iterable[dict[str, Any]]:
    import migan_jax
    from migan_jax.export import NUM_CALIBRATION, NUM_COMPARISON
    from migan_jax.exporting.comparison import load_photos, make_report
    from migan_jax.exporting.graph import ExportOptions, build

    model = migan_jax.load(arguments.trained)
    size = (model.network.resolution,) * 2
    photos = load_photos("scenes", size, NUM_CALIBRATION + NUM_COMPARISON)
    for precision in ("float16", "int8"):
        options = ExportOptions("network", size, 1, precision=precision)
        exported = build(
            model.checkpoint,
            options,
            [p.network_input for p in photos[:NUM_CALIBRATION]],
        )
        comparison = photos[NUM_CALIBRATION:]
        result = make_report(model, exported, options, comparison, arguments.threads)
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
