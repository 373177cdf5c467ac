"""Show the networks, their parameters and multiply-adds, beside the papers' figures.

  # All networks at 256 px, and a picture of MI-GAN's forward pass:
  python -m migan_jax.summary --picture=forward.png
  # One of them, at another size:
  python -m migan_jax.summary --family=comodgan --resolution=512
  # What a recipe trains:
  python -m migan_jax.summary --config=places512
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
    from migan_jax.families import Published
    from migan_jax.inpainting import Model
    from migan_jax.models.costs import Cost
    from migan_jax.weights.checkpoint import Checkpoint
    from migan_jax.weights.kinds import Network


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("summary", __doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--family",
        metavar="NAME",
        help="show only this network, such as migan or migan_discriminator (default: "
        "all that there are)",
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
        help="show the networks of this .pt, .safetensors or workdir instead",
    )
    which.add_argument(
        "--config",
        metavar="RECIPE[:VARIANT]",
        help="show the networks that this recipe trains, in its sizes",
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
    checkpoints: list[Checkpoint] = []
    if arguments.resolution is not None and not (
        arguments.checkpoint is arguments.config is None
    ):
        owner = "recipe" if arguments.checkpoint is None else "checkpoint"
        raise UserError(f"--resolution: a {owner} has its own, leave it out.")
    if arguments.checkpoint is not None:
        from migan_jax.families import load_checkpoints

        checkpoints = list(load_checkpoints(arguments.checkpoint).values())
        networks = [checkpoint.network for checkpoint in checkpoints]
    elif arguments.config is not None:
        networks = networks_of(arguments.config)
    else:
        networks = _fresh(arguments.family, arguments.resolution or 256)
    if arguments.picture is not None:
        shown = _together(networks)
        _check_picture(arguments.picture, shown)
    for network in networks:
        print("\n".join(describe(network)), end="\n\n")
    if arguments.picture is not None:
        if not checkpoints:
            print("The weights are random, so the completion means nothing yet.")
            checkpoints = _initialised(shown)
        save_forward_pass(checkpoints, arguments.picture)


def _together(networks: list["Network"]) -> list["Network"]:
    """Those of the first one's family that complete pictures together."""
    from migan_jax.families import family_of, inpaints

    if not inpaints(networks[0]):
        return []
    family = family_of(networks[0])
    return [n for n in networks if inpaints(n) and family_of(n) is family]


def networks_of(recipe: str) -> list["Network"]:
    """Those that a recipe trains, its frozen ones left out."""
    import jax.numpy as jnp

    from migan_jax.config import load_config
    from migan_jax.families import family_named

    config = load_config(recipe, [], False)
    family = family_named(config.system)
    family.check_settings(config)
    return list(family.system(config, {}, jnp.float32).networks.values())


def describe(network: "Network") -> list[str]:
    """The network's table, line by line."""
    from migan_jax.families import name_of
    from migan_jax.models.costs import Cost, count

    costs = count(network, *network.inputs())
    parameters = parameters_of(network)
    title = name_of(network)
    if size := getattr(network, "resolution", None):
        title += f", {size} px"
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


def parameters_of(network: "Network") -> dict[str, int]:
    """Trainable parameters per block, in the order of the forward pass."""
    from migan_jax.models.costs import parameters_by_block
    from migan_jax.weights.names import abstract_variables

    return parameters_by_block(abstract_variables(network)["params"])


def _trainable_state(network: "Network") -> list[str]:
    """What storing n kernels as one saves."""
    import dataclasses

    from migan_jax.weights.kinds import has_kernels

    if not has_kernels(network) or network.reparam.form == "fused":
        return []
    expanded, collapsed = (
        sum(
            parameters_of(
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
    counted = cost.as_papers_count / 1e9
    lines = [
        ("convolutions and dense layers", cost.convolution),
        ("FIR filters", cost.filter),
        ("the reference's products with stuffed zeros", cost.zeros),
        ("elementwise: slopes, gains, noise, masks, sums", cost.elementwise),
        ("as the papers count", cost.as_papers_count),
    ]
    text = [f"  {name:<48}{value / 1e9:>9.3f} G" for name, value in lines]
    if published := _published(network):
        paper = published.multiply_adds
        difference = f"{100 * (counted / paper - 1):+.2f} %"
        text[-1] += f"   (paper: {paper} G, {difference})"
    return text


def _published(network: "Network") -> "Published | None":
    """Papers' figures, which are of what inpaints."""
    from migan_jax.families import family_of, inpaints

    if not inpaints(network):
        return None
    return family_of(network).published.get(network.resolution)


def _with_filter_taps(network: "Network", parameters: int) -> list[str]:
    """The paper's parameter count, which includes constants of the released files."""
    from migan_jax.weights.names import fused_filter_taps

    published = _published(network)
    if published is None or published.parameters is None:
        return []
    taps = sum(array.size for array in fused_filter_taps(network).values())
    return [
        f"parameters with the files' {taps:,} constant FIR taps: "
        f"{parameters + taps:,}   (paper: {published.parameters} M, the rest is "
        f"unexplained)"
    ]


def _check_picture(path: Path, shown: list["Network"]) -> None:
    """Say what is wrong before anything long is done."""
    if path.suffix != ".png":
        raise UserError(f"--picture={path}: choose a name that ends in .png.")
    if not shown:
        raise UserError(
            "--picture: a discriminator cannot inpaint, choose the generator's name."
        )


def _fresh(name: str | None, resolution: int) -> list["Network"]:
    """All networks in the papers' widths, or that of a name."""
    from migan_jax.config import nearest
    from migan_jax.families import all_kinds
    from migan_jax.models.channels import levels
    from migan_jax.weights.inference import HIGHEST_RESOLUTION

    kinds = {kind.name: kind for kind in all_kinds()}
    if name is not None and name not in kinds:
        near = nearest(name, kinds) or f", but {', '.join(sorted(kinds))}"
        raise UserError(f"--family: there is no {name}{near}.")
    if resolution > HIGHEST_RESOLUTION:
        raise UserError(
            f"--resolution: {resolution} is more than {HIGHEST_RESOLUTION}."
        )
    try:
        levels(resolution)
    except ValueError as error:
        raise UserError(f"--resolution: {error}") from error
    chosen = kinds.values() if name is None else [kinds[name]]
    return [kind.module(resolution) for kind in chosen]


def _initialised(networks: list["Network"]) -> list["Checkpoint"]:
    """With random weights."""
    import jax
    import jax.numpy as jnp

    from migan_jax.weights.checkpoint import Checkpoint

    made = []
    for network in networks:
        zeros = [jnp.zeros(x.shape, x.dtype) for x in network.inputs()]
        variables = jax.jit(network.init)(jax.random.key(0), *zeros)
        stats = variables.get("stats", {})
        made.append(Checkpoint(network, variables["params"], stats))
    return made


def save_forward_pass(checkpoints: list["Checkpoint"], path: Path) -> None:
    """Fill the hole of a drawn scene and save what went in and what came out."""
    import numpy as np

    from migan_jax.inpainting import Model

    model = Model.of(*checkpoints)
    scene, known = (x[None] for x in drawn_scene(model.network.resolution))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        output, before, levels = _run(model, scene * known, known)
        times.append(time.perf_counter() - start)
    compile_s, run_s = times[0] - times[1], times[1]
    panels = {
        "input": scene * known + (1 - known),
        **{name: 2 * picture - 1 for name, picture in before.items()},
        "completion": scene * known + np.clip(output, -1, 1) * (1 - known),
    }
    # Contributions, and the output of an untrained network, have ranges of their own.
    for name, picture in {"network output": output, **levels}.items():
        picture = np.asarray(picture)
        largest = max(1.0, float(np.abs(picture).max()))
        panels[f"{name}, values to {largest:.2g}"] = picture / largest
    save_panels({name: np.asarray(x[0]) for name, x in panels.items()}, path)
    print(f"forward pass: compiled in {compile_s:.1f} s, ran in {run_s:.3f} s")
    print(f"picture: {path}")


def _run(model: "Model", image: Any, known: Any) -> tuple[Any, Any, Any]:
    """The output, what came before it, and each level's part where there is one."""
    import numpy as np

    if len(model.checkpoints) > 1:
        _, before = model.complete((image + 1) / 2, known, stages=True)
        return model.predict(image, known), before, {}
    rgb, pyramid = model.forward(
        np.concatenate([known - 0.5, image], axis=-1), pyramid=True
    )
    levels = {f"to-RGB at {r} px": y for r, y in sorted(pyramid.items())}
    return np.asarray(rgb), {}, levels


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
