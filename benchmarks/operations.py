"""Depthwise 3x3 and FIR x2 on a CPU: our forms, XLA's convolutions and PyTorch.

  python benchmarks/operations.py --threads=2 --json=out/operations.json

Times forward and each gradient separately, in float32. These operations limit the speed
of training and inference on a CPU: they have a tenth of the multiply-adds, but grouped
convolutions are so slow that they would take most of the time.
"""

import argparse

from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

SHAPES = ["4x256x256x128", "4x64x64x512", "4x16x16x512"]


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
        sizes = tuple(map(int, shape.split("x")))
        for name, alternatives in operations(sizes).items():
            times = minimum_ms(alternatives, arguments.repeats)
            row = {"operation": name, "shape": shape}
            row |= {f"{key} ms": value for key, value in times.items()}
            row["ours / xla"] = times["ours"] / times["xla"]
            row["ours / torch"] = times["ours"] / times["torch"]
            rows.append(row)
    print_table(rows)
    save_json(arguments.json, rows)


def operations(shape: tuple[int, int, int, int]) -> dict:
    """Make {operation: {alternative: callable}}; check that they agree."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from migan_jax.ops import depthwise, resample
    from migan_jax.twins import layers

    n, h, w, c = shape
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape, np.float32) for _ in range(2))
    kernel = rng.standard_normal((3, 3, 1, c), np.float32)
    small = rng.standard_normal((n, h // 2, w // 2, c), np.float32)
    theirs = {
        name: torch.from_numpy(np.moveaxis(a, -1, 1))
        for name, a in {"x": x, "dy": dy, "small": small}.items()
    }
    their_kernel = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    taps = layers.fir_taps()

    def convolve(image, kernel):
        return F.conv2d(image, kernel, padding=1, groups=c)

    forms = {
        "depthwise": (
            depthwise.depthwise,
            depthwise._grouped_convolution,
            convolve,
        ),
        "FIR up": (resample.upsample2x, resample._up_convolution, layers.bilinear_up),
        "FIR down": (
            resample.downsample2x,
            resample._down_convolution,
            lambda image: layers.fir_down(image, taps),
        ),
    }
    inputs = {
        "depthwise": ((x, kernel), (theirs["x"], their_kernel), (dy, theirs["dy"])),
        "FIR up": ((small,), (theirs["small"],), (dy, theirs["dy"])),
        "FIR down": ((x,), (theirs["x"],), (small, theirs["small"])),
    }
    table = {}
    for name, (ours, xla, torch_form) in forms.items():
        mine, their, (cotangent, their_cotangent) = inputs[name]
        table[f"{name} forward"] = {
            "ours": jax_call(ours, *mine),
            "xla": jax_call(xla, *mine),
            "torch": torch_call(torch_form, their),
        }
        for index, wrt in enumerate(("dx", "dw")[: len(mine)]):
            table[f"{name} {wrt}"] = {
                "ours": jax_call(jax_gradient(ours, index), cotangent, *mine),
                "xla": jax_call(jax_gradient(xla, index), cotangent, *mine),
                "torch": torch_gradient(torch_form, their, their_cotangent, index),
            }
    for name, alternatives in table.items():
        check(name, {key: run() for key, run in alternatives.items()})
    return table


def jax_call(function, *arguments):
    import jax

    compiled = jax.jit(function)
    arrays = jax.device_put(arguments)
    return lambda: jax.block_until_ready(compiled(*arrays))


def jax_gradient(function, index):
    import jax

    return lambda cotangent, *inputs: jax.vjp(function, *inputs)[1](cotangent)[index]


def torch_call(function, inputs):
    import torch

    inputs = [channels_last(value) for value in inputs]

    def run():
        with torch.inference_mode():
            return function(*inputs)

    return run


def torch_gradient(function, inputs, cotangent, index):
    import torch

    inputs = [channels_last(value) for value in inputs]
    inputs[index].requires_grad_()
    output = function(*inputs)
    cotangent = channels_last(cotangent)
    return lambda: torch.autograd.grad(
        output, inputs[index], cotangent, retain_graph=True
    )[0]


def channels_last(tensor):
    import torch

    return tensor.detach().clone().contiguous(memory_format=torch.channels_last)


def check(name, results):
    """Stop unless all alternatives agree."""
    import numpy as np

    ours = np.asarray(results["ours"])
    theirs = results["torch"].detach().numpy()
    kernel = theirs.shape[1:] == (1, 3, 3)
    theirs = theirs.transpose(2, 3, 1, 0) if kernel else np.moveaxis(theirs, 1, -1)
    for other in (np.asarray(results["xla"]), theirs):
        error = np.abs(ours - other).max() / np.abs(other).max()
        if not error <= 1e-4:
            raise SystemExit(f"error: {name}: results differ by {error:.1e}.")


if __name__ == "__main__":
    main()
