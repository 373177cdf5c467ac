"""Show the networks, their parameters and multiply-adds, beside the papers' figures.

  # All four networks at 256 px, and a picture of one forward pass:
  python -m migan_jax.summary --picture=forward.png
  # One of them, at another size:
  python -m migan_jax.summary --family=comodgan --resolution=512
  # What a checkpoint holds:
  python -m migan_jax.summary --checkpoint=migan_512_places2.pt --picture=forward.png

The papers count multiply-adds with a profiler on the reference implementation, which
also multiplies the zeros of up-sampling and counts elementwise work; below each table
our own count is led over to theirs, line by line.
"""

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from migan_jax.config import run_verb, verb_parser
from migan_jax.errors import UserError

if TYPE_CHECKING:
    from migan_jax.models.costs import Cost
    from migan_jax.weights.checkpoint import Checkpoint
    from migan_jax.weights.families import Network

FAMILIES = ("migan", "migan_discriminator", "comodgan", "comodgan_discriminator")

# Published for the generators: G multiply-adds, and M parameters with FIR taps.
PAPERS_MULTIPLY_ADDS = {
    ("migan", 256): 11.19,
    ("migan", 512): 15.69,
    ("comodgan", 256): 91.21,
    ("comodgan", 512): 121.09,
}
PAPERS_PARAMETERS = {("migan", 256): 5.95, ("migan", 512): 5.98}


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("summary", __doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--family",
        choices=FAMILIES,
        help="show only this network (default: all four)",
    )
    parser.add_argument(
        "--resolution",
        type=int,
        help="a power of two from 8 up (default: 256)",
    )
    which.add_argument(
        "--checkpoint",
        metavar="CKPT",
        type=Path,
        help="show the network of this .pt, .safetensors or workdir instead",
    )
    parser.add_argument(
        "--picture",
        metavar="FILE",
        type=Path,
        help="also run the generator on a drawn scene with a hole, and save input, "
        "output, completion and pyramid as one picture; without a checkpoint the "
        "weights are random, and the completion is noise",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    if arguments.checkpoint is not None:
        if arguments.resolution is not None:
            raise UserError("--resolution: a checkpoint has its own, leave it out.")
        from migan_jax.weights.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(arguments.checkpoint)
        networks = [checkpoint.network]
    else:
        checkpoint = None
        names = FAMILIES if arguments.family is None else (arguments.family,)
        networks = [_fresh(name, arguments.resolution or 256) for name in names]
    if arguments.picture is not None:
        _check_picture(arguments.picture, networks[0])
    for network in networks:
        print("\n".join(describe(network)), end="\n\n")
    if arguments.picture is not None:
        if checkpoint is None:
            print("The weights are random, so the completion means nothing yet.")
            checkpoint = _initialised(networks[0])
        save_forward_pass(checkpoint, arguments.picture)


def describe(network: "Network") -> list[str]:
    """The network's table, line by line."""
    from migan_jax.models.costs import Cost, count
    from migan_jax.weights.families import family_of
    from migan_jax.weights.names import abstract_inputs

    costs = count(network, *abstract_inputs(network))
    parameters = parameters_by_block(network)
    title = f"{family_of(network)}, {network.resolution} px"
    lines = [
        title,
        "=" * len(title),
        f"{'block':<16}{'parameters':>14}{'multiply-adds':>16}",
    ]
    for block, total in parameters.items():
        cost = costs.get(block, Cost())
        own = (cost.convolution + cost.filter) / 1e6
        lines.append(f"{block:<16}{total:>14,}{own:>14,.1f} M")
    total = sum(costs.values(), Cost())
    own = (total.convolution + total.filter) / 1e6
    lines.append(f"{'total':<16}{sum(parameters.values()):>14,}{own:>14,.1f} M")
    return [
        *lines,
        *_trainable_state(network),
        *_with_filter_taps(network, sum(parameters.values())),
        *_as_the_papers_count(network, total),
    ]


def parameters_by_block(network: "Network") -> dict[str, int]:
    """Trainable parameters per block, in the order of the forward pass."""
    import jax

    from migan_jax.models.costs import block_of
    from migan_jax.weights.names import abstract_variables

    blocks: dict[str, int] = {}
    params = abstract_variables(network)["params"]
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        block = block_of([part.key for part in path])
        blocks[block] = blocks.get(block, 0) + leaf.size

    def forward_order(block: str) -> tuple[int, int]:
        part, _, level = block.rpartition(" ")
        size = int(level[1:]) if level[1:].isdigit() else 0
        return (2, size) if part == "synthesis" else (1 if size else 0, -size)

    return {block: blocks[block] for block in sorted(blocks, key=forward_order)}


def _trainable_state(network: "Network") -> list[str]:
    """What storing n kernels as one saves."""
    import dataclasses

    from migan_jax.weights.families import has_kernels

    if not has_kernels(network) or network.reparam.form == "fused":
        return []
    expanded, collapsed = (
        sum(
            parameters_by_block(
                network.clone(reparam=dataclasses.replace(network.reparam, form=form))
            ).values()
        )
        for form in ("expanded", "collapsed")
    )
    return [
        f"trainable state: {network.reparam.kernels} kernels per convolution, "
        f"{expanded:,} parameters, stored as one: {expanded / collapsed:.1f}x fewer",
    ]


def _as_the_papers_count(network: "Network", cost: "Cost") -> list[str]:
    from migan_jax.weights.families import family_of

    counted = cost.as_papers_count / 1e9
    lines = [
        ("convolutions and dense layers", cost.convolution),
        ("FIR filters", cost.filter),
        ("the reference's products with stuffed zeros", cost.zeros),
        ("elementwise: slopes, gains, noise, masks, sums", cost.elementwise),
        ("as the papers count", cost.as_papers_count),
    ]
    text = [f"  {name:<48}{value / 1e9:>9.3f} G" for name, value in lines]
    key = (family_of(network), network.resolution)
    if published := PAPERS_MULTIPLY_ADDS.get(key):
        difference = f"{100 * (counted / published - 1):+.2f} %"
        text[-1] += f"   (paper: {published} G, {difference})"
    return text


def _with_filter_taps(network: "Network", parameters: int) -> list[str]:
    """The paper's parameter count, which includes constants of the released files."""
    from migan_jax.weights.families import family_of
    from migan_jax.weights.names import fused_filter_taps

    published = PAPERS_PARAMETERS.get((family_of(network), network.resolution))
    if published is None:
        return []
    taps = sum(array.size for array in fused_filter_taps(network).values())
    return [
        f"parameters with the files' {taps:,} constant FIR taps: "
        f"{parameters + taps:,}   (paper: {published} M, the rest is unexplained)"
    ]


def _check_picture(path: Path, network: "Network") -> None:
    """Say what is wrong before anything long is done."""
    from migan_jax.weights.families import GENERATORS, family_of

    if path.suffix != ".png":
        raise UserError(f"--picture={path}: choose a name that ends in .png.")
    if family_of(network) not in GENERATORS:
        raise UserError(
            "--picture: a discriminator cannot inpaint, choose the generator's family."
        )


def _fresh(family: str, resolution: int) -> "Network":
    from migan_jax.models.channels import levels
    from migan_jax.weights import families
    from migan_jax.weights.inference import HIGHEST_RESOLUTION

    if resolution > HIGHEST_RESOLUTION:
        raise UserError(
            f"--resolution: {resolution} is more than {HIGHEST_RESOLUTION}."
        )
    try:
        levels(resolution)
    except ValueError as error:
        raise UserError(f"--resolution: {error}") from error
    return families.FAMILIES[family](resolution)


def _initialised(network: "Network") -> "Checkpoint":
    import jax
    import jax.numpy as jnp

    from migan_jax.weights.checkpoint import Checkpoint
    from migan_jax.weights.names import abstract_inputs

    zeros = [jnp.zeros(x.shape, x.dtype) for x in abstract_inputs(network)]
    variables = jax.jit(network.init)(jax.random.key(0), *zeros)
    return Checkpoint(network, variables["params"], variables["stats"])


def save_forward_pass(checkpoint: "Checkpoint", path: Path) -> None:
    """Fill the hole of a drawn scene and save what went in and what came out."""
    import numpy as np

    from migan_jax.inpainting import Model

    model = Model(checkpoint)
    scene, known = drawn_scene(model.network.resolution)
    x = np.concatenate([known - 0.5, scene * known], axis=-1)[None]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        rgb, pyramid = model.forward(x, pyramid=True)
        rgb = np.asarray(rgb[0])
        times.append(time.perf_counter() - start)
    compile_s, run_s = times[0] - times[1], times[1]
    panels = {
        "input": scene * known + (1 - known),
        "completion": scene * known + np.clip(rgb, -1, 1) * (1 - known),
    }
    # Contributions, and the output of an untrained network, have ranges of their own.
    levels = {f"to-RGB at {r} px": y[0] for r, y in sorted(pyramid.items())}
    for name, output in {"network output": rgb, **levels}.items():
        output = np.asarray(output)
        largest = max(1.0, float(np.abs(output).max()))
        panels[f"{name}, values to {largest:.2g}"] = output / largest
    save_panels(panels, path)
    print(f"forward pass: compiled in {compile_s:.1f} s, ran in {run_s:.3f} s")
    print(f"picture: {path}")


def drawn_scene(size: int) -> Any:
    """A sky, a ground, a ball and a wall in [-1, 1], and a mask: 1 known, 0 hole."""
    import numpy as np

    y, x = np.mgrid[:size, :size] / size
    sky = np.stack([0.2 + 0.5 * y, 0.5 + 0.4 * y, np.full_like(y, 0.9)], axis=-1)
    stripes = 0.45 + 0.15 * np.sign(np.sin(40 * x / (y + 0.1)))
    ground = stripes[..., None] * [1.0, 0.9, 0.6]
    scene = np.where((y > 0.6)[..., None], ground, sky)
    scene[(x > 0.62) & (x < 0.9) & (y > 0.25) & (y < 0.75)] = [0.7, 0.3, 0.25]
    ball = (x - 0.35) ** 2 + (y - 0.55) ** 2 < 0.2**2
    scene[ball] = np.stack([0.2 + y, 0.6 * y, 1 - y], axis=-1)[ball]
    hole = (x > 0.42) & (x < 0.72) & (y > 0.35) & (y < 0.68)
    hole |= np.abs(y - 0.12 - 0.1 * np.sin(9 * x)) < 0.02
    return (2 * scene - 1).astype(np.float32), 1.0 - hole[..., None].astype(np.float32)


def save_panels(panels: dict[str, Any], path: Path) -> None:
    """Write labelled pictures side by side, four in a row, all at one size."""
    import numpy as np

    from migan_jax.data.sheets import contact_sheet
    from migan_jax.files import write_whole

    pictures = [
        np.clip((picture + 1) * 127.5, 0, 255).round().astype(np.uint8)
        for picture in panels.values()
    ]
    sheet = contact_sheet(pictures, side=256, columns=4, labels=list(panels))
    write_whole(path, lambda part: sheet.save(part, format="PNG"))


if __name__ == "__main__":
    run_verb(main)
