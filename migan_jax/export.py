"""Export a MI-GAN generator as one ONNX file, for phones, browsers and servers.

  # Photo and mask in, photo out, of any size; a drop-in for migan_pipeline_v2.onnx:
  python -m migan_jax.export --checkpoint=migan_512_places2.pt --kind=pipeline \\
      --output=migan_pipeline.onnx
  # The bare network, with half the numbers' bits, for pictures of one size:
  python -m migan_jax.export --checkpoint=runs/a --kind=network --precision=float16 \\
      --resolution=384x640 --output=migan_384x640.onnx
  # In 8 bits, with ranges from your own pictures:
  python -m migan_jax.export --checkpoint=runs/a --kind=network --precision=int8 \\
      --images=photos --output=migan_int8.onnx

A network takes float32 (N, 4, H, W), mask - 0.5 and RGB * mask, and gives (N, 3, H, W).
A pipeline takes bytes: image (N, 3, H, W) and mask (N, 1, H, W), 255 where known and 0
in the hole, and gives result; it computes what inpaint does with a single crop. Files
say so themselves, in their metadata. docs/app.md has code for Python and JavaScript.

Every export is run beside the Flax network, and beside float32, on pictures that its
ranges are not from. One that differs by too much is refused, unless --force is given.
OUTPUT with the ending .json has the figures.
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
from migan_jax.weights.locations import check_checkpoint

if TYPE_CHECKING:
    from migan_jax.exporting.building import Wanted
    from migan_jax.inpainting import Model

PRECISIONS = "float32", "float16", "int8"
# Pictures that decide on ranges, and others that the file is checked with.
TYPICAL, CHECKED = 24, 8
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
        help="of what is inside; inputs and outputs stay (default: float32)",
    )
    parser.add_argument(
        "--resolution",
        metavar="HxW",
        type=_size,
        help="of a network's pictures, or any (default: what it was trained on)",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=_batch,
        help="a network's pictures at a time, or any (default: 1)",
    )
    parser.add_argument(
        "--noise",
        choices=("stored", "dropped"),
        default="stored",
        help="the network's constant noise; without it files are smaller, faster and "
        "a little smoother (default: stored)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        default="scenes",
        help="a folder or zip of typical pictures, for ranges and checks "
        "(default: scenes)",
    )
    parser.add_argument(
        "--force", action="store_true", help="write files that differ by too much"
    )
    return parser.parse_args()


def _size(text: str) -> tuple[int, int] | str:
    if text == ANY:
        return ANY
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"{text} is neither HEIGHTxWIDTH nor {ANY}")
    return int(found[1]), int(found[2])


def _batch(text: str) -> int | str:
    if text == ANY:
        return ANY
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is neither a number nor {ANY}")
    return int(text)


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    check_checkpoint(arguments.checkpoint)
    check_output(arguments)
    from migan_jax.exporting.building import import_tools

    import_tools()
    import migan_jax

    model = migan_jax.load(arguments.checkpoint)
    wanted = wanted_of(arguments, model.network.resolution)
    export(arguments, model, wanted)


def check_output(arguments: argparse.Namespace) -> None:
    """Before the work and not after it."""
    output, kind = arguments.output, arguments.kind
    refuse_address(output)
    if output.suffix != ".onnx":
        raise UserError(f"--output={output} does not end in .onnx.")
    for path in (output, output.with_suffix(".json")):
        if os.path.lexists(path):
            raise UserError(f"{path} exists already: remove it or name another output.")
    folder = output.absolute().parent
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UserError(
            f"--output={output}: there is no folder that can be written to."
        )
    for option in ("resolution", "batch"):
        if kind == "pipeline" and getattr(arguments, option) is not None:
            raise UserError(
                f"--{option} is for --kind=network: a pipeline takes pictures of any "
                f"size, and any number of them."
            )


def wanted_of(arguments: argparse.Namespace, resolution: int) -> "Wanted":
    from migan_jax.exporting.building import Wanted

    size, batch = arguments.resolution or (resolution, resolution), arguments.batch or 1
    return Wanted(
        kind=arguments.kind,
        size=None if size == ANY else size,
        batch=None if batch == ANY else batch,
        noise=arguments.noise == "stored",
        precision=arguments.precision,
    )


def export(arguments: argparse.Namespace, model: "Model", wanted: "Wanted") -> None:
    """Build, check, write and say."""
    from migan_jax.exporting.building import build, check_exportable
    from migan_jax.exporting.checking import complaint, pictures_of, report, table

    check_exportable(model.checkpoint, wanted)
    side = model.network.resolution
    size = wanted.size or (side, side)
    count = TYPICAL + CHECKED
    pictures = pictures_of(arguments.images, size, count)
    typical = pictures[: max(1, len(pictures) * TYPICAL // count)]
    checked = pictures[len(typical) :]
    if wanted.kind == "pipeline":  # photos are larger than what the network takes
        larger = pictures_of(arguments.images, (side + side // 2,) * 2, count)
        checked += larger[len(typical) :]
    exported = build(model.checkpoint, wanted, [p.network_input for p in typical])
    reference = model if wanted.noise else without_noise(model)
    result = report(reference, exported, wanted, checked, available_cores())
    result["checkpoint"] = str(arguments.checkpoint)
    print(table(result))
    result["complaint"] = why = complaint(result)  # None: all is well
    if why and not arguments.force:
        raise UserError(f"Nothing was written: {why}. --force writes it all the same.")
    content = exported.model.SerializeToString()
    write_whole(arguments.output, lambda part: part.write_bytes(content))
    write_json(arguments.output.with_suffix(".json"), result)
    print(f"wrote {arguments.output} and {arguments.output.with_suffix('.json')}")


def without_noise(model: "Model") -> "Model":
    """What a network is compared with whose noise was dropped."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    silent = jax.tree.map(jnp.zeros_like, model.stats)  # a MI-GAN has no others
    return type(model).of(dataclasses.replace(model.checkpoint, stats=silent))


if __name__ == "__main__":
    run_verb(main)
