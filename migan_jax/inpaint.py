"""Remove things from photos: complete the hole that a mask marks.

  # One photo and its mask, white where something is to be removed:
  python -m migan_jax.inpaint --checkpoint=migan_512_places2.pt \\
      --image=photo.jpg --mask=mask.png --output=filled.jpg
  # A folder of photos, each with the mask of its name (holiday/1.jpg, masks/1.png):
  python -m migan_jax.inpaint --checkpoint=migan_512_places2.pt \\
      --image=holiday --mask=masks --output=filled
  # The same mask for all of them, drawn the other way round (black is the hole):
  python -m migan_jax.inpaint --checkpoint=migan_512_places2.pt \\
      --image=holiday --mask=logo.png --mask-hole=black --output=filled

Photos have any size; the mask has the size of its photo as a viewer shows it. Known
pixels farther than --feather from the hole stay as they are (JPEG and lossy WebP are
compressed again, alike), and so do metadata, colour profile and transparency. Previews
inside a file, which would show what was removed, are dropped.

Folders are searched with their subfolders. What is done already is skipped, so that the
same command continues an interrupted batch; results that a power cut has damaged are
made again. Files that cannot be used are reported and left out, and then the exit
status is 1.
"""

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from migan_jax.config import run_verb, verb_parser, whole_number
from migan_jax.data.masks import MaskHole, doubt_about
from migan_jax.errors import UserError
from migan_jax.files import refuse_address, write_whole
from migan_jax.geometry.crops import Box
from migan_jax.geometry.filling import (
    DEFAULT_FEATHER,
    check_feather,
    fill_holes,
    grown,
)
from migan_jax.weights.locations import check_checkpoint

if TYPE_CHECKING:
    import numpy as np

    from migan_jax.inpainting import Model
    from migan_jax.photos import Photo

logger = logging.getLogger(__name__)


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("inpaint", __doc__)
    parser.add_argument(
        "--checkpoint",
        metavar="CKPT",
        type=Path,
        required=True,
        help="a released .pt, a .safetensors, or a run's workdir",
    )
    parser.add_argument(
        "--image",
        metavar="FILE|DIR",
        type=Path,
        required=True,
        help="a photo (JPEG, PNG, WebP, TIFF, BMP, and HEIC with the extra heif), or a "
        "folder of them",
    )
    parser.add_argument(
        "--mask",
        metavar="FILE|DIR",
        type=Path,
        required=True,
        help="an image of the photo's size: from half of its largest value up a pixel "
        "is white. Where it has a transparent part, that is the hole. Or a folder with "
        "one mask per photo, of the same name but for the ending",
    )
    parser.add_argument(
        "--output",
        metavar="FILE|DIR",
        type=Path,
        required=True,
        help="a file whose ending decides the format, or for a folder of photos a "
        "folder, where results have the photos' names",
    )
    parser.add_argument(
        "--mask-hole",
        choices=get_args(MaskHole),
        default="white",
        help="what the mask shows the hole in (default: white)",
    )
    parser.add_argument(
        "--feather",
        metavar="N",
        type=int,
        default=DEFAULT_FEATHER,
        help="blend over up to N pixels around the hole, at most an eighth of the "
        f"network's size; 0 changes no known pixel (default: {DEFAULT_FEATHER})",
    )
    parser.add_argument(
        "--grow",
        metavar="N",
        type=whole_number(0),
        default=0,
        help="widen the hole by N pixels first: masks drawn tight leave a rim of what "
        "was to go (default: 0)",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="also write OUTPUT.raw.png: the network's own output over each crop, "
        "before it is pasted into the hole",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="overwrite results that exist",
    )
    return parser.parse_args()


@dataclasses.dataclass(frozen=True)
class Job:
    """One photo to complete."""

    image: Path
    mask: Path
    output: Path

    @property
    def raw(self) -> Path:
        return self.output.with_name(f"{self.output.name}.raw.png")


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    check_checkpoint(arguments.checkpoint)
    refuse_address(arguments.output)
    for flag, path in (("image", arguments.image), ("mask", arguments.mask)):
        refuse_address(path)
        if not os.path.exists(path):  # unlike Path.exists, False for forbidden folders
            raise UserError(f"--{flag}: there is nothing at {path}.")
    if os.path.isdir(arguments.image):
        complete_folder(arguments)
    else:
        complete_file(arguments)


def complete_file(arguments: argparse.Namespace) -> None:
    """One photo: the first thing that is wrong ends it."""
    import migan_jax
    from migan_jax.photos import check_ending, memory_for

    image, output = arguments.image, arguments.output
    if os.path.isdir(output):
        output = output / _output_name(Path(image.name))
    check_ending(output)
    job = Job(image, masks_by_name(arguments.mask)(image.stem), output)
    for path in (job.output, job.raw) if arguments.raw else (job.output,):
        if _real(path) in (_real(job.image), _real(job.mask)):
            raise UserError(f"{path} would be overwritten: choose another --output.")
        if os.path.lexists(path) and not arguments.force:
            raise UserError(f"{path} exists: choose another name, or add --force.")
    photo, hole = read_pair(job, arguments)
    with memory_for(image, photo.size):
        complete(job, photo, hole, migan_jax.load(arguments.checkpoint), arguments)
    print(f"wrote {output}")


def complete_folder(arguments: argparse.Namespace) -> None:
    """All photos that can be: what cannot is said, and counted at the end."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    import migan_jax
    from migan_jax.photos import memory_for

    jobs, failures = list_jobs(arguments.image, arguments.mask, arguments.output)
    for sentence in failures:
        logger.warning(sentence)
    todo = [
        job
        for job in jobs
        if arguments.force
        or not is_there(job.output)
        or (arguments.raw and not is_there(job.raw))
    ]
    if todo:
        model = migan_jax.load(arguments.checkpoint)
        check_feather(arguments.feather, model.network.resolution)
    completed, tell = 0, once(logger.warning)
    with logging_redirect_tqdm():
        for job in (bar := tqdm(todo, unit="photo", disable=None)):
            try:
                photo, hole = read_pair(job, arguments)
                with memory_for(job.image, photo.size):
                    complete(job, photo, hole, model, arguments, tell)
            except UserError as error:
                failures.append(str(error))
                logger.warning(error)
                continue
            completed += 1
            if bar.disable:  # not a terminal
                print(f"wrote {job.output}", flush=True)
    print(
        f"{completed} completed, {len(jobs) - len(todo)} there already, "
        f"{len(failures)} left out; results are in {arguments.output}"
    )
    if failures:
        raise UserError(f"photos left out, as said above: {len(failures)}.")


def is_there(output: Path) -> bool:
    """Whether a result needs not be made: it is there, and whole."""
    from migan_jax.photos import is_whole

    if not os.path.isfile(output):
        return False
    if is_whole(output) or not os.access(output, os.R_OK):
        return True
    logger.warning("%s is damaged or incomplete, and is made again.", output)
    return False


def once(tell: Callable[[str], object]) -> Callable[[str], object]:
    """What passes the first sentence on: those of a batch are alike."""
    told: list[str] = []

    def first(sentence: str) -> None:
        if not told:
            tell(sentence)
        told.append(sentence)

    return first


# What belongs together.


def list_jobs(images: Path, masks: Path, output: Path) -> tuple[list[Job], list[str]]:
    """A folder's photos with their masks and outputs, and what is wrong with others."""
    if os.path.lexists(output) and not os.path.isdir(output):
        raise UserError(f"--output={output} is a file: name a folder for the results.")
    for flag, folder in (("image", images), ("mask", masks)):
        if _real(output) == _real(folder):
            raise UserError(f"--output is the folder of --{flag}: choose another one.")
    if _real(masks) == _real(images):
        raise UserError("--mask is the folder of --image: put the masks in their own.")
    mask_of = masks_by_name(masks)
    # Folders inside that of the photos, and the one mask, hold no photos.
    others = {_real(masks), _real(output)} - {*_real(images).parents}
    paths = [
        path
        for path in _images_in(images)
        if not others & {_real(path), *_real(path).parents}
    ]
    inputs = {_real(path) for path in (*paths, masks)}
    jobs: dict[Path, Job] = {}
    failures = []
    for path in paths:
        name = path.relative_to(images)
        target = output / _output_name(name)
        try:
            job = Job(path, mask_of(str(name.with_suffix(""))), target)
            if target in jobs:
                raise UserError(f"{target} is also that of {jobs[target].image}.")
            if {_real(target), _real(job.raw)} & inputs:
                raise UserError(f"{target} or {job.raw.name} is itself an input.")
            if os.path.isdir(target):
                raise UserError(f"{target} is a folder: move it, or name another one.")
            jobs[target] = job
        except UserError as error:
            failures.append(f"{path} is left out: {error}")
    if not paths:
        raise UserError(f"--image={images} holds no photos.")
    return list(jobs.values()), failures


def _real(path: Path) -> Path:
    """Without links and dots; unlike Path.resolve, it stands links in circles."""
    return Path(os.path.realpath(path))


def _output_name(name: Path) -> Path:
    """A photo's own name; PNG for formats that are only read."""
    from migan_jax.photos import WRITABLE

    return name if name.suffix.lower() in WRITABLE else name.with_suffix(".png")


def _images_in(folder: Path) -> list[Path]:
    """Files that look like images, in subfolders too; hidden ones are left out."""
    from migan_jax.data.decoding import READABLE_ENDINGS

    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in READABLE_ENDINGS
        and not os.path.isdir(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def masks_by_name(masks: Path) -> Callable[[str], Path]:
    """What finds a photo's mask: the only one, or a folder's of the same name."""
    if not os.path.isdir(masks):
        return lambda name: masks
    found: dict[str, list[Path]] = {}
    for path in _images_in(masks):
        found.setdefault(str(path.relative_to(masks).with_suffix("")), []).append(path)

    def find(name: str) -> Path:
        paths = found.get(name, [])
        if not paths:
            raise UserError(f"there is no mask {masks / name}.* for it.")
        if len(paths) > 1:
            raise UserError(f"{paths[0]} and {paths[1]} are both its mask.")
        return paths[0]

    return find


# One photo.


def read_pair(job: Job, arguments: argparse.Namespace) -> tuple["Photo", "np.ndarray"]:
    """A photo and its hole, when they fit each other and the output's format."""
    mask_hole: MaskHole = arguments.mask_hole
    from migan_jax.photos import check_writable, read_mask, read_photo

    photo = read_photo(job.image)
    if _real(job.mask) == _real(job.image):
        photo = photo.opaque()  # its transparent part is what becomes visible
    check_writable(photo, job.output)
    hole, from_alpha = read_mask(job.mask, mask_hole)
    if hole.shape != photo.pixels.shape[:2]:
        (width, height), (rows, columns) = photo.size, hole.shape
        turned = " as viewers turn it" if (rows, columns) == (width, height) else ""
        raise UserError(
            f"{job.mask} is {columns}x{rows} pixels, but {job.image} is "
            f"{width}x{height}{turned}: a mask must have the size of its photo."
        )
    other = "black" if mask_hole == "white" else "white"
    remedy = "make the other part transparent" if from_alpha else f"--mask-hole={other}"
    if doubt := doubt_about(hole, remedy):
        logger.warning("%s: %s", job.mask, doubt)
    return photo, hole


def complete(
    job: Job,
    photo: "Photo",
    hole: "np.ndarray",
    model: "Model",
    arguments: argparse.Namespace,
    tell: Callable[[str], object] = logger.warning,
) -> None:
    """Fill the hole and write the results, of which the photo's is the last."""
    import numpy as np
    from PIL import Image

    from migan_jax.photos import check_ending, write_photo

    raw = np.empty_like(photo.rgb) if arguments.raw else None
    result = fill_holes(
        photo.rgb,
        grown(hole, arguments.grow),
        model.predict,
        model.network.resolution,
        arguments.feather,
        raw=raw,
        track=lambda boxes: _progress(boxes, job.image.name),
        tell=lambda sentence: tell(f"{job.mask}: {sentence}"),
    )
    if raw is not None:
        picture = Image.fromarray(raw)
        write_whole(job.raw, lambda part: picture.save(part, format="PNG"))
    if not hole.any() and check_ending(job.output) == photo.format:
        logger.warning("%s has no hole: the photo is copied as it is.", job.mask)
        content = job.image.read_bytes()
        write_whole(job.output, lambda part: part.write_bytes(content))
    else:
        write_photo(photo.with_rgb(result), job.output)


def _progress(boxes: list[Box], name: str) -> Iterable[Box]:
    """A bar for a photo that takes several crops."""
    from tqdm import tqdm

    hidden = True if len(boxes) == 1 else None  # None: on a terminal only
    return tqdm(boxes, desc=name, unit="crop", leave=False, disable=hidden)


if __name__ == "__main__":
    run_verb(main)
