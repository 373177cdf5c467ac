"""Convert a checkpoint between formats, and between fused and trainable kernels.

INPUT is a .pt, .pth, .ckpt or .safetensors file or a run's workdir. The network (a
generator or discriminator of any family) and its sizes are inferred from its tensors.
Of a training checkpoint (.ckpt), only the averaged generator is read.
OUTPUT's extension selects the format; without an extension it is a workdir.

  # The released network, ready for fine-tuning:
  python -m migan_jax.convert migan_512_places2.pt runs/places --check
  # A trained network in the released format:
  python -m migan_jax.convert runs/mine migan_mine.pt --form=fused --check
  # Without pickle:
  python -m migan_jax.convert migan_256_ffhq.pt migan_256_ffhq.safetensors
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from migan_jax.config import run_verb, verb_parser
from migan_jax.errors import UserError
from migan_jax.weights.locations import find_checkpoint

if TYPE_CHECKING:
    from migan_jax.weights.checkpoint import Checkpoint

# Relative. Rounding in float32 stays far below, wrong conversions are far above.
CHECK_TOLERANCE = 1e-4


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("convert", __doc__)
    parser.add_argument("input", metavar="INPUT", type=Path, help="the checkpoint")
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        type=Path,
        help="a new .pt, .pth or .safetensors file, or a new workdir",
    )
    parser.add_argument(
        "--form",
        choices=("fused", "training"),
        help="fused: normalised kernels, as in the released networks. training: "
        "trainable kernels (a fused input is un-fused), as the reference's n kernels "
        "in a file and collapsed in a workdir. Default: fused for generators in a "
        "file, otherwise training",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the outputs of the written network and of a PyTorch twin that "
        "loads the input, print the largest difference, and fail if it is not rounding",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.input = find_checkpoint(arguments.input)
    from migan_jax.families import can_inpaint, load_checkpoints, save_checkpoint
    from migan_jax.files import remove
    from migan_jax.weights.checkpoint import is_file_name
    from migan_jax.weights.tensor_files import import_torch

    to_file = is_file_name(arguments.output)
    if arguments.check:
        import_torch("--check")  # fails before anything is written
    loaded = load_checkpoints(arguments.input).values()
    if arguments.check:
        from migan_jax.twins.build import check_has_twin

        for checkpoint in loaded:
            check_has_twin(checkpoint.network)
    all_inpaint = all(can_inpaint(checkpoint.network) for checkpoint in loaded)
    form = arguments.form or ("fused" if all_inpaint and to_file else "training")
    first, *others = loaded
    save_checkpoint(first, arguments.output, form, *others)
    written = load_checkpoints(arguments.output)
    print(f"read    {arguments.input}: {_describe(loaded)}")
    print(f"wrote   {arguments.output}: {_describe(written.values())}")
    if arguments.check and not check(arguments.input, written):
        remove(arguments.output)
        raise UserError(
            f"{arguments.output} was removed again, because it differs from "
            f"{arguments.input} by more than rounding."
        )


def check(source: Path, written: "Mapping[str, Checkpoint]") -> bool:
    """Compare the written networks with PyTorch twins that load the source."""
    from migan_jax.families import load_checkpoints, load_file

    original = load_checkpoints(source) if source.is_dir() else load_file(source)
    return all(check_network(original[role], written[role]) for role in written)


def check_network(original: "Checkpoint", written: "Checkpoint") -> bool:
    """Compare a network with the original's twin, on two images.

    Two, because discriminators compare the images of a batch.
    """
    import jax
    import numpy as np

    from migan_jax.families import to_tensors
    from migan_jax.twins.build import run_twin

    network = written.network
    rng = np.random.default_rng(0)
    shapes = [(2, *x.shape[1:]) for x in network.inputs()]
    inputs = [rng.standard_normal(shape, np.float32) for shape in shapes]
    expected = run_twin(original.network, to_tensors(original), *inputs)
    actual = jax.jit(network.apply)(written.variables, *inputs)
    # Generators return (rgb, pyramid).
    actual = np.asarray(actual[0] if isinstance(actual, tuple) else actual)
    worst, scale = np.abs(actual - expected).max(), np.abs(expected).max()
    print(f"checked largest difference {worst:.2e} at outputs up to {scale:.3g}")
    return bool(worst <= CHECK_TOLERANCE * scale)


def _describe(checkpoints: "Iterable[Checkpoint]") -> str:
    import jax

    from migan_jax.families import name_of
    from migan_jax.weights.kinds import has_kernels

    lines = []
    for checkpoint in checkpoints:
        network, form = checkpoint.network, ""
        if has_kernels(network):
            fused = network.reparam.form == "fused"
            form = ", fused form" if fused else ", training form"
        count = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.params))
        size = f"{network.resolution} px"
        lines.append(f"{name_of(network)}, {size}{form}, {count:,} parameters")
    return "; ".join(lines)


if __name__ == "__main__":
    run_verb(main)
