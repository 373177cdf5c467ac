"""Time and memory of inpainting a photo on a CPU, for geometry and network apart.

  python benchmarks/inpaint.py --threads=2 --json=out/inpaint.json

MI-GAN with random weights, photos of noise. Per photo and hole:
  crops        number of crops
  all          `fill_holes` with the network
  network      the network alone, once per crop
  geometry     `fill_holes` with a stub that returns a stored output
  copy         one copy of the photo: the minimum for any geometry
  extra MB     peak memory of the geometry beyond photo, mask and result, in a separate
               process
"""

import argparse
import multiprocessing
from pathlib import Path

from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

# The hole as fractions of height and width: top, left, bottom, right.
HOLES = {
    "small": (0.4, 0.4, 0.5, 0.5),
    "large": (0.25, 0.25, 0.75, 0.75),
    "wide": (0.45, 0.05, 0.5, 0.95),
    "all": (0.0, 0.0, 1.0, 1.0),
}
PHOTOS = ["512x512", "1024x768", "3000x2000", "8660x5774"]


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, repeats=5)
    parser.add_argument("--photos", nargs="+", default=PHOTOS, help="WIDTHxHEIGHT")
    parser.add_argument("--resolution", type=int, default=512, help="the network's")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    use_cores(arguments.threads)
    model = make_model(arguments.resolution)
    rows = []
    for photo in arguments.photos:
        width, height = map(int, photo.split("x"))
        for name in HOLES:
            row = {"photo": photo, "hole": name}
            row |= measure(model, arguments, width, height, HOLES[name])
            rows.append(row)
    print_table(rows)
    save_json(arguments.json, rows)


def make_model(resolution: int):
    """Make a MI-GAN with random weights."""
    import jax
    import jax.numpy as jnp

    from migan_jax import Model
    from migan_jax.models.layers import Reparam
    from migan_jax.models.migan import MIGANGenerator
    from migan_jax.weights.checkpoint import Checkpoint

    generator = MIGANGenerator(resolution, reparam=Reparam("fused"))
    x = jnp.zeros((1, resolution, resolution, 4))
    variables = jax.jit(generator.init)(jax.random.key(0), x)
    return Model.of(Checkpoint(generator, variables["params"], variables["stats"]))


def measure(model, arguments, width: int, height: int, fractions: tuple) -> dict:
    """Return one row of the table."""
    import numpy as np

    from migan_jax.geometry.crops import plan_boxes
    from migan_jax.geometry.fill import fill_holes

    size = arguments.resolution
    image, hole = make_photo(width, height, fractions)
    crops = len(plan_boxes(hole, size, "auto"))
    square = [np.zeros((1, size, size, channels), np.float32) for channels in (3, 1)]
    output = model.predict(*square)
    runs = {
        "all": lambda: fill_holes(image, hole, model.predict, size),
        "network": lambda: [model.predict(*square) for _ in range(crops)],
        "geometry": lambda: fill_holes(image, hole, lambda *inputs: output, size),
        "copy": image.copy,
    }
    times = minimum_ms(runs, arguments.repeats)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        extra = pool.apply(extra_megabytes, (width, height, fractions, size))
    return {
        "crops": crops,
        **{f"{name} ms": value for name, value in times.items()},
        "geometry / network": times["geometry"] / times["network"],
        "geometry / copy": times["geometry"] / times["copy"],
        "extra MB": extra,
    }


def make_photo(width: int, height: int, fractions: tuple):
    """Return noise, and a box as the hole."""
    import numpy as np

    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    hole = np.zeros((height, width), np.bool_)
    top, bottom = (int(fraction * height) for fraction in fractions[::2])
    left, right = (int(fraction * width) for fraction in fractions[1::2])
    hole[top:bottom, left:right] = True
    return image, hole


def extra_megabytes(width: int, height: int, fractions: tuple, size: int) -> float:
    """Return the increase of peak resident memory, less the result."""
    import numpy as np

    from migan_jax.geometry.fill import fill_holes

    small, hole = make_photo(64, 64, fractions)
    output = np.zeros((1, size, size, 3), np.float32)
    fill_holes(small, hole, lambda *inputs: output, size)  # lazy imports
    image, hole = make_photo(width, height, fractions)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident_megabytes("VmRSS")
    result = fill_holes(image, hole, lambda *inputs: output, size)
    return resident_megabytes("VmHWM") - before - result.nbytes / 1e6


def resident_megabytes(kind: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("error: this benchmark needs Linux: it reads /proc/self/status.")


if __name__ == "__main__":
    main()
