"""Inception features for FID: this package and pytorch-fid.

  python benchmarks/evaluate.py --threads=2 --json=out/evaluate.json

Both get the same decoded uint8 images and the same random weights, and must agree. The
time includes resizing to 299 pixels. `ratio` is ours over pytorch-fid in images per
second. `kB each` is the growth of the process per image, from the middle to the last
third of --batches batches of `evaluate`; it should be zero.

Needs the extras torch and peers.
"""

import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

# For peers.py: random weights in the packages' networks.
sys.path.append(str(Path(__file__).parent.parent / "tests"))

TOLERANCE = 1e-5  # relative, of features


def main() -> None:
    parser = benchmark_parser(__doc__, repeats=3)
    parser.add_argument("--size", type=int, default=256, help="of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=30, help="for the memory growth")
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    import peers

    from migan_jax.metrics.inception import inception_features
    from migan_jax.weights.feature_networks import load_inception

    peers.torch.set_num_threads(arguments.threads)
    whole, inner = peers.make_inception()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        peers.torch.save(inner.state_dict(), path)
        variables = load_inception(path)
    shape = arguments.batch, arguments.size, arguments.size, 3
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def ours() -> np.ndarray:
        return np.asarray(inception_features(variables, images))

    def theirs() -> np.ndarray:
        with peers.torch.no_grad():
            return whole(peers.to_torch(images))[0][:, :, 0, 0].numpy()

    difference = np.linalg.norm(ours() - theirs()) / np.linalg.norm(theirs())
    if difference > TOLERANCE:
        raise SystemExit(f"error: the features differ by {difference:.1e}.")
    best = minimum_ms({"ours": ours, "pytorch-fid": theirs}, arguments.repeats)
    rates = {name: 1e3 * arguments.batch / ms for name, ms in best.items()}
    growth = round(
        measure_growth(variables, arguments.size, arguments.batch, arguments.batches)
    )
    rows = [
        {
            "": name,
            "images/s": rate,
            "ratio": rate / rates["pytorch-fid"],
            "kB each": growth if name == "ours" else "-",
        }
        for name, rate in rates.items()
    ]
    print_table(rows)
    save_json(arguments.json, rows)


def measure_growth(variables: Any, size: int, batch: int, batches: int) -> float:
    """Return the process's growth during an evaluation, in kilobytes per image."""
    from migan_jax.data.sources import SceneSource
    from migan_jax.metrics import evaluator
    from migan_jax.metrics.fills import mean_colour
    from migan_jax.metrics.test_set import TestSet

    evaluator.CHUNK_SIZE = batch
    source = SceneSource(size, seed=0)
    test_set = TestSet(source, resolution=size, count=batch * batches)
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        feature_networks = evaluator.FeatureNetworks(inception=variables)
        evaluator.Evaluation(test_set, feature_networks, Path(folder)).run(
            [evaluator.Method(mean_colour, {})],
            batch,
            advance=lambda count: sizes.append(resident_kilobytes()),
        )
    third = batches // 3  # the first one fills pools and caches
    middle, last = sizes[third : 2 * third], sizes[-third:]
    growth = sum(last) / len(last) - sum(middle) / len(middle)
    return growth / (batch * third)


def resident_kilobytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


if __name__ == "__main__":
    main()
