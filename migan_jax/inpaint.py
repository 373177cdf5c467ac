"""Remove things from photos: fill the hole that a mask marks.

  # One photo and its mask, white where something should be removed:
  python -m migan_jax.inpaint --checkpoint=migan_512_places2.pt \\
      --image=photo.jpg --mask=mask.png --output=filled.jpg
  # A folder of photos, with masks of the same names (holiday/1.jpg, masks/1.png):
  python -m migan_jax.inpaint --checkpoint=migan_512_places2.pt \\
      --image=holiday --mask=masks --output=filled
  # The same mask for all of them, with the hole in black:
  python -m migan_jax.inpaint --checkpoint=migan_512_places2.pt \\
      --image=holiday --mask=logo.png --mask-hole=black --output=filled
  # Three completions to choose from, filled-1.jpg to filled-3.jpg, by a Co-Mod-GAN:
  python -m migan_jax.inpaint --checkpoint=comodgan_512_places2.pt \\
      --image=photo.jpg --mask=mask.png --output=filled.jpg --samples=3

Photos may have any size. The mask has the size of its photo as viewers show it. Known
pixels farther than --feather from the hole do not change (JPEG and lossy WebP are
recompressed with the same quality), nor do metadata, colour profile and transparency.
Embedded previews, which would show what was removed, are dropped.

Folders are searched recursively. Finished photos and samples are skipped, so the same
command resumes an interrupted batch; damaged results are redone. Files that cannot be
used are reported and skipped; the exit status is then 1.
"""

import argparse
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from migan_jax.config import run_verb, verb_parser, whole_number
from migan_jax.data.masks import MaskHole, polarity_warning
from migan_jax.errors import UserError
from migan_jax.files import refuse_address, write_whole
from migan_jax.geometry.ensemble import ensemble
from migan_jax.geometry.fill import DEFAULT_FEATHER, check_feather, dilate, fill_holes
from migan_jax.geometry.polyphase import Tiles, fill_polyphase
from migan_jax.weights.locations import find_checkpoint

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
        help="a released .pt, a .safetensors, or a training run's workdir",
    )
    parser.add_argument(
        "--image",
        metavar="FILE|DIR",
        type=Path,
        required=True,
        help="a photo (JPEG, PNG, WebP, TIFF, BMP, or HEIC with the extra heif), or a "
        "folder of them",
    )
    parser.add_argument(
        "--mask",
        metavar="FILE|DIR",
        type=Path,
        required=True,
        help="an image of the photo's size; a pixel is white from half of the mask's "
        "maximum up. If it has a transparent part, that is the hole. Or a folder with "
        "one mask per photo, with the same name apart from the extension",
    )
    parser.add_argument(
        "--output",
        metavar="FILE|DIR",
        type=Path,
        required=True,
        help="a file whose extension decides the format; for a folder of photos, a "
        "folder, where results have the photos' names",
    )
    parser.add_argument(
        "--mask-hole",
        choices=get_args(MaskHole),
        default="white",
        help="colour of the hole in the mask (default: white)",
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
        help="widen the hole by N pixels first: tight masks leave a rim of the removed "
        "object (default: 0)",
    )
    parser.add_argument(
        "--tiles",
        choices=get_args(Tiles),
        default="crops",
        help="what the network sees. crops: a square around each hole. polyphase, as "
        "DeepGIN's authors did: the whole photo as interleaved small pictures, such as "
        "every second row and column of one twice the network's size (default: crops)",
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="average the network's outputs for the square, its three rotations and "
        "its mirror image; takes five times as long",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=whole_number(0),
        default=0,
        help="another seed gives another completion, if the network has latents, as "
        "Co-Mod-GAN's; results that exist are kept, so choose another --output "
        "(default: 0)",
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=whole_number(1, 1000),
        default=1,
        help="complete each photo N times, with the seeds from --seed on. The results "
        "of --output=filled.png are filled-1.png, filled-2.png, ... (default: 1, "
        "filled.png)",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="also write OUTPUT.raw.png: the network's whole output for each crop or "
        "tile, before pasting",
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite existing results"
    )
    return parser.parse_args()


@dataclasses.dataclass(frozen=True)
class Job:
    """One photo to fill, once per seed."""

    image: Path
    mask: Path
    outputs: dict[int, Path]  # by seed


def name_outputs(output: Path, seeds: range) -> dict[int, Path]:
    """Return the output of each seed: filled.png, or filled-1.png, filled-2.png, ..."""
    if len(seeds) == 1:
        return {seeds.start: output}
    return {
        seed: output.with_stem(f"{output.stem}-{number}")
        for number, seed in enumerate(seeds, 1)
    }


def raw_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.raw.png")


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    arguments.checkpoint = find_checkpoint(arguments.checkpoint)
    arguments.seeds = range(arguments.seed, arguments.seed + arguments.samples)
    refuse_address(arguments.output)
    for flag, path in (("image", arguments.image), ("mask", arguments.mask)):
        refuse_address(path)
        if not os.path.exists(path):  # unlike Path.exists, never a PermissionError
            raise UserError(f"--{flag}: {path} does not exist.")
    if os.path.isdir(arguments.image):
        complete_folder(arguments)
    else:
        complete_file(arguments)


def load_model(arguments: argparse.Namespace) -> "Model":
    """Load the checkpoint; check that it has the completions that are requested."""
    import migan_jax

    model = migan_jax.load(arguments.checkpoint)
    if arguments.seeds != range(1) and not model.has_latents:
        raise UserError(
            f"{arguments.checkpoint} has one completion of a photo, like every "
            f"{model.family.title}: leave out --samples and --seed, or use a network "
            f"with latents, such as a Co-Mod-GAN."
        )
    return model


def complete_file(arguments: argparse.Namespace) -> None:
    """Fill one photo; the first error is raised."""
    from migan_jax.photos import output_format, report_memory_errors

    image, output = arguments.image, arguments.output
    if os.path.isdir(output):
        output = output / _output_name(Path(image.name))
    output_format(output)  # raises for formats that cannot be written
    outputs = name_outputs(output, arguments.seeds)
    job = Job(image, make_mask_finder(arguments.mask)(image.stem), outputs)
    raw = map(raw_path, outputs.values()) if arguments.raw else ()
    for path in (*outputs.values(), *raw):
        if _real_path(path) in (_real_path(job.image), _real_path(job.mask)):
            raise UserError(f"{path} is an input: choose another --output.")
        if os.path.lexists(path) and not arguments.force:
            raise UserError(f"{path} exists: choose another name, or add --force.")
    photo, hole = read_pair(job, arguments)
    warn = warn_once(logger.warning)  # not once per sample
    with report_memory_errors(image, photo.size):
        model = load_model(arguments)
        for seed, path in job.outputs.items():
            complete(job, seed, photo, hole, model, arguments, warn)
            print(f"wrote {path}", flush=True)


def complete_folder(arguments: argparse.Namespace) -> None:
    """Fill all photos of a folder; report failures and raise at the end."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from migan_jax.photos import report_memory_errors

    jobs, failures = list_jobs(
        arguments.image, arguments.mask, arguments.output, arguments.seeds
    )
    for message in failures:
        logger.warning(message)
    todo = []
    for job in jobs:
        missing = {
            seed: output
            for seed, output in job.outputs.items()
            if arguments.force
            or not is_done(output)
            or (arguments.raw and not is_done(raw_path(output)))
        }
        if missing:
            todo.append(dataclasses.replace(job, outputs=missing))
    if todo:
        model = load_model(arguments)
        check_feather(arguments.feather, model.network.resolution)
    completed, warn = 0, warn_once(logger.warning)
    with logging_redirect_tqdm():
        for job in (bar := tqdm(todo, unit="photo", disable=None)):
            try:
                photo, hole = read_pair(job, arguments)
                with report_memory_errors(job.image, photo.size):
                    for seed, output in job.outputs.items():
                        complete(job, seed, photo, hole, model, arguments, warn)
                        if bar.disable:  # not a terminal
                            print(f"wrote {output}", flush=True)
            except UserError as error:
                failures.append(str(error))
                logger.warning(error)
                continue
            completed += 1
    print(
        f"{completed} completed, {len(jobs) - len(todo)} already existed, "
        f"{len(failures)} failed; results are in {arguments.output}"
    )
    if failures:
        raise UserError(f"photos that failed, see above: {len(failures)}.")


def is_done(output: Path) -> bool:
    """Return whether a result exists and is not damaged; warn if it is."""
    from migan_jax.photos import is_intact

    if not os.path.isfile(output):
        return False
    if is_intact(output) or not os.access(output, os.R_OK):
        return True
    logger.warning("%s is damaged or incomplete: writing it again.", output)
    return False


def warn_once(warn: Callable[[str], object]) -> Callable[[str], object]:
    """Return a callback that passes only its first message on to `warn`."""
    warned = False

    def warn_first(message: str) -> None:
        nonlocal warned
        if not warned:
            warn(message)
        warned = True

    return warn_first


# Photos, masks and outputs of a folder.


def list_jobs(
    images: Path, masks: Path, output: Path, seeds: range
) -> tuple[list[Job], list[str]]:
    """Return a folder's photos with masks and outputs, and messages on the others."""
    if os.path.lexists(output) and not os.path.isdir(output):
        raise UserError(f"--output={output} is a file: name a folder for the results.")
    for flag, folder in (("image", images), ("mask", masks)):
        if _real_path(output) == _real_path(folder):
            raise UserError(f"--output and --{flag} are the same folder.")
    if _real_path(masks) == _real_path(images):
        raise UserError("--mask and --image are the same folder.")
    find_mask = make_mask_finder(masks)
    # Inside the photos' folder, skip the masks and earlier results.
    skipped = {_real_path(masks), _real_path(output)} - {*_real_path(images).parents}
    paths = [
        path
        for path in _list_images(images)
        if not skipped & {_real_path(path), *_real_path(path).parents}
    ]
    inputs = {_real_path(path) for path in (*paths, masks)}
    jobs: dict[Path, Job] = {}
    failures = []
    for path in paths:
        name = path.relative_to(images)
        target = output / _output_name(name)
        try:
            outputs = name_outputs(target, seeds)
            job = Job(path, find_mask(str(name.with_suffix(""))), outputs)
            if target in jobs:
                raise UserError(f"{jobs[target].image} has the same output, {target}.")
            for result in outputs.values():
                raw = raw_path(result)
                if {_real_path(result), _real_path(raw)} & inputs:
                    raise UserError(f"{result} or {raw.name} is an input.")
                if os.path.isdir(result):
                    raise UserError(f"{result} is a folder: move it.")
            jobs[target] = job
        except UserError as error:
            failures.append(f"{path}: {error}")
    if not paths:
        raise UserError(f"--image={images} holds no photos.")
    return list(jobs.values()), failures


def _real_path(path: Path) -> Path:
    """Resolve links and dots; unlike Path.resolve, circular links raise no error."""
    return Path(os.path.realpath(path))


def _output_name(name: Path) -> Path:
    """Return the photo's name, with .png for formats that cannot be written."""
    from migan_jax.photos import WRITABLE

    return name if name.suffix.lower() in WRITABLE else name.with_suffix(".png")


def _list_images(folder: Path) -> list[Path]:
    """List files with an image's extension, recursively, without hidden ones."""
    from migan_jax.data.image_files import READABLE_SUFFIXES

    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in READABLE_SUFFIXES
        and not os.path.isdir(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def make_mask_finder(masks: Path) -> Callable[[str], Path]:
    """Return a function from a photo's name, without extension, to its mask."""
    if not os.path.isdir(masks):
        return lambda name: masks
    found: dict[str, list[Path]] = {}
    for path in _list_images(masks):
        found.setdefault(str(path.relative_to(masks).with_suffix("")), []).append(path)

    def find(name: str) -> Path:
        paths = found.get(name, [])
        if not paths:
            raise UserError(f"the photo has no mask, {masks / name}.* does not exist.")
        if len(paths) > 1:
            raise UserError(f"the photo has two masks, {paths[0]} and {paths[1]}.")
        return paths[0]

    return find


# One photo.


def read_pair(job: Job, arguments: argparse.Namespace) -> tuple["Photo", "np.ndarray"]:
    """Read a photo and its hole; check their sizes and the output's format."""
    from migan_jax.photos import check_writable, read_mask, read_photo

    mask_hole: MaskHole = arguments.mask_hole
    photo = read_photo(job.image)
    if _real_path(job.mask) == _real_path(job.image):
        photo = photo.without_alpha()  # its transparent part is the hole
    for output in job.outputs.values():
        check_writable(photo, output)
    hole, from_alpha = read_mask(job.mask, mask_hole)
    if hole.shape != photo.pixels.shape[:2]:
        (width, height), (rows, columns) = photo.size, hole.shape
        rotated = " as viewers rotate it" if hole.shape == (width, height) else ""
        raise UserError(
            f"{job.mask} is {columns}x{rows} pixels, but {job.image} is "
            f"{width}x{height}{rotated}: they must have the same size."
        )
    other = "black" if mask_hole == "white" else "white"
    hint = "make the other part transparent" if from_alpha else f"--mask-hole={other}"
    if warning := polarity_warning(hole, hint):
        logger.warning("%s: %s", job.mask, warning)
    if not hole.any():
        logger.warning("%s has no hole: the photo does not change.", job.mask)
    return photo, hole


def complete(
    job: Job,
    seed: int,
    photo: "Photo",
    hole: "np.ndarray",
    model: "Model",
    arguments: argparse.Namespace,
    warn: Callable[[str], object],
) -> None:
    """Fill the hole and write a seed's results, the completed photo last."""
    import numpy as np
    from PIL import Image

    from migan_jax.photos import output_format, write_photo

    output = job.outputs[seed]
    raw = np.empty_like(photo.rgb) if arguments.raw else None
    polyphase = arguments.tiles == "polyphase"
    fill, unit = (fill_polyphase, "tile") if polyphase else (fill_holes, "crop")
    predict = functools.partial(model.predict, seed=seed)
    result = fill(
        photo.rgb,
        dilate(hole, arguments.grow),
        ensemble(predict) if arguments.ensemble else predict,
        model.network.resolution,
        arguments.feather,
        raw=raw,
        track=lambda squares: _progress(squares, output.name, unit),
        warn=lambda message: warn(f"{job.mask}: {message}"),
    )
    if raw is not None:
        image = Image.fromarray(raw)
        write_whole(raw_path(output), lambda part: image.save(part, format="PNG"))
    if not hole.any() and output_format(output) == photo.format:
        content = job.image.read_bytes()
        write_whole(output, lambda part: part.write_bytes(content))
    else:
        write_photo(photo.with_rgb(result), output)


def _progress(squares: list, name: str, unit: str) -> Iterable:
    """Show a progress bar if the photo takes several squares."""
    from tqdm import tqdm

    hidden = True if len(squares) == 1 else None  # None: on a terminal only
    return tqdm(squares, desc=name, unit=unit, leave=False, disable=hidden)


if __name__ == "__main__":
    run_verb(main)
