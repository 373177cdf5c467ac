"""The way to FID: features of pictures by ours and by pytorch-fid's network.

  python benchmarks/evaluate.py --threads=2 --json=out/evaluate.json

Both get the same pictures, uint8 and decoded already, and the same random weights, and
must agree; resizing to 299 pixels is part of the work. `ratio` is ours over pytorch-fid
in images per second. `kB each` is by how much the process grows for a picture, from
the middle to the last third of --batches batches that `evaluate` works off: nothing
should stay.

Needs the extras torch and peers.
"""

import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

# Random weights in the packages' networks, as the tests have them.
sys.path.append(str(Path(__file__).parent.parent / "tests"))

TOLERANCE = 1e-5  # relative, of features


def main() -> None:
    parser = benchmark_parser(__doc__, repeats=3)
    parser.add_argument("--size", type=int, default=256, help="of the pictures")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=30, help="for the memory")
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    import peers

    from migan_jax.metrics.inception import inception_features
    from migan_jax.weights.feature_networks import load_inception

    peers.torch.set_num_threads(arguments.threads)
    whole, inner = peers.inception()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        peers.torch.save(inner.state_dict(), path)
        variables = load_inception(path)
    shape = arguments.batch, arguments.size, arguments.size, 3
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def ours() -> np.ndarray:
        return np.asarray(inception_features(variables, pictures))

    def theirs() -> np.ndarray:
        with peers.torch.no_grad():
            return whole(peers.as_theirs(pictures))[0][:, :, 0, 0].numpy()

    apart = np.linalg.norm(ours() - theirs()) / np.linalg.norm(theirs())
    if apart > TOLERANCE:
        raise SystemExit(f"error: the features are {apart:.1e} apart.")
    best = minimum_ms({"ours": ours, "pytorch-fid": theirs}, arguments.repeats)
    rates = {name: 1e3 * arguments.batch / ms for name, ms in best.items()}
    grown = round(growth(variables, arguments.size, arguments.batch, arguments.batches))
    rows = [
        {
            "": name,
            "images/s": rate,
            "ratio": rate / rates["pytorch-fid"],
            "kB each": grown if name == "ours" else "-",
        }
        for name, rate in rates.items()
    ]
    print_table(rows)
    save_json(arguments.json, rows)


def growth(variables: Any, size: int, batch: int, batches: int) -> float:
    """Of the process, in kilobytes a picture, while scenes are evaluated."""
    from migan_jax.data.sources import SceneSource
    from migan_jax.metrics import evaluator
    from migan_jax.metrics.fills import mean_colour
    from migan_jax.metrics.test_set import TestSet

    evaluator.CHUNK = batch
    source = SceneSource(size, seed=0)
    test_set = TestSet(source, resolution=size, count=batch * batches)
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        eyes = evaluator.Eyes(inception=variables)
        evaluator.Evaluation(test_set, eyes, Path(folder)).work_off(
            [evaluator.Method(mean_colour, {})],
            batch,
            advance=lambda count: sizes.append(resident_kilobytes()),
        )
    third = batches // 3  # the first of them fills pools and caches
    middle, last = sizes[third : 2 * third], sizes[-third:]
    apart = sum(last) / len(last) - sum(middle) / len(middle)
    return apart / (batch * third)


def resident_kilobytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024


if __name__ == "__main__":
    main()
