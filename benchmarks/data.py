"""How fast pictures and masks come: loading, drawn masks, drawn scenes.

  python benchmarks/data.py --threads=2 --json=out/data.json

Pictures: JPEG photos, made here or `--photos=FOLDER` (RGB and upright), from each of
which a random square is resized. All rows take the same squares in the same order.
  Pillow, one core    open, convert, resize, to an array: a plain loop
  Pillow              the same in as many threads as there are cores
  Pillow, draft       likewise, decoded smaller where the pipeline does that
  pipeline, threads   `Batches` of 32 without workers
  pipeline, workers   `Batches` of 32 with two workers for each core
  prepared, ...       likewise, from shards of photos that have been shrunk already
Rates are those of `--batches` batches after the first ones; `first s` is what the first
takes, with the start of workers. The ratios are of images per second and core.

Masks and scenes: one by one on one core; masks also 32 at once on the device, which
JAX_PLATFORMS chooses. `paper's ms`: one by the paper's sampler, on another machine.
"""

import argparse
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

from migan_jax.data.examples import REDUCING_GAP, Crop, decode_crop
from migan_jax.data.preparing import Options, Preparation
from migan_jax.data.rejects import Rejects
from migan_jax.data.scenes import FAMILIES, draw_scene
from migan_jax.data.sources import ArrayRecordSource, FileSource, SceneSource

BATCH = 32
# Photos that are made: large enough for JPEG's own shrinking to squares of 256, and
# about as hard to decode as photos are.
PHOTOS, WIDTH, HEIGHT, QUALITY = 128, 1280, 1024, 90
PAPERS_MS = {("free_form", 256): 1.8, ("free_form", 512): 2.7}
MASKS, SCENES, SCENE_SIZES = 64, 8, (64, 128, 256)


class Square(NamedTuple):
    """What is made of a photo: this box of it, at this size."""

    place: int  # in the pipeline's order
    path: Path
    box: tuple[int, int, int, int]
    size: int


def main() -> None:
    parser = benchmark_parser(__doc__, repeats=2)
    parser.add_argument("--photos", type=Path, help="a folder of JPEG files")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batches", type=int, default=8, help="that are timed")
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    pictures, masks = [], []
    with tempfile.TemporaryDirectory() as name:
        photos = arguments.photos or make_photos(Path(name, "photos"))
        for size in arguments.sizes:
            pictures += picture_rows(photos, Path(name, str(size)), size, arguments)
            masks += mask_rows(size, arguments.repeats)
    tables = pictures, masks, scene_rows(arguments)
    for table in tables:
        print_table(table)
        print()
    save_json(arguments.json, list(itertools.chain(*tables)))


def make_photos(folder: Path) -> Path:
    """Noise that falls off with its frequency, as what photos show does."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = np.inf
    waves = np.fft.rfft2(rng.standard_normal((3, HEIGHT, WIDTH))) * frequency**-1.2
    noise = np.moveaxis(np.fft.irfft2(waves, (HEIGHT, WIDTH)), 0, -1)
    pixels = np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)
    for number in range(PHOTOS):
        moved = np.roll(pixels, rng.integers(0, (HEIGHT, WIDTH)), (0, 1))
        Image.fromarray(moved).save(folder / f"{number}.jpg", quality=QUALITY)
    return folder


def picture_rows(
    photos: Path, folder: Path, size: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Pillow's ways and ours to load the same squares."""
    cores, batches = arguments.threads, arguments.batches
    skip = 2 * cores + 1  # batches, until no worker has a lead from the start
    loader, shards = make_loaders(photos, folder, size, cores)
    first, end = skip * BATCH, (skip + batches) * BATCH
    squares = [square_at(place, loader) for place in range(first, end)]
    check(loader, shards, squares)
    by_pillow = functools.partial(time_pillow, squares)
    by_us = functools.partial(time_pipeline, skip=skip, batches=batches)
    ways = {
        "Pillow, one core": (1, lambda: by_pillow(load, 1)),
        "Pillow": (cores, lambda: by_pillow(load, cores)),
        "Pillow, draft": (cores, lambda: by_pillow(load_smaller, cores)),
        "pipeline, threads": (cores, lambda: by_us(loader, 0)),
        "pipeline, workers": (cores, lambda: by_us(loader, 2 * cores)),
        "prepared, threads": (cores, lambda: by_us(shards, 0)),
        "prepared, workers": (cores, lambda: by_us(shards, 2 * cores)),
    }
    speeds = {name: [] for name in ways}
    for name in arguments.repeats * list(ways):
        speeds[name].append(ways[name][1]())
    rows = []
    for name, (used, _) in ways.items():
        rates, firsts = zip(*speeds[name], strict=True)
        row = {"pictures": name, "size": size, "images/s": max(rates)}
        rows.append(row | {"per core": max(rates) / used, "first s": min(firsts)})
    for row, other in itertools.product(rows, rows[:3]):
        row[f"/ {other['pictures']}"] = row["per core"] / other["per core"]
    return rows


def make_loaders(photos: Path, folder: Path, size: int, threads: int) -> list:
    """Of the photos, and of the same prepared in a folder."""
    from migan_jax.data.pipeline import Loader

    source = FileSource(photos)
    preparation = Preparation(source, folder, Options(size, smallest_side=1))
    preparation.run(Rejects(source, 0, None), threads, lambda count: None)
    sources = source, ArrayRecordSource(folder)
    return [Loader(source, Crop(size), 0, BATCH, range(BATCH)) for source in sources]


def square_at(place: int, loader) -> Square:
    """What the pipeline shows at a place."""
    path = loader.source.files.location / loader.source.name(loader.record_at(place))
    rng = np.random.default_rng((loader.seed, place))
    with Image.open(path) as image:
        region = loader.crop.region(*image.size, rng)
    return Square(place, path, region.corners, loader.crop.resolution)


def load(square: Square) -> np.ndarray:
    """What anyone would write with Pillow."""
    with Image.open(square.path) as image:
        rgb, kernel = image.convert("RGB"), Image.Resampling.BICUBIC
        return np.asarray(rgb.resize((square.size,) * 2, kernel, square.box))


def load_smaller(square: Square) -> np.ndarray:
    """What someone would write who knows Pillow well."""
    with Image.open(square.path) as image:
        width, height = image.size
        scale = REDUCING_GAP * square.size / (square.box[2] - square.box[0])
        if scale < 1:
            image.draft(None, (round(width * scale), round(height * scale)))
        sides = zip(square.box, image.size * 2, (width, height) * 2, strict=True)
        box = [corner * now / before for corner, now, before in sides]
        rgb, kernel = image.convert("RGB"), Image.Resampling.BICUBIC
        size = square.size, square.size
        return np.asarray(rgb.resize(size, kernel, box, reducing_gap=REDUCING_GAP))


def check(loader, shards, squares: list[Square]) -> None:
    """Stop unless we load what Pillow does, from the middle without shrinking first."""
    step = squares[0].place // BATCH
    images = loader(step)["image"]
    if not np.array_equal(images, [load_smaller(square) for square in squares[:BATCH]]):
        raise SystemExit("error: random squares are not those of Pillow with draft.")
    if images.shape != shards(step)["image"].shape:
        raise SystemExit("error: prepared squares have another size.")
    for square in squares[:BATCH]:
        with Image.open(square.path) as image:
            box = loader.crop.region(*image.size, None).corners
        encoded = loader.source.encoded(loader.record_at(square.place))
        ours = decode_crop(encoded, square.path, "white", loader.crop, None).image
        if not np.array_equal(ours, load(square._replace(box=box))):
            raise SystemExit(f"error: {square.path} is not what Pillow gives.")


def time_pillow(squares: list[Square], load: Callable, threads: int) -> tuple:
    """In threads: processes would have to send the pictures, which takes longer."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        exhaust((pool.map if threads > 1 else map)(load, squares))
        return len(squares) / (time.perf_counter() - start), ""


def time_pipeline(loader, workers: int, skip: int, batches: int) -> tuple:
    """Pictures per second after the first batches, and seconds until the first."""
    from migan_jax.data.pipeline import Batches

    start = time.perf_counter()
    with Batches(loader, Rejects(loader.source, 0, None), workers=workers) as ready:
        next(ready)
        first = time.perf_counter() - start
        exhaust(itertools.islice(ready, skip - 1))
        start = time.perf_counter()
        exhaust(itertools.islice(ready, batches))
        return batches * BATCH / (time.perf_counter() - start), first


def exhaust(items: Iterable[Any]) -> None:
    for _ in items:
        pass


def mask_rows(size: int, repeats: int) -> list[dict[str, Any]]:
    """Every kind, drawn on the host and on the device."""
    import jax

    from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host, masks_on_device

    keys = jax.random.split(jax.random.key(0), BATCH)
    rows = []
    for kind, sampler in SAMPLERS.items():
        one = functools.partial(mask_on_host, sampler)
        many = jax.jit(functools.partial(masks_on_device, sampler, size=size))
        runs = {
            "host": functools.partial(draw_each, MASKS, one, size),
            "device": lambda many=many: many(keys).block_until_ready(),
        }
        times = minimum_ms(runs, repeats)
        row = {"masks": kind, "size": size, "host ms": times["host"] / MASKS}
        row |= {"paper's ms": PAPERS_MS.get((kind, size), "")}
        row |= {"device ms": times["device"] / BATCH, "device": jax.default_backend()}
        rows.append(row | {"host / device": row["host ms"] / row["device ms"]})
    return rows


def scene_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every family one by one, then of all families in batches."""
    from migan_jax.data.pipeline import Loader

    cores, batches = arguments.threads, arguments.batches
    rates: dict[tuple[str, int], float] = {}
    for size, family in itertools.product(SCENE_SIZES, FAMILIES):
        run = functools.partial(draw_each, SCENES, draw_scene, size, family)
        ms = minimum_ms({"host": run}, arguments.repeats)["host"]
        rates[family, size] = 1e3 * SCENES / ms
    for size, (name, workers) in itertools.product(
        SCENE_SIZES, {"batches, threads": 0, "batches, workers": cores}.items()
    ):
        loader = Loader(SceneSource(size, 0), Crop(size), 0, BATCH, range(BATCH))
        rates[name, size], _ = time_pipeline(loader, workers, 2 * cores + 1, batches)
    return [
        {"scenes": name, "size": size, "ms": 1e3 / rate, "scenes/s": rate}
        for (name, size), rate in rates.items()
    ]


def draw_each(count: int, draw: Callable, *settings: Any) -> None:
    for seed in range(count):
        draw(np.random.default_rng(seed), *settings)


if __name__ == "__main__":
    main()
