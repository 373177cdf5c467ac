"""Evaluate checkpoints side by side on your images, with the metrics of papers.

  # A released network on a folder of photos, with the paper's free-form holes:
  python -m migan_jax.evaluate --checkpoint=migan_512_places2.pt \\
      --images=places/val --output=out/places
  # Two checkpoints of your own, on the first 500 photos, with your own holes:
  python -m migan_jax.evaluate --checkpoint=runs/a --checkpoint=runs/b \\
      --images=photos --masks=masks --samples=500 --output=out/mine
  # A set of irregular masks, of which every photo gets a random one:
  python -m migan_jax.evaluate --checkpoint=runs/a --images=photos \\
      --masks=irregular --mask-pairing=random --output=out/irregular

The central square of every image is resized to the network's size (with your own masks,
a square that includes part of the hole), its hole is filled, and the result is compared
with the original. Pipelines blend around the hole, so their known pixels count too.

OUTPUT/report.html shows metrics with 95 % bootstrap intervals, metrics by hole ratio,
and the first, best and worst images. OUTPUT/report.md has the table, and
OUTPUT/result.json has everything, including the protocol: images, holes, resizing and
the weights of the feature networks. Results are comparable only under one protocol.
Bins of hole ratio are 0 to 20, ..., 80 to 100 % (by_hole_ratio), and beside them 10 to
20, ..., 40 to 50 % (by_hole_ratio_10_to_50).

PSNR, SSIM and L1 are always computed. FID, KID, P-IDS, U-IDS and LPIPS need public
weights of Inception, AlexNet and VGG, which are not part of this package; a message
names the missing files and where to put them. Classical fills are evaluated too.

Run the same command again to resume an interrupted evaluation.
"""

import argparse
import dataclasses
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from migan_jax.config import progress, run_verb, verb_parser, whole_number
from migan_jax.data.masks import MaskHole, MaskPairing
from migan_jax.errors import UserError
from migan_jax.files import (
    read_json,
    reason,
    refuse_address,
    sha256_of,
    write_json,
    write_whole,
)
from migan_jax.weights.locations import CONFIG_FILE, find_checkpoint, resolve_path

if TYPE_CHECKING:
    from migan_jax.metrics.evaluator import FeatureNetworks, Method
    from migan_jax.metrics.test_set import TestSet
    from migan_jax.weights.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

RESULT_FILE, MARKDOWN_FILE, HTML_FILE = "result.json", "report.md", "report.html"
CHUNK_FOLDER = "chunks"
WEIGHTS = "params", "stats"  # of a checkpoint


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("evaluate", __doc__)
    parser.add_argument(
        "--checkpoint",
        metavar="CKPT",
        type=Path,
        action="append",
        required=True,
        help="a released .pt, a .safetensors, a run's workdir or an exported .onnx; "
        "repeat it to compare several",
    )
    parser.add_argument(
        "--resolution",
        metavar="R",
        type=whole_number(1),
        help="size of the images, for .onnx files that take any size "
        "(default: the network's)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        required=True,
        help="a folder or zip of images, ArrayRecord shards, or scenes",
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        help="a folder or zip with one mask per image, of the same name, or a mask set "
        "of prepare --masks (default: masks drawn with seed 0, of the kind that the "
        "first checkpoint's run was trained with, else free-form)",
    )
    parser.add_argument(
        "--mask-pairing",
        choices=get_args(MaskPairing),
        default="names",
        help="names: an image gets the mask of its name; random: one of --masks, "
        "rotated and dilated, with seed 0: every hole ratio of 0 to 10, ..., 50 to 60 "
        "%% equally often (default: names)",
    )
    parser.add_argument(
        "--mask-hole",
        choices=get_args(MaskHole),
        default="white",
        help="colour of the hole in your own masks (default: white)",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True)
    parser.add_argument(
        "--samples",
        metavar="N",
        type=whole_number(1),
        help="evaluate only the first N images (default: all)",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=whole_number(1),
        default=8,
        help="images at a time (default: 8)",
    )
    arguments = parser.parse_args()
    if arguments.mask_pairing == "random" and arguments.masks is None:
        parser.error("--mask-pairing=random needs a folder or zip: give --masks")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    arguments.checkpoint = [
        find_checkpoint(path, more_suffixes=(".onnx",)) for path in arguments.checkpoint
    ]
    check_output(arguments.output)
    from migan_jax.metrics.evaluator import Method
    from migan_jax.metrics.fills import classical_fills
    from migan_jax.metrics.ids import import_svm
    from migan_jax.training.devices import idle_accelerator
    from migan_jax.training.feature_networks import open_feature_networks

    if warning := idle_accelerator():
        logger.warning(warning)
    methods, resolution = open_checkpoints(arguments.checkpoint, arguments.resolution)
    test_set = open_test_set(arguments, resolution)
    feature_networks, missing = open_feature_networks()
    for why in dict.fromkeys(missing.values()):
        skipped = [metric for metric in missing if missing[metric] == why]
        logger.warning("skipping %s: %s", ", ".join(skipped), why)
    if feature_networks.inception is not None:
        import_svm()  # fail before the evaluation if it is missing
    for name, fill in classical_fills().items():
        if name in methods:
            raise UserError(
                f"--checkpoint={name} has the name of a classical fill: rename it."
            )
        methods[name] = Method(fill, {"method": name})
    result = evaluate(arguments, test_set, methods, feature_networks)
    write_reports(arguments.output, result, test_set, methods)


def check_output(folder: Path) -> None:
    """Raise UserError if the folder cannot be written, before any work is done."""
    refuse_address(folder)
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"--output={folder} is a file: name a folder.")
    try:
        (folder / CHUNK_FOLDER).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / CHUNK_FOLDER):  # safe in parallel
            pass
    except OSError as error:
        raise UserError(
            f"--output={folder} cannot be written: {reason(error)}."
        ) from error


def open_checkpoints(
    paths: list[Path], resolution: int | None
) -> tuple[dict[str, "Method"], int]:
    """Return methods by name, and the resolution to evaluate them at."""
    import migan_jax
    from migan_jax.inpainting import Model
    from migan_jax.metrics.evaluator import Method, shard_over_devices
    from migan_jax.metrics.fills import network_fill
    from migan_jax.metrics.onnx_fill import list_files, open_onnx

    methods: dict[str, Method] = {}
    sizes = {}
    for path in paths:
        name = str(path)
        if name in methods:
            raise UserError(f"--checkpoint={name} is given twice.")
        if path.suffix == ".onnx":
            files = list_files(path)
            fill, size = open_onnx(path)
            digest = " ".join(map(sha256_of, files))
        else:
            loaded = migan_jax.load(path)
            digest = " ".join(c.digest for c in loaded.checkpoints.values())
            size = loaded.network.resolution
            model = Model({r: _replicate(c) for r, c in loaded.checkpoints.items()})

            def complete(image: Any, known: Any, model: Model = model) -> Any:
                sharded = (shard_over_devices(x) for x in (image, known))
                return model.predict(*sharded)

            fill = network_fill(complete)
        methods[name] = Method(fill, {"weights": digest}, size, name)
        if size is not None:  # None: takes any
            sizes[name] = size
    if not sizes and resolution is None:
        raise UserError(f"{paths[0]} takes any size: choose one with --resolution.")
    if len({resolution, *sizes.values()} - {None}) > 1:
        found = ", ".join(f"{name} takes {size} pixels" for name, size in sizes.items())
        given = f", and --resolution={resolution}" if resolution else ""
        raise UserError(
            f"Only networks of the same size can be compared: {found}{given}."
        )
    return methods, resolution or next(iter(sizes.values()))


def _replicate(checkpoint: "Checkpoint") -> "Checkpoint":
    from migan_jax.metrics.evaluator import replicate

    weights = {name: replicate(getattr(checkpoint, name)) for name in WEIGHTS}
    return dataclasses.replace(checkpoint, **weights)


def open_test_set(arguments: argparse.Namespace, resolution: int) -> "TestSet":
    from migan_jax.data.mask_sets import MaskSet, is_mask_set
    from migan_jax.data.sources import open_source
    from migan_jax.data.unpaired_masks import UnpairedMasks, UnpairedMaskSource
    from migan_jax.metrics.test_set import DEFAULT_MASK_KIND, TestSet

    is_paired = arguments.mask_pairing == "names"
    has_mask_set = (
        is_paired and arguments.masks is not None and is_mask_set(Path(arguments.masks))
    )
    source = open_source(
        arguments.images,
        masks=arguments.masks if is_paired and not has_mask_set else None,
        mask_hole=arguments.mask_hole,
        resolution=resolution,
        seed=0,
    )
    if arguments.images.startswith("scenes") and arguments.samples is None:
        raise UserError("--images=scenes is endless: set the number with --samples.")
    if not is_paired:
        unpaired = UnpairedMasks(Path(arguments.masks), arguments.mask_hole, resolution)
        source = UnpairedMaskSource(source, unpaired)
    masks = MaskSet(Path(arguments.masks)) if has_mask_set else None
    kind = DEFAULT_MASK_KIND
    if arguments.masks is None and not source.has_masks:
        kind = training_mask_kind(arguments.checkpoint[0]) or kind
    return TestSet(
        source, resolution=resolution, masks=masks, kind=kind, count=arguments.samples
    )


def training_mask_kind(checkpoint: Path) -> str | None:
    """Return the kind of masks that the checkpoint's run drew, if there was one."""
    from migan_jax.data.mask_samplers import SAMPLERS

    workdir, _ = resolve_path(checkpoint)
    path, key = workdir / CONFIG_FILE, "data.mask_kind"
    if not path.is_file():
        return None
    hint = "choose the masks with --masks"
    settings = read_json(path, hint, **{key: str})
    if masks := settings.get("data.masks"):
        logger.warning("%s was trained with the masks in %s: %s", workdir, masks, hint)
        return None
    if settings[key] not in SAMPLERS:
        raise UserError(f"{path}: {key}={settings[key]!r} is unknown: {hint}.")
    logger.warning("masks: %s, as in the training of %s", settings[key], workdir)
    return settings[key]


def evaluate(
    arguments: argparse.Namespace,
    test_set: "TestSet",
    methods: dict[str, "Method"],
    feature_networks: "FeatureNetworks",
) -> dict[str, Any]:
    """Evaluate all methods and return the content of result.json."""
    from migan_jax.metrics.evaluator import Evaluation, make_protocol
    from migan_jax.metrics.report import GALLERY_SIZE, replace_nan
    from migan_jax.metrics.table import NARROW_HOLE_RATIO_BINS

    evaluation = Evaluation(test_set, feature_networks, arguments.output / CHUNK_FOLDER)
    with progress(len(test_set) * len(methods), "image") as advance:
        evaluation.run(list(methods.values()), arguments.batch_size, advance)
    results, digest = {}, None
    for name, method in methods.items():
        table, digest = evaluation.table(method)
        results[name] = {
            **method.identity,
            "resolution": method.resolution,
            "metrics": table.compute(),
            "by_hole_ratio": table.by_hole_ratio(),
            "by_hole_ratio_10_to_50": table.by_hole_ratio(NARROW_HOLE_RATIO_BINS),
            **table.extremes(GALLERY_SIZE),
        }
    protocol = make_protocol(test_set, feature_networks, digest)
    return replace_nan({"protocol": protocol, "methods": results})


def write_reports(
    folder: Path,
    result: dict[str, Any],
    test_set: "TestSet",
    methods: dict[str, "Method"],
) -> None:
    """Write the result and its reports, and print the table."""
    from migan_jax.metrics.report import format_html, format_markdown

    write_json(folder / RESULT_FILE, result)
    table = format_markdown(result)
    fills = {name: method.fill for name, method in methods.items()}
    html = format_html(result, test_set, fills)
    for name, text in ((MARKDOWN_FILE, table), (HTML_FILE, html)):
        # File names may hold bytes that are not text.
        content = text.encode(errors="backslashreplace")
        write_whole(folder / name, lambda part, c=content: part.write_bytes(c))
    print(table)
    print(f"wrote {RESULT_FILE}, {MARKDOWN_FILE} and {HTML_FILE} to {folder}")


if __name__ == "__main__":
    run_verb(main)
