"""Measure inpainting as papers do: checkpoints side by side, on your pictures.

  # A released network on a folder of photos, with the paper's free-form holes:
  python -m migan_jax.evaluate --checkpoint=migan_512_places2.pt \\
      --images=places/val --output=out/places
  # Two checkpoints of your own, on the first 500 photos, with your own holes:
  python -m migan_jax.evaluate --checkpoint=runs/a --checkpoint=runs/b \\
      --images=photos --masks=masks --samples=500 --output=out/mine

The central square of every picture (with own masks: one with the hole in it) is brought
to the network's size, its hole filled, and the result compared with what was there.
Pipelines, which blend, answer for the known pixels too.

OUTPUT/report.html shows figures with 95 % bootstrap intervals, by the hole's share of
the picture, and pictures: the first, the best and the worst. OUTPUT/report.md has the
table, OUTPUT/result.json everything, with the protocol: pictures, holes, resizing,
weights of the networks that looked. Figures of other protocols cannot be compared.

PSNR, SSIM and L1 are always there. FID, KID, P-IDS, U-IDS and LPIPS need public
weights of Inception, AlexNet and VGG, which are not part of this package: where they
are missing it is said which file goes where. Classical fills are measured beside the
checkpoints.

The same command continues what was interrupted.
"""

import argparse
import dataclasses
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from migan_jax.config import progress, run_verb, verb_parser, whole_number
from migan_jax.data.masks import MaskHole
from migan_jax.errors import UserError
from migan_jax.files import (
    read_json,
    reason,
    refuse_address,
    sha256_of,
    write_json,
    write_whole,
)
from migan_jax.weights.locations import CONFIG_FILE, check_checkpoint, located

if TYPE_CHECKING:
    from migan_jax.metrics.evaluator import Eyes, Method
    from migan_jax.metrics.test_set import TestSet
    from migan_jax.weights.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

RESULT, MARKDOWN, PAGE = "result.json", "report.md", "report.html"
CHUNKS = "chunks"
WEIGHTS = "params", "stats"  # of a checkpoint
SHOWN = 6  # pictures of each kind in the gallery


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("evaluate", __doc__)
    parser.add_argument(
        "--checkpoint",
        metavar="CKPT",
        type=Path,
        action="append",
        required=True,
        help="a released .pt, a .safetensors, a run's workdir or an exported .onnx; "
        "may be repeated",
    )
    parser.add_argument(
        "--resolution",
        metavar="R",
        type=whole_number(1),
        help="the size of the pictures, for .onnx files that take any "
        "(default: the network's)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        required=True,
        help="a folder or zip of pictures, ArrayRecord, or scenes",
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        help="a folder or zip with a mask of each picture's name, or a set that "
        "prepare --masks has drawn (default: drawn ones of seed 0, of the kind that "
        "the first checkpoint was trained with, if it is a run's, else free-form)",
    )
    parser.add_argument(
        "--mask-hole",
        choices=get_args(MaskHole),
        default="white",
        help="what own masks show the hole in (default: white)",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True)
    parser.add_argument(
        "--samples",
        metavar="N",
        type=whole_number(1),
        help="the first N pictures only (default: all)",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=whole_number(1),
        default=8,
        help="pictures at a time (default: 8)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    for path in arguments.checkpoint:
        check_checkpoint(path, more_endings=(".onnx",))
    check_output(arguments.output)
    from migan_jax.metrics.evaluator import Method
    from migan_jax.metrics.fills import classical_fills
    from migan_jax.metrics.ids import import_svm
    from migan_jax.training.devices import idle_accelerator
    from migan_jax.training.eyes import open_eyes

    if sentence := idle_accelerator():
        logger.warning(sentence)
    methods, resolution = open_checkpoints(arguments.checkpoint, arguments.resolution)
    test_set = open_test_set(arguments, resolution)
    eyes, missing = open_eyes()
    for why in dict.fromkeys(missing.values()):
        without = [metric for metric in missing if missing[metric] == why]
        logger.warning("without %s: %s", ", ".join(without), why)
    if eyes.inception is not None:
        import_svm()  # which is missed before the work, not after it
    for name, fill in classical_fills().items():
        if name in methods:
            raise UserError(
                f"--checkpoint={name} is a classical fill's name: rename it."
            )
        methods[name] = Method(fill, {"method": name})
    result = measure(arguments, test_set, methods, eyes)
    show(arguments, result, test_set, methods)


def check_output(folder: Path) -> None:
    """Before the work and not after it."""
    refuse_address(folder)
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"--output={folder} is a file: name a folder.")
    try:
        (folder / CHUNKS).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / CHUNKS):  # of no name: others may run
            pass
    except OSError as error:
        raise UserError(
            f"--output={folder} cannot be written: {reason(error)}."
        ) from error


def open_checkpoints(
    paths: list[Path], resolution: int | None
) -> tuple[dict[str, "Method"], int]:
    """Methods by name, and the size that they are for."""
    import migan_jax
    from migan_jax.inpainting import Model
    from migan_jax.metrics.evaluator import Method, spread
    from migan_jax.metrics.fills import network_fill
    from migan_jax.metrics.onnx_fill import files_of, open_onnx

    methods: dict[str, Method] = {}
    sizes = {}
    for path in paths:
        name = str(path)
        if name in methods:
            raise UserError(f"--checkpoint={name} is named twice.")
        if path.suffix == ".onnx":
            files = files_of(path)
            fill, size = open_onnx(path)
            digest = " ".join(map(sha256_of, files))
        else:
            loaded = migan_jax.load(path)
            digest = " ".join(c.digest for c in loaded.checkpoints.values())
            size = loaded.network.resolution
            model = Model({r: _spread(c) for r, c in loaded.checkpoints.items()})

            def complete(image: Any, known: Any, model: Model = model) -> Any:
                return model.predict(spread(image), spread(known))

            fill = network_fill(complete)
        methods[name] = Method(fill, {"weights": digest}, size, name)
        if size is not None:  # else it takes any
            sizes[name] = size
    if not sizes and resolution is None:
        raise UserError(f"{paths[0]} takes any size: say which with --resolution.")
    if len({resolution, *sizes.values()} - {None}) > 1:
        said = ", ".join(f"{name} is of {size}" for name, size in sizes.items())
        asked = f", --resolution={resolution}" if resolution else ""
        raise UserError(
            f"Only networks of one size can be compared: {said} pixels{asked}."
        )
    return methods, resolution or next(iter(sizes.values()))


def _spread(checkpoint: "Checkpoint") -> "Checkpoint":
    from migan_jax.metrics.evaluator import on_every_device

    weights = {name: on_every_device(getattr(checkpoint, name)) for name in WEIGHTS}
    return dataclasses.replace(checkpoint, **weights)


def open_test_set(arguments: argparse.Namespace, resolution: int) -> "TestSet":
    from migan_jax.data.mask_sets import MaskSet, is_mask_set
    from migan_jax.data.sources import open_source
    from migan_jax.metrics.test_set import KIND, TestSet

    drawn = arguments.masks is not None and is_mask_set(Path(arguments.masks))
    source = open_source(
        arguments.images,
        masks=None if drawn else arguments.masks,
        mask_hole=arguments.mask_hole,
        resolution=resolution,
        seed=0,
    )
    if arguments.images.startswith("scenes") and arguments.samples is None:
        raise UserError("Scenes have no end: say how many with --samples.")
    masks = MaskSet(Path(arguments.masks)) if drawn else None
    kind = KIND
    if arguments.masks is None and not source.has_masks:
        kind = trained_with(arguments.checkpoint[0]) or KIND
    return TestSet(
        source, resolution=resolution, masks=masks, kind=kind, count=arguments.samples
    )


def trained_with(checkpoint: Path) -> str | None:
    """The kind of masks that were drawn in a run's training, if there was one."""
    from migan_jax.data.mask_samplers import SAMPLERS

    workdir, _ = located(checkpoint)
    path, key = workdir / CONFIG_FILE, "data.mask_kind"
    if not path.is_file():
        return None
    remedy = "name the masks with --masks"
    settings = read_json(path, remedy, **{key: str})
    if own := settings.get("data.masks"):
        logger.warning("%s was trained with the masks in %s: %s", workdir, own, remedy)
        return None
    if settings[key] not in SAMPLERS:
        raise UserError(f"{path} names masks that are not known here: {remedy}.")
    logger.warning("masks: %s, as in the training of %s", settings[key], workdir)
    return settings[key]


def measure(
    arguments: argparse.Namespace,
    test_set: "TestSet",
    methods: dict[str, "Method"],
    eyes: "Eyes",
) -> dict[str, Any]:
    """Everything that result.json holds."""
    from migan_jax.metrics.evaluator import Evaluation
    from migan_jax.metrics.protocol import protocol_of
    from migan_jax.metrics.report import without_nan

    evaluation = Evaluation(test_set, eyes, arguments.output / CHUNKS)
    with progress(len(test_set) * len(methods), "picture") as advance:
        evaluation.work_off(list(methods.values()), arguments.batch_size, advance)
    results, digest = {}, None
    for name, method in methods.items():
        table, digest = evaluation.table(method)
        results[name] = {
            **method.identity,
            "resolution": method.resolution,
            "metrics": table.compute(),
            "by_hole_ratio": table.by_hole_ratio(),
            **table.extremes(SHOWN),
        }
    protocol = protocol_of(test_set, eyes, digest)
    return without_nan({"protocol": protocol, "methods": results})


def show(
    arguments: argparse.Namespace,
    result: dict[str, Any],
    test_set: "TestSet",
    methods: dict[str, "Method"],
) -> None:
    """Write result and reports, and print the table."""
    from migan_jax.metrics.report import markdown, page

    output = arguments.output
    write_json(output / RESULT, result)
    table = markdown(result)
    fills = {name: method.fill for name, method in methods.items()}
    html = page(result, test_set, fills)
    for name, text in ((MARKDOWN, table), (PAGE, html)):
        content = text.encode(errors="backslashreplace")  # file names are any bytes
        write_whole(output / name, lambda part, c=content: part.write_bytes(c))
    print(table)
    print(f"wrote {output / RESULT}, {output / MARKDOWN} and {output / PAGE}")


if __name__ == "__main__":
    run_verb(main)
