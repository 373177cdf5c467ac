"""Imputed convolutions beside plain ones on a CPU, in Flax and in PyTorch.

  python benchmarks/imputation_forward.py --threads=2 --json=out/imputation_forward.json

Both run the same random weights on the same inputs: Flax (jitted, NHWC) and PyTorch
(eager, channels-last). If outputs differ by more than 1e-4 of their range, or gradients
by more than 1e-2 in L2, the benchmark stops. The pass "both" is forward and backward,
with gradients for all parameters. `/ plain` compares within a framework.

The first table has 3x3 layers with activation and pixel norm, and gradients for their
inputs, too. The second has whole generators: a small one, and that of places256 with
256 channels. The third has what imputation adds to their parameters: the estimators
and the filters of certainties.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

SHAPES = ["2x256x256x32", "2x64x64x128", "2x16x16x256"]
GENERATORS = ["64x64", "256x256"]
HOLE = 0.3  # part of the layers' pixels
TOLERANCES = {"forward": 1e-4, "both": 1e-2}


class Pair(NamedTuple):
    """A computation in both frameworks."""

    flax: Callable[[], Any]
    torch: Callable[[], Any]
    as_flax: Callable[[Any], Any]  # turns PyTorch's result into a tree like Flax's


Pairs = dict[str, Pair]  # by pass


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, repeats=5)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="NxHxWxC")
    parser.add_argument(
        "--generators", nargs="+", default=GENERATORS, help="PIXELSxCHANNELS"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    use_cores(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    layers, generators, parameters = [], [], []
    for shape in arguments.shapes:
        layers += compare(make_layer, "layer", shape, arguments.repeats)
    print_table(layers)
    for size in arguments.generators:
        generators += compare(make_generator, "generator", size, arguments.repeats)
        parameters.append(count_parameters(size))
    for table in (generators, parameters):
        print()
        print_table(table)
    save_json(arguments.json, [*layers, *generators, *parameters])


def compare(
    make: Callable[[str, bool], Pairs], part: str, size: str, repeats: int
) -> list[dict[str, Any]]:
    """Check the results of both passes and time them; return their rows."""
    kinds = {"plain": make(size, False), "imputed": make(size, True)}
    rows = []
    for name, tolerance in TOLERANCES.items():
        alternatives = {}
        for kind, pairs in kinds.items():
            pair = pairs[name]
            error = difference(pair, in_l2=name == "both")
            if not error <= tolerance:
                raise SystemExit(
                    f"error: {kind} {part} {size}, {name}: "
                    f"results differ by {error:.1e}."
                )
            alternatives |= {f"{kind} flax": pair.flax, f"{kind} torch": pair.torch}
        ms = minimum_ms(alternatives, repeats)
        for alternative, time in ms.items():
            kind, framework = alternative.split()
            row = {part: size, "pass": name, "alternative": alternative, "ms": time}
            row["/ plain"] = time / ms[f"plain {framework}"]
            row["/ torch"] = time / ms[f"{kind} torch"]
            rows.append(row)
    return rows


def difference(pair: Pair, in_l2: bool) -> float:
    """Return how far Flax's results are from PyTorch's.

    That is by at most how much of their range; or in L2, all arrays together.
    """
    import jax
    import numpy as np

    ours, theirs = (
        [np.asarray(array) for array in jax.tree.leaves(result)]
        for result in (pair.flax(), pair.as_flax(pair.torch()))
    )
    errors = [a - b for a, b in zip(ours, theirs, strict=True)]
    if in_l2:
        errors, theirs = (
            np.concatenate([array.ravel() for array in arrays])
            for arrays in (errors, theirs)
        )
        return float(np.linalg.norm(errors) / np.linalg.norm(theirs))
    return max(
        np.abs(e).max() / np.abs(t).max() for e, t in zip(errors, theirs, strict=True)
    )


def make_layer(shape: str, imputes: bool) -> Pairs:
    """Make a layer with activation and pixel norm."""
    import jax
    import numpy as np
    import torch
    from imputation_torch import Conv, IConv, activate

    from migan_jax.models.imputation import ConvLayer, FeatureMap

    n, h, w, c = map(int, shape.split("x"))
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((n, h, w, c), np.float32) for _ in range(2))
    certainty, dc = (rng.random((n, h, w, 1), np.float32) for _ in range(2))
    certainty *= rng.random((n, h, w, 1)) >= HOLE
    twin = IConv(c, c, 3, 3 if h <= 8 else 5) if imputes else Conv(c, c, 3)
    params = layer_params(dict(twin.named_parameters()))
    layer, known = ConvLayer(c, 3, h, "code"), certainty[..., 0] if imputes else None
    cotangents = [dy, dc[..., 0]] if imputes else [dy]

    def forward(params: Any, x: Any, known: Any) -> list[Any]:
        return jax.tree.leaves(layer.apply({"params": params}, FeatureMap(x, known)))

    def both(params: Any, x: Any, known: Any, cotangents: Any) -> Any:
        return jax.vjp(lambda *y: forward(*y, known), params, x)[1](cotangents)

    twin = twin.to(memory_format=torch.channels_last)
    names, targets = zip(*twin.named_parameters(), strict=True)
    their_x, their_certainty, *theirs = map(nchw, (x, certainty, dy, dc))
    their_x.requires_grad_()

    def run_twin() -> Any:
        return activate(twin((their_x, their_certainty)))[: len(cotangents)]

    def differentiate_twin() -> Any:
        inputs = [*targets, their_x]
        return torch.autograd.grad(run_twin(), inputs, theirs[: len(cotangents)])

    def as_gradients(found: Any) -> Any:
        *gradients, their_dx = found
        tensors = dict(zip(names, gradients, strict=True))
        return layer_params(tensors), nhwc(their_dx)

    return {
        "forward": Pair(
            jitted(forward, params, x, known),
            torch.inference_mode()(run_twin),
            lambda found: [nhwc(found[0]), *(nhwc(c)[..., 0] for c in found[1:])],
        ),
        "both": Pair(
            jitted(both, params, x, known, cotangents),
            differentiate_twin,
            as_gradients,
        ),
    }


def make_generator(size: str, imputes: bool) -> Pairs:
    """Make a generator, with the central quarter of its image as hole."""
    import jax
    import numpy as np
    import torch

    from migan_jax.systems.imputation import pack

    twin = make_twin(size, imputes)
    checkpoint = as_checkpoint(twin.state_dict())
    network, resolution = checkpoint.network, checkpoint.network.resolution
    rng = np.random.default_rng(0)
    image, dy = rng.uniform(-1, 1, (2, 1, resolution, resolution, 3)).astype("float32")
    mask = np.ones_like(image[..., :1])
    middle = slice(resolution // 4, 3 * resolution // 4)
    mask[:, middle, middle] = 0
    z = rng.standard_normal((1, 4, 4, network.latents), np.float32)
    inputs = checkpoint.variables["params"], pack(image, mask), z

    def forward(params: Any, x: Any, z: Any) -> Any:
        return network.apply({"params": params}, x, z)[0]

    def both(params: Any, x: Any, z: Any, dy: Any) -> Any:
        return jax.vjp(lambda params: forward(params, x, z), params)[1](dy)[0]

    twin = twin.to(memory_format=torch.channels_last)
    names, targets = zip(*twin.named_parameters(), strict=True)
    *their_inputs, their_dy = map(nchw, (image * mask, mask, z, dy))

    def run_twin() -> Any:
        return twin(*their_inputs)

    def differentiate_twin() -> Any:
        # The highest level's last certainty is not used.
        return torch.autograd.grad(
            run_twin(), targets, their_dy, materialize_grads=True
        )

    def as_gradients(found: Any) -> Any:
        return as_checkpoint(dict(zip(names, found, strict=True))).variables["params"]

    return {
        "forward": Pair(
            jitted(forward, *inputs), torch.inference_mode()(run_twin), nhwc
        ),
        "both": Pair(jitted(both, *inputs, dy), differentiate_twin, as_gradients),
    }


def make_twin(size: str, imputes: bool) -> Any:
    import torch
    from imputation_torch import Generator, channel_table

    resolution, width = map(int, size.split("x"))
    channels = channel_table(width, resolution)
    twin = Generator(resolution, channels, "iconv" if imputes else "conv")
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.ndim == 1:
                # Not 0, where gradients of leaky ReLU differ: in the middle of holes.
                parameter.normal_(std=0.1)
    return twin


def count_parameters(size: str) -> dict[str, Any]:
    """Return the parameters of a generator, and those that imputation adds."""
    named = dict(make_twin(size, imputes=True).named_parameters())
    total = sum(tensor.numel() for tensor in named.values())
    added = sum(tensor.numel() for name, tensor in named.items() if "_updater." in name)
    return {
        "generator": size,
        "parameters": total,
        "imputation's": added,
        "%": 100 * added / total,
    }


def as_checkpoint(tensors: dict[str, Any]) -> Any:
    """Return the Flax checkpoint of tensors with the released names."""
    from migan_jax.families import from_tensors

    return from_tensors({k: v.detach().numpy() for k, v in tensors.items()})


def layer_params(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return a layer's parameters, given by PyTorch's names."""
    params: dict[str, Any] = {}
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        place = {"mask_updater": "certainty"}.get(owner, "estimator" if owner else "")
        array = tensor.detach().numpy()
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        (params.setdefault(place, {}) if place else params)[leaf] = array
    return params


def jitted(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    import jax

    compiled, arrays = jax.jit(function), jax.device_put(arguments)
    return lambda: jax.block_until_ready(compiled(*arrays))


def nchw(array: Any) -> Any:
    """Return an NHWC array as an NCHW tensor in the same order."""
    import torch

    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    return tensor.contiguous(memory_format=torch.channels_last)


def nhwc(tensor: Any) -> Any:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    main()
