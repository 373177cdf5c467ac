"""Train the runs that `docs/healthy.md` shows, and draw its pictures.

  python docs/healthy.py

Each run of scenes64 takes minutes on two cores. Runs are kept in --folder; complete
ones are not repeated. A figure shows the curves of a run, beside the first rows of its
last sample grid.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from PIL import Image

from migan_jax.training.curves import CURVES_FILE

DOCS = Path(__file__).parent
RUNS = {  # name: the recipe, and overridden settings
    "healthy": ("scenes64",),
    "collapse": (
        *("scenes64:baseline", "losses.r1_gamma=0"),
        *("optimizer.learning_rate=0.02", "total_kimg=3.6"),
    ),
    "divergence": ("scenes64", "optimizer.learning_rate=0.1", "total_kimg=3.6"),
}
HEIGHT, ROWS = 630, 5  # of a figure, in pixels; of its grid


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/healthy"))
    folder = parser.parse_args().folder
    for name, (recipe, *settings) in RUNS.items():
        train(folder / name, recipe, settings)
        path = DOCS / f"{name}.jpg"
        make_figure(folder / name).save(path, quality=85)
        print(path)


def train(workdir: Path, recipe: str, settings: list[str]) -> None:
    command = [
        *(sys.executable, "-m", "migan_jax.train"),
        *(f"--config={recipe}", f"--workdir={workdir}"),
        *(f"--config.{setting}" for setting in settings),
    ]
    subprocess.run(command, check=True)


def make_figure(workdir: Path) -> Image.Image:
    """Put the curves and the upper part of the newest grid side by side."""
    newest = max((workdir / "samples").glob("step_*.png"))
    with Image.open(workdir / CURVES_FILE) as curves, Image.open(newest) as grid:
        upper = grid.crop((0, 0, grid.width, grid.height * ROWS // 8))
        left, right = (
            image.convert("RGB").resize((image.width * HEIGHT // image.height, HEIGHT))
            for image in (curves, upper)
        )
    figure = Image.new("RGB", (left.width + right.width, HEIGHT), "white")
    figure.paste(left, (0, 0))
    figure.paste(right, (left.width, 0))
    return figure


if __name__ == "__main__":
    main()
