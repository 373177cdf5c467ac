"""Show networks, their parameters and multiply-adds, and the papers' numbers.

  # All networks at 256 px, and a picture of MI-GAN's forward pass:
  python -m migan_jax.summary --picture=forward.png
  # One network at another size:
  python -m migan_jax.summary --family=comodgan --resolution=512
  # The networks that a recipe trains:
  python -m migan_jax.summary --config=places512
  # The networks of a checkpoint:
  python -m migan_jax.summary --checkpoint=migan_512_places2.pt --picture=forward.png

The tables count multiply-adds of convolutions, dense layers and FIR filters. The papers
profile the reference implementation, which includes the stuffed zeros of up-sampling
and elementwise work. The lines below each table add these.
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
        "all)",
    )
    parser.add_argument(
        "--resolution", type=int, help="a power of two from 8 up (default: 256)"
    )
    which.add_argument(
        "--checkpoint",
        metavar="CKPT",
        type=Path,
        help="show the networks of this .pt, .safetensors or workdir",
    )
    which.add_argument(
        "--config",
        metavar="RECIPE[:VARIANT]",
        help="show the networks that this recipe trains",
    )
    parser.add_argument(
        "--picture",
        metavar="FILE",
        type=Path,
        help="also run the generator on a drawn scene with a hole and save input, "
        "output, completion and pyramid in one .png; without a checkpoint the weights "
        "are random and the completion is noise",
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
        raise UserError(f"--resolution: the {owner} sets it. Leave it out.")
    if arguments.checkpoint is not None:
        from migan_jax.families import load_checkpoints

        checkpoints = list(load_checkpoints(arguments.checkpoint).values())
        networks = [checkpoint.network for checkpoint in checkpoints]
    elif arguments.config is not None:
        networks = load_recipe_networks(arguments.config)
    else:
        networks = _build_networks(arguments.family, arguments.resolution or 256)
    if arguments.picture is not None:
        inpainting = _inpainting_networks(networks)
        _check_picture(arguments.picture, inpainting)
    for network in networks:
        print("\n".join(describe(network)), end="\n\n")
    if arguments.picture is not None:
        if not checkpoints:
            print("The weights are random, so the completion is noise.")
            checkpoints = _initialise(inpainting)
        save_forward_pass(checkpoints, arguments.picture)


def _inpainting_networks(networks: list["Network"]) -> list["Network"]:
    """Return the networks of the first one's family that inpaint together."""
    from migan_jax.families import can_inpaint, family_of

    if not can_inpaint(networks[0]):
        return []
    family = family_of(networks[0])
    return [n for n in networks if can_inpaint(n) and family_of(n) is family]


def load_recipe_networks(recipe: str) -> list["Network"]:
    """Return the networks that a recipe trains, without frozen ones."""
    import jax.numpy as jnp

    from migan_jax.config import load_config
    from migan_jax.families import family_named

    config = load_config(recipe, [], False)
    family = family_named(config.system)
    family.check_settings(config)
    return list(family.system(config, {}, jnp.float32).networks.values())


def describe(network: "Network") -> list[str]:
    """Return the lines of the network's table."""
    from migan_jax.families import name_of
    from migan_jax.models.costs import Cost, count

    costs = count(network, *network.inputs())
    parameters = count_parameters(network)
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
        millions = (cost.convolution + cost.filter) / 1e6
        lines.append(f"{block:<16}{total:>14,}{millions:>14,.1f} M")
    total = sum(costs.values(), Cost())
    millions = (total.convolution + total.filter) / 1e6
    lines.append(f"{'total':<16}{sum(parameters.values()):>14,}{millions:>14,.1f} M")
    return [
        *lines,
        *_trainable_state_lines(network),
        *_published_parameters_lines(network, sum(parameters.values())),
        *_paper_cost_lines(network, total),
    ]


def count_parameters(network: "Network") -> dict[str, int]:
    """Count trainable parameters per block, in the order of the forward pass."""
    from migan_jax.models.costs import parameters_by_block
    from migan_jax.weights.names import abstract_variables

    return parameters_by_block(abstract_variables(network)["params"])


def _trainable_state_lines(network: "Network") -> list[str]:
    """Report the parameters saved by storing n kernels as one."""
    import dataclasses

    from migan_jax.weights.kinds import has_kernels

    if not has_kernels(network) or network.reparam.form == "fused":
        return []
    expanded, collapsed = (
        sum(
            count_parameters(
                network.clone(reparam=dataclasses.replace(network.reparam, form=form))
            ).values()
        )
        for form in ("expanded", "collapsed")
    )
    return [
        f"trainable state: {network.reparam.kernels} kernels per convolution, "
        f"{expanded:,} parameters, stored as one: {expanded / collapsed:.1f}x fewer"
    ]


def _paper_cost_lines(network: "Network", cost: "Cost") -> list[str]:
    """Add up our count to the papers', line by line."""
    counted = cost.papers_total / 1e9
    lines = [
        ("convolutions and dense layers", cost.convolution),
        ("FIR filters", cost.filter),
        ("the reference's products with stuffed zeros", cost.zeros),
        ("elementwise: slopes, gains, noise, masks, sums", cost.elementwise),
        ("as the papers count", cost.papers_total),
    ]
    text = [f"  {name:<48}{value / 1e9:>9.3f} G" for name, value in lines]
    published = _published(network)
    if published is not None and published.multiply_adds is not None:
        paper = published.multiply_adds
        difference = f"{100 * (counted / paper - 1):+.2f} %"
        text[-1] += f"   (paper: {paper} G, {difference})"
    return text


def _published(network: "Network") -> "Published | None":
    """Return the papers' numbers, which exist for generators only."""
    from migan_jax.families import can_inpaint, family_of

    if not can_inpaint(network):
        return None
    return family_of(network).published(network)


def _published_parameters_lines(network: "Network", parameters: int) -> list[str]:
    """Report the parameter count beside the paper's, with FIR taps if it has them."""
    from migan_jax.weights.kinds import has_kernels
    from migan_jax.weights.names import fused_filter_taps

    published = _published(network)
    if published is None or published.parameters is None:
        return []
    if not has_kernels(network):
        return [f"parameters: {parameters:,}   (paper: {published.parameters:.3f} M)"]
    taps = sum(array.size for array in fused_filter_taps(network).values())
    return [
        f"parameters with the files' {taps:,} constant FIR taps: "
        f"{parameters + taps:,}   (paper: {published.parameters} M, the rest is "
        f"unexplained)"
    ]


def _check_picture(path: Path, networks: list["Network"]) -> None:
    """Raise UserError for mistakes before slow work starts."""
    if path.suffix != ".png":
        raise UserError(f"--picture={path}: the file name must end in .png.")
    if not networks:
        raise UserError(
            "--picture: a discriminator cannot inpaint. Choose a generator, such as "
            "--family=migan."
        )


def _build_networks(name: str | None, resolution: int) -> list["Network"]:
    """Build the named network, or all networks, with the papers' widths."""
    from migan_jax.config import did_you_mean
    from migan_jax.families import all_kinds
    from migan_jax.models.channels import levels
    from migan_jax.weights.architecture import MAX_RESOLUTION

    kinds = {kind.name: kind for kind in all_kinds()}
    if name is not None and name not in kinds:
        hint = did_you_mean(name, kinds) or f". Choose from {', '.join(sorted(kinds))}"
        raise UserError(f"--family: unknown network {name}{hint}.")
    if resolution > MAX_RESOLUTION:
        raise UserError(
            f"--resolution must be at most {MAX_RESOLUTION}, not {resolution}."
        )
    try:
        levels(resolution)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    chosen = kinds.values() if name is None else [kinds[name]]
    networks = [kind.module(resolution) for kind in chosen]
    fitting = [n for n in networks if resolution % getattr(n, "stride", 1) == 0]
    if not fitting:
        raise UserError(
            f"--resolution: {name} takes multiples of {networks[0].stride}, not "
            f"{resolution}."
        )
    return fitting


def _initialise(networks: list["Network"]) -> list["Checkpoint"]:
    """Initialise networks with random weights."""
    import jax
    import jax.numpy as jnp

    from migan_jax.weights.checkpoint import Checkpoint

    checkpoints = []
    for network in networks:
        zeros = [jnp.zeros(x.shape, x.dtype) for x in network.inputs()]
        variables = jax.jit(network.init)(jax.random.key(0), *zeros)
        stats = variables.get("stats", {})
        checkpoints.append(Checkpoint(network, variables["params"], stats))
    return checkpoints


def save_forward_pass(checkpoints: list["Checkpoint"], path: Path) -> None:
    """Fill the hole of a drawn scene; save inputs and outputs as one picture."""
    import numpy as np

    from migan_jax.inpainting import Model

    model = Model.of(*checkpoints)
    scene, known = (x[None] for x in draw_test_scene(model.network.resolution))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        output, stages, levels = _run(model, scene * known, known)
        times.append(time.perf_counter() - start)
    compile_s, run_s = times[0] - times[1], times[1]
    panels = {
        "input": scene * known + (1 - known),
        **{name: 2 * picture - 1 for name, picture in stages.items()},
        "completion": scene * known + np.clip(output, -1, 1) * (1 - known),
    }
    # To-RGB outputs, and outputs of untrained networks, are not in [-1, 1].
    for name, picture in {"network output": output, **levels}.items():
        picture = np.asarray(picture)
        limit = max(1.0, float(np.abs(picture).max()))
        panels[f"{name}, values to {limit:.2g}"] = picture / limit
    save_panels({name: np.asarray(x[0]) for name, x in panels.items()}, path)
    print(f"forward pass: compiled in {compile_s:.1f} s, ran in {run_s:.3f} s")
    print(f"picture: {path}")


def _run(model: "Model", image: Any, known: Any) -> tuple[Any, Any, Any]:
    """Return the output, those of earlier stages, and to-RGB outputs by level."""
    import numpy as np

    if not hasattr(model.network, "channel_base"):  # without levels
        _, stages = model.complete((image + 1) / 2, known, stages=True)
        return model.predict(image, known), stages, {}
    rgb, pyramid = model.forward(
        np.concatenate([known - 0.5, image], axis=-1), pyramid=True
    )
    levels = {f"to-RGB at {r} px": y for r, y in sorted(pyramid.items())}
    return np.asarray(rgb), {}, levels


def draw_test_scene(size: int) -> Any:
    """Draw sky, ground, ball and wall in [-1, 1]; also return a mask, 1 where known."""
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
    """Write labelled images of [-1, 1] as a sheet of four columns."""
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
