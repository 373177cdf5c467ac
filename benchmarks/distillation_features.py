"""Features of holes with and without distillation, as in the paper's Figure 1.

  python -m migan_jax.train --config=distillation_scenes64:net3 --workdir=runs/guided
  python -m migan_jax.train --config=distillation_scenes64:net3 --workdir=runs/plain \\
      --config.distillation.cross_distillation=false \\
      --config.distillation.self_distillation=false
  python benchmarks/distillation_features.py --guided=runs/guided --plain=runs/plain \\
      --output=docs/features.jpg

An encoder's features of the masked image are compared with its features of the whole
image, on held-out scenes: the mean absolute difference over channels, relative to the
mean absolute feature of the whole image. 0 means that the encoder knows the features of
the hole. The picture shows maps of some scenes, with their means in holes; the table
has those of all scenes. At each level, a pixel is in the hole if any of its pixels is.
"""

import argparse
from pathlib import Path
from typing import Any

from timing import print_table, save_json

RECIPE = "distillation_scenes64"
BATCH = 8  # scenes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("guided", "plain"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="WORKDIR")
    parser.add_argument("--output", type=Path, help="write the picture here")
    parser.add_argument("--scenes", type=int, default=3, help="in the picture")
    parser.add_argument("--seed", type=int, default=0, help="of the runs")
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser.parse_args()


def main() -> None:
    import migan_jax

    arguments = parse_arguments()
    models = {
        "without": migan_jax.load(arguments.plain),
        "with": migan_jax.load(arguments.guided),
    }
    for model in models.values():
        if model.family.name != "distillation":
            raise SystemExit(f"error: {model} is not a network of distillation.")
    held_out = load_scenes(models["with"].network.resolution, arguments.seed)
    maps = {name: difference_maps(model, held_out) for name, model in models.items()}
    holes = holes_of_levels(held_out, maps["with"])
    rows = list(make_rows(maps, holes))
    print_table(rows)
    save_json(arguments.json, rows)
    if arguments.output:
        count = min(arguments.scenes, len(held_out))
        draw(held_out, maps, holes, count).savefig(arguments.output, dpi=90)


def load_scenes(size: int, seed: int) -> Any:
    from migan_jax.config import load_config
    from migan_jax.data.splits import load_held_out, open_splits

    settings = [f"resolution={size}", f"seed={seed}"]
    config = load_config(RECIPE, settings, tiny=False)
    return load_held_out(open_splits(config)[1], config)


def difference_maps(model: Any, held_out: Any) -> list[Any]:
    """Return each level's relative differences, [N, h, w]."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from migan_jax.systems.distillation import pack

    @jax.jit
    def compute(image: Any, mask: Any) -> list[Any]:
        def features(known: Any) -> Any:
            x = pack(image, known)
            return model.network.apply(model.checkpoint.variables, x)[1].encoder

        pairs = zip(features(mask), features(jnp.ones_like(mask)), strict=True)
        return [
            jnp.mean(jnp.abs(masked - whole), axis=-1)
            / jnp.mean(jnp.abs(whole), axis=(1, 2, 3))[:, None, None]
            for masked, whole in pairs
        ]

    found = []
    for start in range(0, len(held_out), BATCH):
        rows = slice(start, start + BATCH)
        image = held_out.images[rows].astype(np.float32) / 127.5 - 1
        found.append(compute(image, held_out.masks[rows].astype(np.float32)))
    return [np.concatenate(level) for level in zip(*found, strict=True)]


def holes_of_levels(held_out: Any, maps: list[Any]) -> list[Any]:
    """Return the holes at each level, [N, h, w]."""
    import numpy as np

    from migan_jax.models.distillation import pool_hole

    hole = 1 - held_out.masks.astype(np.float32)
    return [np.asarray(pool_hole(hole, m.shape[1], "any"))[..., 0] > 0 for m in maps]


def make_rows(maps: dict[str, list[Any]], holes: list[Any]) -> Any:
    """Yield a row for each level: means in holes and around them."""
    for level, hole in enumerate(holes):
        row: dict[str, Any] = {"level": level + 1, "pixels": hole.shape[1]}
        for place, pixels in (("in holes", hole), ("around", ~hole)):
            for name, levels in maps.items():
                row[f"{place}, {name}"] = float(levels[level][pixels].mean())
        yield row


def draw(held_out: Any, maps: dict[str, Any], holes: list[Any], count: int) -> Any:
    """Draw a row for each scene: its input, and the maps of each level."""
    from matplotlib.figure import Figure

    from migan_jax.data.sheets import paint_hole

    columns = [(level, name) for level in range(len(holes)) for name in maps]
    width = 1 + len(columns)
    figure = Figure(figsize=(1.6 * width, 1.9 * count), layout="constrained")
    axes = figure.subplots(count, width, squeeze=False)
    for scene, (first, *others) in enumerate(axes):
        hole = held_out.masks[scene, ..., 0] == 0
        first.imshow(paint_hole(held_out.images[scene], hole))
        for plot, (level, name) in zip(others, columns, strict=True):
            shown, inside = maps[name][level][scene], holes[level][scene]
            top = max(levels[level][:count].max() for levels in maps.values())
            plot.imshow(shown, vmin=0, vmax=top, cmap="inferno")
            if inside.any():
                plot.set_xlabel(f"{shown[inside].mean():.2f}")
            if scene == 0:
                plot.set_title(f"level {level + 1},\n{name}", fontsize="medium")
    for plot in axes.flat:
        plot.set_xticks([])
        plot.set_yticks([])
    return figure


if __name__ == "__main__":
    main()
