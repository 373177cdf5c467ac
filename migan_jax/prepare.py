"""Prepare images for training, or a set of masks for evaluation.

  # A folder of photos (recursively, any formats) or a zip, unchanged:
  python -m migan_jax.prepare photos prepared
  # Shrunk for a 512-pixel network: smaller, and faster to load:
  python -m migan_jax.prepare photos.zip prepared --size=512
  # Photos with masks of the same names, white in the hole:
  python -m migan_jax.prepare photos prepared --own-masks=masks
  # On several machines at once, here share 3 of the shares 0 to 15; then, on one:
  python -m migan_jax.prepare photos prepared --share=3/16
  python -m migan_jax.prepare photos prepared --join
  # The same on Apache Beam (Dataflow, Flink, Spark):
  python -m migan_jax.prepare photos prepared --runner=beam --beam-options=...
  # 10,000 masks, so that all evaluations use the same ones:
  python -m migan_jax.prepare masks512 --masks=10000 --resolution=512

Images: OUTPUT becomes a folder of ArrayRecord shards, whose records are image files,
with an index, rejected.json (the files that cannot be used, and why) and sheet.png (a
contact sheet). Damaged, small, transparent, CMYK and animated files are left out. The
same command resumes an interrupted run. All machines must see SOURCE and OUTPUT; what
they write is byte for byte what one machine writes.

Masks: OUTPUT becomes a folder of images, white in the hole, with masks.json, which has
their settings and hashes. If a SOURCE is given too, they are written to OUTPUT/masks.
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from migan_jax.config import (
    available_cores,
    progress,
    run_verb,
    verb_parser,
    whole_number,
)
from migan_jax.data.masks import MaskHole
from migan_jax.errors import UserError, missing_extra, missing_package
from migan_jax.files import readable_size, refuse_address, refuse_undecodable

if TYPE_CHECKING:
    from migan_jax.data.shards import ShardWriter

# The names of data.mask_samplers.SAMPLERS, which is slow to import.
MASK_KINDS = (
    *("free_form", "brush", "thin_brush", "box"),
    *("half_box", "centre_box", "half_box_and_brush"),
    *("cellular_automaton", "short_strokes", "deepgin"),
    *("irregular", "irregular_10_20", "irregular_20_30"),
    *("irregular_30_40", "irregular_40_50"),
)


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("prepare", __doc__)
    parser.add_argument(
        "source", metavar="SOURCE", nargs="?", type=Path, help="a folder or a zip"
    )
    parser.add_argument(
        "output", metavar="OUTPUT", type=Path, help="a new folder, or one to resume"
    )
    _add_image_options(parser.add_argument_group("images"))
    _add_machine_options(parser.add_argument_group("images on several machines"))
    _add_mask_options(parser.add_argument_group("masks"))
    arguments = parser.parse_args()
    if arguments.source is None and arguments.masks is None:
        parser.error("give a SOURCE and an OUTPUT, or --masks")
    for flag in ("own_masks", "share", "join", "runner"):
        if arguments.source is None and getattr(arguments, flag):
            parser.error(f"--{flag.replace('_', '-')} needs images: give a SOURCE")
    if arguments.beam_options and not arguments.runner:
        parser.error("--beam-options needs --runner=beam")
    return arguments


def _add_image_options(images: argparse._ArgumentGroup) -> None:
    images.add_argument(
        "--size",
        metavar="N",
        type=whole_number(1),
        help="shrink larger images to a shorter side of N, as JPEG of quality 95 "
        "(default: store the files unchanged)",
    )
    images.add_argument(
        "--smallest-side",
        metavar="N",
        type=whole_number(1),
        default=64,
        help="leave out images with a shorter side below N (default: 64)",
    )
    images.add_argument(
        "--own-masks",
        metavar="DIR",
        type=Path,
        help="a folder or zip with one mask per image, of the same name",
    )
    images.add_argument(
        "--mask-hole",
        choices=get_args(MaskHole),
        default="white",
        help="the colour of the hole in these masks (default: white)",
    )
    images.add_argument(
        "--max-rejected",
        metavar="FRACTION",
        type=_fraction,
        default=0.1,
        help="stop if more than this fraction cannot be used (default: 0.1)",
    )
    images.add_argument(
        "--workers",
        metavar="N",
        type=whole_number(1, 1024),
        default=available_cores(),
        help="decoding threads (default: one per core; with Beam, its options decide)",
    )


def _add_machine_options(machines: argparse._ArgumentGroup) -> None:
    one = machines.add_mutually_exclusive_group()
    one.add_argument(
        "--share",
        metavar="I/N",
        type=_part,
        help="write every N-th shard; I is from 0 to N-1, such as SLURM_ARRAY_TASK_ID "
        "or JOB_COMPLETION_INDEX",
    )
    one.add_argument(
        "--join",
        action="store_true",
        help="when all shares are complete, write the index, the report and the sheet",
    )
    one.add_argument(
        "--runner", choices=["beam"], help="write the shards on Apache Beam, then join"
    )
    machines.add_argument(
        "--beam-options",
        metavar="OPTIONS",
        default="",
        help='Beam\'s own, such as "--runner=FlinkRunner --flink_master=HOST:8081"',
    )


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if match and int(match[1]) < int(match[2]):
        return int(match[1]), int(match[2])
    raise argparse.ArgumentTypeError(
        f"{text!r} is not I/N, with I from 0 to N-1, such as 0/16 or 15/16"
    )


def _add_mask_options(masks: argparse._ArgumentGroup) -> None:
    masks.add_argument(
        "--masks",
        metavar="N",
        type=whole_number(1, 1_000_000),  # file names have six digits
        help="draw N masks",
    )
    masks.add_argument(
        "--kind",
        choices=MASK_KINDS,
        default="free_form",
        help="free_form: MI-GAN's and Co-Mod-GAN's; brush: DeepFillv2's; thin_brush: "
        "the same but thinner; box, cellular_automaton and short_strokes: DeepGIN's, "
        "of which deepgin draws a random one; half_box, centre_box: a quarter of the "
        "image; half_box_and_brush: both, as Hukkelas et al.; irregular: rotated "
        "and dilated strokes, over 0 to 10, ..., 50 to 60 %% of the image equally "
        "often; irregular_10_20 to irregular_40_50: one of these (default: free_form)",
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


def _fraction(text: str) -> float:
    with contextlib.suppress(ValueError):  # not a number
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    for location in filter(None, (arguments.source, arguments.output)):
        refuse_address(location)
    refuse_undecodable(arguments.output)
    masks = arguments.output
    if arguments.source is not None:
        prepare_images(arguments)
        masks = arguments.output / "masks"
    if arguments.masks is not None and arguments.share is None:
        prepare_masks(arguments, masks)


def prepare_images(arguments: argparse.Namespace) -> None:
    """Write shards, the index, the report and the contact sheet."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from migan_jax.data.rejects import Rejects
    from migan_jax.data.shards import SHEET_FILE, ShardOptions, ShardWriter
    from migan_jax.data.sources import (
        REPORT_FILE,
        ArrayRecordSource,
        FileSource,
        has_shards,
    )

    if importlib.util.find_spec("array_record") is None:
        raise missing_package("array_record", "Preparing images")
    if arguments.runner and importlib.util.find_spec("apache_beam") is None:
        raise missing_extra("apache-beam", "beam", "--runner=beam")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of oddities in images
    if has_shards(arguments.source):
        raise UserError(f"{arguments.source} is already prepared: it contains shards.")
    _check_outside(arguments.source, arguments.output)
    source = FileSource(arguments.source, arguments.own_masks, arguments.mask_hole)
    output, total = arguments.output, len(source)
    options = ShardOptions(arguments.size, arguments.smallest_side)
    writer = ShardWriter(source, output, options, arguments.share)
    if writer.is_complete():
        print(f"{output} is already complete")
        return
    if not arguments.join:
        _check_space(output, writer.bytes_needed(), total)
    if arguments.runner:
        from migan_jax.data.beam import write_shards

        write_shards(writer, arguments.beam_options)
    if arguments.join or arguments.runner:
        _check_joinable(writer)
    report = None if arguments.share else output / REPORT_FILE
    rejects = Rejects(source, arguments.max_rejected, report)
    with logging_redirect_tqdm(), progress(writer.image_count, "image") as advance:
        writer.run(rejects, arguments.workers, advance)
    if arguments.share:
        print(
            f"wrote share {arguments.share[0]}/{arguments.share[1]} of {output}: "
            f"{writer.image_count - len(rejects.reasons):,} images; when all shares "
            f"are written, run the command with --join"
        )
        return
    prepared = ArrayRecordSource(output)
    left_out = len(rejects.reasons), len(source.non_images)
    print(
        f"wrote {output}: {len(prepared):,} images, "
        f"{readable_size(prepared.fingerprint.bytes)}; see {output / SHEET_FILE}\n"
        f"left out: {left_out[0]:,} images that cannot be used, {left_out[1]:,} other "
        f"files; listed in {output / REPORT_FILE}\n"
        f"fingerprint {prepared.fingerprint.digest}"
    )


def _check_joinable(writer: "ShardWriter") -> None:
    """Raise UserError if shards are missing, with the command that writes them."""
    missing = writer.missing()
    if not missing:
        return
    shares = [f"{index}/{count}" for index, count in writer.missing_shares()]
    words = [word for word in sys.argv[1:] if word != "--join"]
    which = ""
    if shares:
        words.append(f"--share={shares[0]}")
        others = f" and {len(shares) - 8:,} others" if len(shares) > 8 else ""
        plural = "s" if len(shares) > 1 else ""
        which = f", of the share{plural} {', '.join(shares[:8])}{others}"
    raise UserError(
        f"{writer.output} lacks {len(missing):,} of its shards{which}. Run: "
        f"{shlex.join(['python', '-m', 'migan_jax.prepare', *words])}"
        f"{', and so on' if len(shares) > 1 else ''}."
    )


def _check_outside(source: Path, output: Path) -> None:
    """Raise UserError if the output would become part of the source."""
    outer, inner = os.path.realpath(source), os.path.realpath(output)
    if os.path.commonpath([outer, inner]) == outer:
        raise UserError(f"{output} is inside {source}. Name a folder outside of it.")


def _check_space(output: Path, needed: int, count: int) -> None:
    folders = (output.absolute(), *output.absolute().parents)
    free = shutil.disk_usage(
        next(path for path in folders if os.path.exists(path))
    ).free
    print(
        f"{count:,} images: the missing shards need about {readable_size(needed)}, "
        f"{readable_size(free)} are free",
        flush=True,
    )
    if needed > free:
        raise UserError(
            f"{output} needs about {readable_size(needed)}, but only "
            f"{readable_size(free)} are free there. Choose another disk, or --size."
        )


def prepare_masks(arguments: argparse.Namespace, output: Path) -> None:
    """Write a set of masks, or check an existing one."""
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
            raise UserError(f"{output} is a set of other masks. Name another folder.")
        masks.check()
        print(f"{output} is already complete")
    else:
        with progress(arguments.masks, "mask") as advance:
            write_mask_set(output, **settings, advance=advance)
        masks = MaskSet(output)
    print(
        f"{output}: {len(masks):,} masks ({arguments.kind}, {arguments.resolution} px, "
        f"seed {arguments.seed}), white in the hole\nfingerprint {masks.digest}"
    )


if __name__ == "__main__":
    run_verb(main)
