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
pixels farther than --feather from the hole stay as they are, and so do metadata, colour
profile, transparency and JPEG quality. A preview stored inside the file is dropped.

Folders are searched with their subfolders. What is done already is skipped, so that the
same command continues an interrupted batch. Files that cannot be used are reported and
left out, and then the exit status is 1.
"""

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from migan_jax.config import run_verb, verb_parser
from migan_jax.data.masks import MaskHole, doubt_about
from migan_jax.errors import UserError
from migan_jax.geometry.crops import Box
from migan_jax.geometry.filling import DEFAULT_FEATHER, LARGEST_FEATHER, fill_holes

if TYPE_CHECKING:
    from migan_jax.inpainting import Model

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
        help="a photo (JPEG, PNG, WebP, TIFF, BMP, ...), or a folder of them",
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
        choices=range(LARGEST_FEATHER + 1),
        default=DEFAULT_FEATHER,
        help="blend over up to N pixels around the hole, at most "
        f"{LARGEST_FEATHER}; 0 changes no known pixel (default: {DEFAULT_FEATHER})",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="also write NAME.raw.png: the network's own output over each crop, before "
        "it is pasted into the hole",
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
        return self.output.with_name(f"{self.output.stem}.raw.png")


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    for flag, path in (("image", arguments.image), ("mask", arguments.mask)):
        if not os.path.exists(path):  # unlike Path.exists, False for forbidden folders
            raise UserError(f"--{flag}: there is nothing at {path}.")
    if arguments.image.is_dir():
        complete_folder(arguments)
    else:
        complete_file(arguments)


def complete_file(arguments: argparse.Namespace) -> None:
    """One photo: the first thing that is wrong ends it."""
    import migan_jax
    from migan_jax.photos import check_ending

    image, output = arguments.image, arguments.output
    if output.is_dir():
        output = output / image.name
    check_ending(output)
    job = Job(image, masks_by_name(arguments.mask)(image.stem), output)
    if os.path.exists(output):
        if any(output.samefile(source) for source in (job.image, job.mask)):
            raise UserError(f"--output={output} is an input: choose another name.")
        if not arguments.force:
            raise UserError(f"{output} exists: choose another name, or add --force.")
    complete(job, migan_jax.load(arguments.checkpoint), arguments)
    print(f"wrote {output}")


def complete_folder(arguments: argparse.Namespace) -> None:
    """All photos that can be; what cannot is said, and once more at the end."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    import migan_jax

    jobs, failures = list_jobs(arguments.image, arguments.mask, arguments.output)
    for sentence in failures:
        logger.warning(sentence)
    todo = [job for job in jobs if arguments.force or not os.path.exists(job.output)]
    model = migan_jax.load(arguments.checkpoint) if todo else None
    completed = 0
    with logging_redirect_tqdm():
        for job in tqdm(todo, unit="photo", disable=None):
            try:
                complete(job, model, arguments)
            except UserError as error:
                failures.append(str(error))
                logger.warning(error)
                continue
            completed += 1
            if not sys.stderr.isatty():  # there is no bar
                print(f"wrote {job.output}", flush=True)
    print(
        f"{completed} completed, {len(jobs) - len(todo)} there already, "
        f"{len(failures)} left out; results are in {arguments.output}"
    )
    if failures:
        raise UserError(f"photos left out, as said above: {len(failures)}.")


# What belongs together.


def list_jobs(images: Path, masks: Path, output: Path) -> tuple[list[Job], list[str]]:
    """A folder's photos with their masks and outputs, and what is wrong with others."""
    from migan_jax.photos import WRITABLE

    if os.path.exists(output) and not output.is_dir():
        raise UserError(f"--output={output} is a file: name a folder for the results.")
    for flag, folder in (("image", images), ("mask", masks)):
        if os.path.exists(output) and output.samefile(folder):
            raise UserError(f"--output is the folder of --{flag}: choose another one.")
    if masks.samefile(images):
        raise UserError("--mask is the folder of --image: put the masks in their own.")
    mask_of = masks_by_name(masks)
    jobs, failures = {}, []
    others = {masks.absolute(), output.absolute()}
    for path in _images_in(images):
        if others & {*path.absolute().parents}:
            continue
        name = path.relative_to(images)
        ending = name.suffix if name.suffix.lower() in WRITABLE else ".png"
        target = output / name.with_suffix(ending)
        try:
            job = Job(path, mask_of(str(name.with_suffix(""))), target)
        except UserError as error:
            failures.append(f"{path}: {error}")
            continue
        if target in jobs:
            first = jobs[target].image
            failures.append(
                f"{path} and {first} would both become {target}: rename it."
            )
            continue
        jobs[target] = job
    if not jobs and not failures:
        raise UserError(f"--image={images} holds no photos.")
    return list(jobs.values()), failures


def _images_in(folder: Path) -> list[Path]:
    """Files that look like images, in subfolders too; hidden ones are left out."""
    from migan_jax.photos import READABLE_ENDINGS

    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in READABLE_ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def masks_by_name(masks: Path) -> Callable[[str], Path]:
    """What finds a photo's mask: the only one, or a folder's of the same name."""
    if not masks.is_dir():
        return lambda name: masks
    found: dict[str, list[Path]] = {}
    for path in _images_in(masks):
        found.setdefault(str(path.relative_to(masks).with_suffix("")), []).append(path)

    def find(name: str) -> Path:
        paths = found.get(name, [])
        if not paths:
            raise UserError(f"there is no mask {masks / name}.*, so it is left out.")
        if len(paths) > 1:
            raise UserError(f"{paths[0]} and {paths[1]} are both its mask: remove one.")
        return paths[0]

    return find


# One photo.


def complete(job: Job, model: "Model", arguments: argparse.Namespace) -> None:
    """Read, fill and write one photo; its result is the last thing to appear."""
    import numpy as np
    from PIL import Image

    from migan_jax.photos import check_writable, read_mask, read_photo, write_photo
    from migan_jax.weights.reading import write_whole

    photo = read_photo(job.image)
    if os.path.realpath(job.mask) == os.path.realpath(job.image):
        photo = photo.opaque()  # its transparent part is what becomes visible
    check_writable(photo, job.output)
    hole, from_alpha = read_mask(job.mask, arguments.mask_hole)
    _check_size(job, photo.pixels.shape[:2], hole.shape)
    other = "black" if arguments.mask_hole == "white" else "white"
    remedy = "make the other part transparent" if from_alpha else f"--mask-hole={other}"
    if doubt := doubt_about(hole, remedy):
        logger.warning("%s: %s", job.mask, doubt)
    rgb = photo.rgb
    raw = np.empty_like(rgb) if arguments.raw else None
    result = fill_holes(
        rgb,
        hole,
        model.complete,
        model.network.resolution,
        arguments.feather,
        raw=raw,
        track=lambda boxes: _progress(boxes, job.image.name),
    )
    if raw is not None:
        picture = Image.fromarray(raw)
        write_whole(job.raw, lambda part: picture.save(part, format="PNG"))
    if not hole.any() and job.image.suffix.lower() == job.output.suffix.lower():
        logger.warning("%s has no hole: the photo is copied as it is.", job.mask)
        content = job.image.read_bytes()
        write_whole(job.output, lambda part: part.write_bytes(content))
    else:
        write_photo(photo.with_rgb(result), job.output)


def _check_size(job: Job, photo: tuple[int, int], mask: tuple[int, int]) -> None:
    if photo == mask:
        return
    turned = mask == photo[::-1]
    raise UserError(
        f"{job.mask} is {mask[1]}x{mask[0]} pixels, but {job.image} is "
        f"{photo[1]}x{photo[0]}{' as viewers turn it' if turned else ''}: a mask must "
        f"have the size of its photo."
    )


def _progress(boxes: list[Box], name: str) -> Iterable[Box]:
    """A bar for a photo that takes several crops."""
    from tqdm import tqdm

    hidden = True if len(boxes) == 1 else None  # None: on a terminal only
    return tqdm(boxes, desc=name, unit="crop", leave=False, disable=hidden)


if __name__ == "__main__":
    run_verb(main)
