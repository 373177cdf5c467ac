"""Export a MI-GAN generator as one ONNX file, for phones, browsers and servers.

  # Photo and mask in, photo out, of any size; a drop-in for migan_pipeline_v2.onnx:
  python -m migan_jax.export --checkpoint=migan_512_places2.pt --kind=pipeline \\
      --output=migan_pipeline.onnx
  # The bare network in float16, for images of one size:
  python -m migan_jax.export --checkpoint=runs/a --kind=network --precision=float16 \\
      --resolution=384x640 --output=migan_384x640.onnx
  # In 8 bits, calibrated on your own images:
  python -m migan_jax.export --checkpoint=runs/a --kind=network --precision=int8 \\
      --images=photos --output=migan_int8.onnx

A network maps float32 (N, 4, H, W), mask - 0.5 and RGB * mask, to (N, 3, H, W). A
pipeline maps uint8 image (N, 3, H, W) and mask (N, 1, H, W), 255 where known and 0 in
the hole, to result; it computes what inpaint does with a single crop. The files'
metadata describes this too. docs/app.md has code for Python and JavaScript.

Every export is compared with the Flax network and with float32, on images that were not
used for calibration. If it differs too much, nothing is written, unless with --force.
The measurements are written to OUTPUT with the extension .json.
"""

import argparse
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from migan_jax.config import available_cores, run_verb, verb_parser
from migan_jax.errors import UserError
from migan_jax.files import refuse_address, write_json, write_whole
from migan_jax.weights.locations import find_checkpoint

if TYPE_CHECKING:
    from migan_jax.exporting.graph import ExportOptions
    from migan_jax.inpainting import Model

PRECISIONS = "float32", "float16", "int8"
# Images for calibration, and further ones for the comparison.
NUM_CALIBRATION, NUM_COMPARISON = 24, 8
ANY = "any"


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("export", __doc__)
    parser.add_argument(
        "--checkpoint",
        metavar="CKPT",
        type=Path,
        required=True,
        help="a released .pt, a .safetensors or a run's workdir",
    )
    parser.add_argument("--kind", choices=("network", "pipeline"), required=True)
    parser.add_argument("--output", metavar="FILE.onnx", type=Path, required=True)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of weights and activations, not of inputs and outputs (default: float32)",
    )
    parser.add_argument(
        "--resolution",
        metavar="HxW",
        type=_parse_size,
        help="image size of a network, or any (default: its training resolution)",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=_parse_batch,
        help="batch size of a network, or any (default: 1)",
    )
    parser.add_argument(
        "--noise",
        choices=("stored", "dropped"),
        default="stored",
        help="the network's constant noise; without it the file is smaller and faster, "
        "and its results are a little smoother (default: stored)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        default="scenes",
        help="a folder or zip of typical images, for calibration and comparison "
        "(default: scenes)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="write the file even if it differs too much",
    )
    return parser.parse_args()


def _parse_size(text: str) -> tuple[int, int] | str:
    if text == ANY:
        return ANY
    if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"{text} is neither HEIGHTxWIDTH nor {ANY}")
    return int(match[1]), int(match[2])


def _parse_batch(text: str) -> int | str:
    if text == ANY:
        return ANY
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is neither a number nor {ANY}")
    return int(text)


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    arguments.checkpoint = find_checkpoint(arguments.checkpoint)
    check_output(arguments)
    from migan_jax.exporting.graph import import_tools

    import_tools()
    import migan_jax

    model = migan_jax.load(arguments.checkpoint)
    options = parse_options(arguments, model.network.resolution)
    export(arguments, model, options)


def check_output(arguments: argparse.Namespace) -> None:
    """Raise UserError if the output cannot be written, before any work is done."""
    output, kind = arguments.output, arguments.kind
    refuse_address(output)
    if output.suffix != ".onnx":
        raise UserError(f"--output={output} must have the extension .onnx.")
    for path in (output, output.with_suffix(".json")):
        if os.path.lexists(path):
            raise UserError(
                f"{path} already exists: remove it or choose another --output."
            )
    folder = output.absolute().parent
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UserError(f"--output={output}: {folder} is not a writable folder.")
    for option in ("resolution", "batch"):
        if kind == "pipeline" and getattr(arguments, option) is not None:
            raise UserError(
                f"--{option} needs --kind=network: a pipeline takes any size and batch."
            )


def parse_options(arguments: argparse.Namespace, resolution: int) -> "ExportOptions":
    from migan_jax.exporting.graph import ExportOptions

    size, batch = arguments.resolution or (resolution, resolution), arguments.batch or 1
    return ExportOptions(
        kind=arguments.kind,
        size=None if size == ANY else size,
        batch=None if batch == ANY else batch,
        noise=arguments.noise == "stored",
        precision=arguments.precision,
    )


def export(
    arguments: argparse.Namespace, model: "Model", options: "ExportOptions"
) -> None:
    """Build, compare, report and write the export."""
    from migan_jax.exporting.comparison import (
        format_report,
        load_photos,
        make_report,
        parity_error,
    )
    from migan_jax.exporting.graph import build, check_exportable

    check_exportable(model.checkpoint, options)
    side = model.network.resolution
    size = options.size or (side, side)
    count = NUM_CALIBRATION + NUM_COMPARISON
    photos = load_photos(arguments.images, size, count)
    calibration = photos[: max(1, len(photos) * NUM_CALIBRATION // count)]
    comparison = photos[len(calibration) :]
    if options.kind == "pipeline":  # also compare photos larger than the network
        larger = load_photos(arguments.images, (side + side // 2,) * 2, count)
        comparison += larger[len(calibration) :]
    exported = build(model.checkpoint, options, [p.network_input for p in calibration])
    reference = model if options.noise else without_noise(model)
    result = make_report(reference, exported, options, comparison, available_cores())
    result["checkpoint"] = str(arguments.checkpoint)
    print(format_report(result))
    result["complaint"] = error = parity_error(result)
    if error and not arguments.force:
        raise UserError(
            f"Nothing was written: {error}. Use --force to write it anyway."
        )
    content = exported.model.SerializeToString()
    write_whole(arguments.output, lambda part: part.write_bytes(content))
    write_json(arguments.output.with_suffix(".json"), result)
    print(f"wrote {arguments.output} and {arguments.output.with_suffix('.json')}")


def without_noise(model: "Model") -> "Model":
    """Return the model with zero noise, the reference for an export without noise."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    silent = jax.tree.map(jnp.zeros_like, model.stats)  # noise is all they hold
    return type(model).of(dataclasses.replace(model.checkpoint, stats=silent))


if __name__ == "__main__":
    run_verb(main)
