"""Adaptive convolutions on a CPU beside PyTorch's grid_sample.

  python benchmarks/adaptive_conv.py --threads=2 --json=out/adaptive_conv.json

The PyTorch form samples all channels once for each of the 3x3 taps, with zeros outside
of the image, and sums them by their weights. Both get the same random images, weights
and offsets of up to two pixels. If outputs or gradients differ by more than 1e-3 of
their range, the benchmark stops. "both" is forward and backward, with gradients of all
three. Alternatives run in turn, and the fastest run of each counts.
"""

import argparse
from typing import Any

from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

SHAPES = ["2x64x64x128", "8x32x32x32", "2x128x128x128"]
SIZE = 3  # of the window
REACH = 2  # of offsets, in pixels
TOLERANCE = 1e-3


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, repeats=5)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="NxHxWxC")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    use_cores(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    rows = []
    for shape in arguments.shapes:
        for name, alternatives in make(shape).items():
            check(f"{shape} {name}", *(run() for run in alternatives.values()))
            times = minimum_ms(alternatives, arguments.repeats)
            row = {"shape": shape, "pass": name}
            row |= {f"{key} ms": ms for key, ms in times.items()}
            rows.append(row | {"ours / torch": times["ours"] / times["torch"]})
    print_table(rows)
    save_json(arguments.json, rows)


def make(shape: str) -> dict[str, dict[str, Any]]:
    """Make both forms by pass; each returns arrays as NHWC."""
    import jax
    import numpy as np
    import torch

    from migan_jax.ops.adaptive_conv import adaptive_conv

    n, h, w, c = map(int, shape.split("x"))
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((n, h, w, c), np.float32) for _ in range(2))
    weights = rng.standard_normal((n, h, w, SIZE**2), np.float32)
    # Not near whole numbers, where rounding would choose between two derivatives.
    whole = rng.integers(-REACH, REACH, (n, h, w, 2 * SIZE**2))
    offsets = (whole + rng.uniform(0.05, 0.95, whole.shape)).astype(np.float32)
    inputs = jax.device_put((x, weights, offsets))
    cotangent = jax.device_put(dy)
    forward = jax.jit(adaptive_conv)
    both = jax.jit(lambda dy, *inputs: jax.vjp(adaptive_conv, *inputs)[1](dy))

    theirs = [nchw(array).requires_grad_() for array in (x, weights, offsets)]
    their_cotangent = nchw(dy)

    @torch.inference_mode()
    def torch_forward() -> Any:
        return [nhwc(torch_form(*theirs))]

    def torch_both() -> Any:
        found = torch.autograd.grad(torch_form(*theirs), theirs, their_cotangent)
        return [nhwc(gradient) for gradient in found]

    return {
        "forward": {
            "ours": lambda: jax.block_until_ready([forward(*inputs)]),
            "torch": torch_forward,
        },
        "both": {
            "ours": lambda: jax.block_until_ready(both(cotangent, *inputs)),
            "torch": torch_both,
        },
    }


def torch_form(x: Any, weights: Any, offsets: Any) -> Any:
    """Compute an adaptive convolution in PyTorch: x, weights and offsets are NCHW."""
    import torch
    import torch.nn.functional as F

    _, _, h, w = x.shape
    rows, columns = torch.arange(h)[:, None], torch.arange(w)[None, :]
    total = 0.0
    for tap in range(SIZE**2):
        down, right = tap // SIZE - SIZE // 2, tap % SIZE - SIZE // 2
        y = rows + down + offsets[:, 2 * tap]
        z = columns + right + offsets[:, 2 * tap + 1]
        # From -1 to 1 between the centres of the first and the last pixels.
        grid = torch.stack([2 * z / (w - 1) - 1, 2 * y / (h - 1) - 1], dim=-1)
        sampled = F.grid_sample(
            x, grid, mode="bilinear", padding_mode="zeros", align_corners=True
        )
        total = total + weights[:, tap, None] * sampled
    return total


def nchw(array: Any) -> Any:
    import torch

    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


def nhwc(tensor: Any) -> Any:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def check(name: str, ours: Any, theirs: Any) -> None:
    """Stop unless all arrays agree."""
    import numpy as np

    for mine, other in zip(ours, theirs, strict=True):
        error = np.abs(np.asarray(mine) - other).max() / np.abs(other).max()
        if not error <= TOLERANCE:
            raise SystemExit(f"error: {name}: results differ by {error:.1e}.")


if __name__ == "__main__":
    main()
