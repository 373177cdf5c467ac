"""The speed of loading images, and of drawing masks and scenes.

  python benchmarks/data.py --threads=2 --json=out/data.json

Images: random squares of JPEG photos, made here or from `--photos=FOLDER` (RGB and
upright), are resized. All rows load the same squares in the same order.
  Pillow, one core    open, convert, resize, to an array: a plain loop
  Pillow              the same in one thread per core
  Pillow, draft       likewise, decoded at a smaller scale where the pipeline does so
  pipeline, threads   `Batches` of 32 without workers
  pipeline, workers   `Batches` of 32 with two workers per core
  prepared, ...       likewise, from shards of photos already shrunk
Rates are measured over `--batches` batches after the first ones; `first s` is the time
to the first batch, including the start of workers. Ratios compare images per second and
core.

Masks and scenes: one at a time on one core; masks also 32 at once on the device that
JAX_PLATFORMS selects. `paper's ms`: the paper's sampler, on another machine.
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

from migan_jax.data.examples import REDUCING_GAP, CropSettings, decode_crop
from migan_jax.data.rejects import Rejects
from migan_jax.data.scenes import SCENE_FAMILIES, draw_scene
from migan_jax.data.shards import ShardOptions, ShardWriter
from migan_jax.data.sources import ArrayRecordSource, FileSource, SceneSource

BATCH = 32
# Synthetic photos: large enough for JPEG's own scaling at 256 pixels, and about as slow
# to decode as real ones.
PHOTOS, WIDTH, HEIGHT, QUALITY = 128, 1280, 1024, 90
PAPERS_MS = {("free_form", 256): 1.8, ("free_form", 512): 2.7}
MASKS, SCENES, SCENE_SIZES = 64, 8, (64, 128, 256)


class Square(NamedTuple):
    """A box of a photo, to resize."""

    position: int  # in the pipeline's order
    path: Path
    box: tuple[int, int, int, int]
    size: int


def main() -> None:
    parser = benchmark_parser(__doc__, repeats=2)
    parser.add_argument("--photos", type=Path, help="a folder of JPEG files")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batches", type=int, default=8, help="batches to time")
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    images, masks = [], []
    with tempfile.TemporaryDirectory() as name:
        photos = arguments.photos or make_photos(Path(name, "photos"))
        for size in arguments.sizes:
            images += time_images(photos, Path(name, str(size)), size, arguments)
            masks += time_masks(size, arguments.repeats)
    tables = images, masks, time_scenes(arguments)
    for table in tables:
        print_table(table)
        print()
    save_json(arguments.json, list(itertools.chain(*tables)))


def make_photos(folder: Path) -> Path:
    """Write noise with about the power spectrum of photos."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = np.inf
    waves = np.fft.rfft2(rng.standard_normal((3, HEIGHT, WIDTH))) * frequency**-1.2
    noise = np.moveaxis(np.fft.irfft2(waves, (HEIGHT, WIDTH)), 0, -1)
    pixels = np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)
    for index in range(PHOTOS):
        moved = np.roll(pixels, rng.integers(0, (HEIGHT, WIDTH)), (0, 1))
        Image.fromarray(moved).save(folder / f"{index}.jpg", quality=QUALITY)
    return folder


def time_images(
    photos: Path, folder: Path, size: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time Pillow and the pipeline loading the same squares."""
    cores, batches = arguments.threads, arguments.batches
    skip = 2 * cores + 1  # batches, until prefetched ones are used up
    loader, shards = make_loaders(photos, folder, size, cores)
    first, end = skip * BATCH, (skip + batches) * BATCH
    squares = [square_at(position, loader) for position in range(first, end)]
    check(loader, shards, squares)
    run_pillow = functools.partial(time_pillow, squares)
    run_pipeline = functools.partial(time_pipeline, skip=skip, batches=batches)
    runs = {
        "Pillow, one core": (1, lambda: run_pillow(load, 1)),
        "Pillow": (cores, lambda: run_pillow(load, cores)),
        "Pillow, draft": (cores, lambda: run_pillow(load_smaller, cores)),
        "pipeline, threads": (cores, lambda: run_pipeline(loader, 0)),
        "pipeline, workers": (cores, lambda: run_pipeline(loader, 2 * cores)),
        "prepared, threads": (cores, lambda: run_pipeline(shards, 0)),
        "prepared, workers": (cores, lambda: run_pipeline(shards, 2 * cores)),
    }
    speeds = {name: [] for name in runs}
    for name in arguments.repeats * list(runs):
        speeds[name].append(runs[name][1]())
    rows = []
    for name, (used, _) in runs.items():
        rates, firsts = zip(*speeds[name], strict=True)
        row = {"pictures": name, "size": size, "images/s": max(rates)}
        rows.append(row | {"per core": max(rates) / used, "first s": min(firsts)})
    for row, other in itertools.product(rows, rows[:3]):
        row[f"/ {other['pictures']}"] = row["per core"] / other["per core"]
    return rows


def make_loaders(photos: Path, folder: Path, size: int, threads: int) -> list:
    """Make loaders of the photos, and of shards of them written to a folder."""
    from migan_jax.data.pipeline import Loader

    source = FileSource(photos)
    writer = ShardWriter(source, folder, ShardOptions(size, smallest_side=1))
    writer.run(Rejects(source, 0, None), threads, lambda count: None)
    sources = source, ArrayRecordSource(folder)
    return [
        Loader(source, CropSettings(size), 0, BATCH, range(BATCH)) for source in sources
    ]


def square_at(position: int, loader) -> Square:
    """Return the square that the pipeline loads at a position."""
    name = loader.source.name(loader.record_at(position))
    path = loader.source.files.location / name
    rng = np.random.default_rng((loader.seed, position))
    with Image.open(path) as image:
        region = loader.crop.region(*image.size, rng)
    return Square(position, path, region.corners, loader.crop.resolution)


def load(square: Square) -> np.ndarray:
    """Load a square with Pillow in the obvious way."""
    with Image.open(square.path) as image:
        rgb, kernel = image.convert("RGB"), Image.Resampling.BICUBIC
        return np.asarray(rgb.resize((square.size,) * 2, kernel, square.box))


def load_smaller(square: Square) -> np.ndarray:
    """Load a square with Pillow's fast reductions."""
    with Image.open(square.path) as image:
        width, height = image.size
        scale = REDUCING_GAP * square.size / (square.box[2] - square.box[0])
        if scale < 1:
            image.draft(None, (round(width * scale), round(height * scale)))
        sides = zip(square.box, image.size * 2, (width, height) * 2, strict=True)
        box = [corner * current / full for corner, current, full in sides]
        rgb, kernel = image.convert("RGB"), Image.Resampling.BICUBIC
        size = square.size, square.size
        return np.asarray(rgb.resize(size, kernel, box, reducing_gap=REDUCING_GAP))


def check(loader, shards, squares: list[Square]) -> None:
    """Exit unless the pipeline and Pillow load equal squares, random and central."""
    step = squares[0].position // BATCH
    images = loader(step)["image"]
    if not np.array_equal(images, [load_smaller(square) for square in squares[:BATCH]]):
        raise SystemExit(
            "error: random squares differ from those of Pillow with draft."
        )
    if images.shape != shards(step)["image"].shape:
        raise SystemExit("error: prepared squares have another size.")
    for square in squares[:BATCH]:
        with Image.open(square.path) as image:
            box = loader.crop.region(*image.size, None).corners
        encoded = loader.source.encoded(loader.record_at(square.position))
        loaded = decode_crop(encoded, square.path, "white", loader.crop, None).image
        if not np.array_equal(loaded, load(square._replace(box=box))):
            raise SystemExit(f"error: {square.path} differs from what Pillow loads.")


def time_pillow(squares: list[Square], load: Callable, threads: int) -> tuple:
    """Time Pillow in threads; processes are slower, since they have to send images."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        exhaust((pool.map if threads > 1 else map)(load, squares))
        return len(squares) / (time.perf_counter() - start), ""


def time_pipeline(loader, workers: int, skip: int, batches: int) -> tuple:
    """Return images per second after the first batches, and seconds to the first."""
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


def time_masks(size: int, repeats: int) -> list[dict[str, Any]]:
    """Time all kinds of masks on the host and on the device."""
    import jax

    from migan_jax.data.mask_samplers import SAMPLERS, mask_on_host, masks_on_device

    keys = jax.random.split(jax.random.key(0), BATCH)
    rows = []
    for kind, sampler in SAMPLERS.items():
        draw_one = functools.partial(mask_on_host, sampler)
        draw_all = jax.jit(functools.partial(masks_on_device, sampler, size=size))
        runs = {
            "host": functools.partial(draw_each, MASKS, draw_one, size),
            "device": lambda draw_all=draw_all: draw_all(keys).block_until_ready(),
        }
        times = minimum_ms(runs, repeats)
        row = {"masks": kind, "size": size, "host ms": times["host"] / MASKS}
        row |= {"paper's ms": PAPERS_MS.get((kind, size), "")}
        row |= {"device ms": times["device"] / BATCH, "device": jax.default_backend()}
        rows.append(row | {"host / device": row["host ms"] / row["device ms"]})
    return rows


def time_scenes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time each family one scene at a time, then all families in batches."""
    from migan_jax.data.pipeline import Loader

    cores, batches = arguments.threads, arguments.batches
    rates: dict[tuple[str, int], float] = {}
    for size, family in itertools.product(SCENE_SIZES, SCENE_FAMILIES):
        run = functools.partial(draw_each, SCENES, draw_scene, size, family)
        ms = minimum_ms({"host": run}, arguments.repeats)["host"]
        rates[family, size] = 1e3 * SCENES / ms
    for size, (name, workers) in itertools.product(
        SCENE_SIZES, {"batches, threads": 0, "batches, workers": cores}.items()
    ):
        loader = Loader(
            SceneSource(size, 0), CropSettings(size), 0, BATCH, range(BATCH)
        )
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
