"""Prepare pictures for training, or a set of masks for evaluation.

  # A folder of photos (with subfolders, any formats) or a zip, as it is:
  python -m migan_jax.prepare photos prepared
  # Shrunk to what a network of 512 needs: less disk, faster to read:
  python -m migan_jax.prepare photos.zip prepared --size=512
  # Photos with their own masks, of the same names, white where the hole is:
  python -m migan_jax.prepare photos prepared --own-masks=masks
  # 10,000 masks to evaluate with, always the same ones:
  python -m migan_jax.prepare masks512 --masks=10000 --resolution=512

Pictures: OUTPUT becomes shards of ArrayRecord, whose records are image files, an index,
rejected.json with the files that cannot be used and why, and sheet.png to look at.
Damaged, small, transparent, CMYK and animated files are left out. An interrupted run is
continued by the same command.

Masks: OUTPUT becomes a folder of pictures, white where the hole is, with masks.json,
which holds how they were drawn and their hashes. With a SOURCE too, they are written
into OUTPUT/masks.
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import get_args

from migan_jax.config import (
    available_cores,
    progress,
    run_verb,
    verb_parser,
    whole_number,
)
from migan_jax.data.masks import MaskHole
from migan_jax.errors import UserError, missing_here
from migan_jax.files import readable_size, refuse_address, refuse_undecodable

# As migan_jax.data.mask_samplers.SAMPLERS, which would import JAX here.
KINDS = ("free_form", "brush", "thin_brush", "box", "cellular_automaton")


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("prepare", __doc__)
    parser.add_argument(
        "source", metavar="SOURCE", nargs="?", type=Path, help="a folder or a zip"
    )
    parser.add_argument(
        "output", metavar="OUTPUT", type=Path, help="a folder; a new one, or to go on"
    )
    _add_picture_options(parser.add_argument_group("pictures"))
    _add_mask_options(parser.add_argument_group("masks"))
    arguments = parser.parse_args()
    if arguments.source is None and arguments.masks is None:
        parser.error("name a SOURCE and an OUTPUT, or ask for --masks")
    if arguments.source is None and arguments.own_masks is not None:
        parser.error("--own-masks belong to pictures: name a SOURCE")
    return arguments


def _add_picture_options(pictures: argparse._ArgumentGroup) -> None:
    pictures.add_argument(
        "--size",
        metavar="N",
        type=whole_number(1),
        help="shrink pictures to a shorter side of N (JPEG, quality 95), smaller ones "
        "stay as they are. Default: all stay as they are",
    )
    pictures.add_argument(
        "--smallest-side",
        metavar="N",
        type=whole_number(1),
        default=64,
        help="leave out pictures with a shorter side below N (default: 64)",
    )
    pictures.add_argument(
        "--own-masks",
        metavar="DIR",
        type=Path,
        help="a folder or zip with one mask per picture, of the same name",
    )
    pictures.add_argument(
        "--mask-hole",
        choices=get_args(MaskHole),
        default="white",
        help="what the own masks show the hole in (default: white)",
    )
    pictures.add_argument(
        "--max-rejected",
        metavar="SHARE",
        type=_share,
        default=0.1,
        help="stop if more than this share cannot be used (default: 0.1)",
    )
    pictures.add_argument(
        "--workers",
        metavar="N",
        type=whole_number(1, 1024),
        default=available_cores(),
        help="threads that decode (default: one per core)",
    )


def _add_mask_options(masks: argparse._ArgumentGroup) -> None:
    masks.add_argument(
        "--masks",
        metavar="N",
        type=whole_number(1, 1_000_000),  # whose names have six digits
        help="draw N masks",
    )
    masks.add_argument(
        "--kind",
        choices=KINDS,
        default="free_form",
        help="free_form: MI-GAN's and Co-Mod-GAN's; brush: DeepFillv2's, and the same "
        "thinner; box and cellular_automaton: DeepGIN's (default: free_form)",
    )
    masks.add_argument(
        "--resolution",
        metavar="N",
        type=whole_number(1),
        default=512,
        help="of the masks (default: 512)",
    )
    masks.add_argument(
        "--seed",
        metavar="N",
        type=whole_number(0, 2**63 - 1),
        default=0,
        help="of the masks (default: 0)",
    )


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):  # no number is no share either
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no share from 0 to 1")


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    for location in filter(None, (arguments.source, arguments.output)):
        refuse_address(location)
    refuse_undecodable(arguments.output)
    masks = arguments.output
    if arguments.source is not None:
        prepare_pictures(arguments)
        masks = arguments.output / "masks"
    if arguments.masks is not None:
        prepare_masks(arguments, masks)


def prepare_pictures(arguments: argparse.Namespace) -> None:
    """Shards, index and report."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from migan_jax.data.preparing import SHEET, Options, Preparation
    from migan_jax.data.rejects import Rejects
    from migan_jax.data.sources import (
        REPORT,
        ArrayRecordSource,
        FileSource,
        has_shards,
    )

    if importlib.util.find_spec("array_record") is None:
        raise missing_here("array_record", "Preparing pictures")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what it can do without
    if has_shards(arguments.source):
        raise UserError(f"{arguments.source} holds shards, which are prepared already.")
    _check_apart(arguments.source, arguments.output)
    source = FileSource(arguments.source, arguments.own_masks, arguments.mask_hole)
    output, total = arguments.output, len(source)
    options = Options(arguments.size, arguments.smallest_side)
    preparation = Preparation(source, output, options)
    if preparation.is_complete():
        print(f"{output} is complete already")
        return
    _check_space(output, preparation.bytes_needed(), total)
    rejects = Rejects(source, arguments.max_rejected, output / REPORT)
    with logging_redirect_tqdm(), progress(total, "picture") as advance:
        preparation.run(rejects, arguments.workers, advance)
    prepared = ArrayRecordSource(output)
    left_out = len(rejects.reasons), len(source.others)
    print(
        f"wrote {output}: {len(prepared):,} pictures, "
        f"{readable_size(prepared.fingerprint.bytes)}; look at {output / SHEET}\n"
        f"left out: {left_out[0]:,} that cannot be used, {left_out[1]:,} files that "
        f"are no images; named in {output / REPORT}\n"
        f"fingerprint {prepared.fingerprint.digest}"
    )


def _check_apart(source: Path, output: Path) -> None:
    """What is written among the pictures would be taken for one of them next time."""
    outer, inner = os.path.realpath(source), os.path.realpath(output)
    if os.path.commonpath([outer, inner]) == outer:
        raise UserError(f"{output} is in {source} itself: name a folder outside.")


def _check_space(output: Path, needed: int, count: int) -> None:
    folders = (output.absolute(), *output.absolute().parents)
    free = shutil.disk_usage(
        next(path for path in folders if os.path.exists(path))
    ).free
    print(
        f"{count:,} pictures: what is missing needs about {readable_size(needed)}, "
        f"{readable_size(free)} are free",
        flush=True,
    )
    if needed > free:
        raise UserError(
            f"{output} would need about {readable_size(needed)}, but only "
            f"{readable_size(free)} are free there: choose another disk, or --size."
        )


def prepare_masks(arguments: argparse.Namespace, output: Path) -> None:
    """A set of masks, as a whole."""
    from migan_jax.data.mask_sets import MaskSet, write_mask_set

    settings = {
        "kind": arguments.kind,
        "count": arguments.masks,
        "resolution": arguments.resolution,
        "seed": arguments.seed,
    }
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        masks = MaskSet(output)
        if masks.settings != settings:
            raise UserError(f"{output} is another set of masks: name another folder.")
        masks.check()
        print(f"{output} is complete already")
    else:
        with progress(arguments.masks, "mask") as advance:
            write_mask_set(output, **settings, advance=advance)
        masks = MaskSet(output)
    print(
        f"{output}: {len(masks):,} masks ({arguments.kind}, {arguments.resolution} px, "
        f"seed {arguments.seed}), white where the hole is\nfingerprint {masks.digest}"
    )


if __name__ == "__main__":
    run_verb(main)
