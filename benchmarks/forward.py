"""MI-GAN's forward pass on a CPU: Flax, PyTorch and onnxruntime.

  python benchmarks/forward.py --threads=2 --json=out/forward.json

All run the same fused weights on the same input. If outputs differ by more than 1e-4 of
their range, the benchmark stops. Alternatives:
  flax               jitted, NHWC, as in `model.forward`
  matrix products    only Flax's 1x1 convolutions, one call each on existing arrays
  torch reference    the twin in the released form: NCHW, eager, 4x4 filter on the
                     zero-stuffed image
  torch best         the twin with efficient up-sampling, channels-last, eager
  onnxruntime        the efficient twin, exported
  onnxruntime ref.   the reference twin, exported
"""

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import warnings
from pathlib import Path

from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

TOLERANCE = 1e-4


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, repeats=7)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    use_cores(arguments.threads)
    rows = []
    for resolution in arguments.resolutions:
        twins = make_twins(resolution)
        for batch in arguments.batches:
            alternatives = make_alternatives(twins, batch, arguments.threads)
            times = minimum_ms(alternatives, arguments.repeats)
            for name, milliseconds in times.items():
                row = {"pixels": resolution, "batch": batch, "alternative": name}
                row["ms"] = milliseconds
                for other in ("onnxruntime", "torch best", "flax"):
                    row[f"/ {other}"] = milliseconds / times[other]
                rows.append(row)
            print_table(rows[-len(times) :])
            print(flush=True)
    save_json(arguments.json, rows)


def make_twins(resolution: int) -> dict:
    """Make the twin in both forms, with the same random fused weights."""
    import torch

    from migan_jax.twins import migan

    torch.manual_seed(0)
    reference = migan.TorchMIGANGenerator(resolution).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim <= 1:
                parameter.normal_(std=0.1)
    efficient = migan.TorchMIGANGenerator(resolution, upsampling="efficient").eval()
    efficient.load_state_dict(reference.state_dict())
    return {"reference": reference, "efficient": efficient}


def make_alternatives(twins: dict, batch: int, threads: int) -> dict:
    """Make callables that each run one forward pass; check that they agree."""
    import jax
    import numpy as np
    import torch

    from migan_jax.families import from_tensors

    torch.set_num_threads(threads)
    state = twins["reference"].state_dict()
    checkpoint = from_tensors({k: v.numpy() for k, v in state.items()})
    network, variables = checkpoint.network, jax.device_put(checkpoint.variables)
    r = network.resolution
    x = np.random.default_rng(0).uniform(-1, 1, (batch, r, r, 4)).astype(np.float32)
    nchw = np.ascontiguousarray(np.moveaxis(x, -1, 1))

    forward = jax.jit(lambda variables, x: network.apply(variables, x)[0])
    images = torch.from_numpy(nchw)
    images_last = images.contiguous(memory_format=torch.channels_last)
    twin_last = twins["efficient"].to(memory_format=torch.channels_last)

    def run_torch(twin: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return twin(images).numpy()

    alternatives = {
        "flax": lambda: np.moveaxis(np.asarray(forward(variables, x)), -1, 1),
        "torch reference": lambda: run_torch(twins["reference"], images),
        "torch best": lambda: run_torch(twin_last, images_last),
        "onnxruntime": onnx_runner(twins["efficient"], nchw, threads),
        "onnxruntime ref.": onnx_runner(twins["reference"], nchw, threads),
    }
    expected = alternatives["torch reference"]()
    for name, run in alternatives.items():
        error = np.abs(run() - expected).max() / np.abs(expected).max()
        if not error <= TOLERANCE:
            sys.exit(f"error: {name} differs by {error:.1e} of the output's range.")
    alternatives["matrix products"] = matrix_products(network, batch)
    return alternatives


def onnx_runner(twin, nchw, threads: int):
    """Export to ONNX in memory and run it with onnxruntime."""
    import onnxruntime
    import torch

    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "migan.onnx"
        program = torch.onnx.export(twin, (torch.from_numpy(nchw),), dynamo=True)
        program.save(path, external_data=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: nchw})[0]


@contextlib.contextmanager
def quiet():
    """Silence the exporter, which prints its steps and internal warnings."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def matrix_products(network, batch: int):
    """Make a callable that runs only the network's 1x1 convolutions."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from migan_jax.models.layers import NormalisedConv, PointwiseConv
    from migan_jax.ops.conv import conv_pointwise

    shapes = []

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        layer = context.module
        if isinstance(layer, PointwiseConv | NormalisedConv):
            n, h, w, c = args[0].shape
            if getattr(layer, "resample", None) == "down":
                h, w = h // 2, w // 2
            shapes.append(((n, h, w, c), (1, 1, c, layer.features)))
        return result

    r = network.resolution
    with nn.intercept_methods(record):
        x = jax.ShapeDtypeStruct((batch, r, r, 4), jnp.float32)
        jax.eval_shape(network.init, jax.random.key(0), x)
    pairs = [tuple(jnp.ones(shape) for shape in pair) for pair in shapes]
    multiply = jax.jit(conv_pointwise)

    def run():
        for x, kernel in pairs:
            multiply(x, kernel).block_until_ready()

    return run


if __name__ == "__main__":
    main()
