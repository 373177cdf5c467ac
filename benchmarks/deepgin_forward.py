"""DeepGIN's forward pass on a CPU beside PyTorch, and the memory of its attention.

  python benchmarks/deepgin_forward.py --threads=2 --json=out/deepgin_forward.json

The full model at 256 pixels with the same random weights on the same input: Flax
(jitted, NHWC) and PyTorch (eager, channels-last). If outputs differ by more than 1e-4
of their range, the benchmark stops.

The second table has what the gradient of one attention layer at a quarter of the size
needs for temporary arrays, in MiB, with and without blocks of queries. These programs
are compiled, not run. (On CPUs, XLA does not list the arrays of the forward pass, which
it fuses.)
"""

import sys

from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

TOLERANCE = 1e-4
SIZES = 256, 512, 1024


def main() -> None:
    parser = benchmark_parser(__doc__, repeats=5)
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    times = minimum_ms(make_alternatives(arguments.threads), arguments.repeats)
    rows = [
        {"alternative": name, "ms": ms, "/ torch": ms / times["torch"]}
        for name, ms in times.items()
    ]
    print_table(rows)
    memory = [row for size in SIZES for row in attention_memory(size)]
    print()
    print_table(memory)
    save_json(arguments.json, [*rows, *memory])


def make_alternatives(threads: int) -> dict:
    """Make callables that run the same network on the same image."""
    import jax
    import numpy as np
    import torch
    from deepgin_torch import Generator

    from migan_jax.families import from_tensors

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    twin = Generator("full").eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.ndim > 1:
                parameter *= 5  # initial weights make signals of 1e-5
    checkpoint = from_tensors({k: v.numpy() for k, v in twin.state_dict().items()})
    network, variables = checkpoint.network, jax.device_put(checkpoint.variables)
    rng = np.random.default_rng(0)
    hole = (rng.random((1, 256, 256, 1)) < 0.3).astype(np.float32)
    image = rng.random((1, 256, 256, 3), np.float32) * (1 - hole) + hole
    x = np.concatenate([image, hole], axis=-1)
    twin = twin.to(memory_format=torch.channels_last)
    inputs = [
        torch.from_numpy(part)
        .permute(0, 3, 1, 2)
        .contiguous(memory_format=torch.channels_last)
        for part in (image, hole)
    ]

    def run_torch() -> np.ndarray:
        with torch.inference_mode():
            return twin(*inputs)["output"].permute(0, 2, 3, 1).numpy()

    forward = jax.jit(lambda variables, x: network.apply(variables, x)[0])
    alternatives = {
        "flax": lambda: np.asarray(forward(variables, x)),
        "torch": run_torch,
    }
    expected = alternatives["torch"]()
    error = np.abs(alternatives["flax"]() - expected).max() / np.abs(expected).max()
    if not error <= TOLERANCE:
        sys.exit(f"error: the outputs differ by {error:.1e} of their range.")
    return alternatives


def attention_memory(size: int) -> list[dict]:
    """Return the temporary memory of attention for images of this size."""
    import jax
    import jax.numpy as jnp

    from migan_jax.ops import attention

    side = size // 4
    arrays = [jax.ShapeDtypeStruct((1, side, side, 32), jnp.float32)] * 3
    in_blocks = attention.MAX_SCORES
    rows = []
    for name, limit in (("in blocks", in_blocks), ("at once", side**4)):
        attention.MAX_SCORES = limit
        # A new function, because traces are cached by function.
        gradient = jax.grad(lambda *x: jnp.sum(attention.attend(*x) ** 2), (0, 1, 2))
        analysis = jax.jit(gradient).lower(*arrays).compile().memory_analysis()
        mebibytes = analysis.temp_size_in_bytes / 2**20
        rows.append({"pixels": size, "attention": name, "MiB": mebibytes})
    attention.MAX_SCORES = in_blocks
    return rows


if __name__ == "__main__":
    main()
