"""Convert a checkpoint between formats, and between fused and trainable kernels.

INPUT is a released or own .pt, a .safetensors file, or a run's workdir; sizes and the
family (MI-GAN, Co-Mod-GAN, their discriminators) are inferred from its tensors.
OUTPUT's ending decides what is written; a name without ending is a workdir.

  # The released network, ready for fine-tuning:
  python -m migan_jax.convert migan_512_places2.pt runs/places --check
  # A trained network in the released format, for any tool that reads it:
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
from migan_jax.weights.locations import check_checkpoint

if TYPE_CHECKING:
    from migan_jax.weights.checkpoint import Checkpoint

# Two implementations in float32 round differently; a wrong conversion is far above.
CHECK_TOLERANCE = 1e-4


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("convert", __doc__)
    parser.add_argument("input", metavar="INPUT", type=Path, help="what to read")
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        type=Path,
        help="what to write: .pt, .pth, .safetensors, or a workdir; must not exist",
    )
    parser.add_argument(
        "--form",
        choices=("fused", "training"),
        help="fused: kernels normalised once, as the released networks are; training: "
        "kernels that can be trained on (a fused input is un-fused; in files the "
        "reference's n kernels, in a workdir one). Default: fused for a generator's "
        "file, training otherwise",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run the written network beside its PyTorch twin, which loads the input, "
        "print the largest difference, and fail where it exceeds rounding",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    check_checkpoint(arguments.input)
    from migan_jax.families import inpaints, load_checkpoints, save_checkpoint
    from migan_jax.files import remove
    from migan_jax.weights.checkpoint import is_file_name
    from migan_jax.weights.reading import import_torch

    to_file = is_file_name(arguments.output)
    if arguments.check:
        import_torch("--check")  # before anything is written
    read = load_checkpoints(arguments.input).values()
    if arguments.check:
        from migan_jax.twins.build import refuse_without_twin

        for checkpoint in read:
            refuse_without_twin(checkpoint.network)
    shipped = all(inpaints(checkpoint.network) for checkpoint in read)
    form = arguments.form or ("fused" if shipped and to_file else "training")
    first, *others = read
    save_checkpoint(first, arguments.output, form, *others)
    written = load_checkpoints(arguments.output)
    print(f"read    {arguments.input}: {_describe(read)}")
    print(f"wrote   {arguments.output}: {_describe(written.values())}")
    if arguments.check and not check(arguments.input, written):
        remove(arguments.output)
        raise UserError(
            f"{arguments.input} and what was written differ by more than rounding, so "
            f"{arguments.output} was removed again."
        )


def check(source: Path, written: "Mapping[str, Checkpoint]") -> bool:
    """Print how far what was written is from PyTorch twins loaded with the source."""
    from migan_jax.families import load_checkpoints, load_file

    original = load_checkpoints(source) if source.is_dir() else load_file(source)
    return all(check_network(original[role], written[role]) for role in written)


def check_network(original: "Checkpoint", written: "Checkpoint") -> bool:
    """The same of one network.

    Two images, because discriminators compare those of a batch.
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
            kind = "fused" if network.reparam.form == "fused" else "training"
            form = f", {kind} form"
        count = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.params))
        size = f"{network.resolution} px"
        lines.append(f"{name_of(network)}, {size}{form}, {count:,} parameters")
    return "; ".join(lines)


if __name__ == "__main__":
    run_verb(main)
