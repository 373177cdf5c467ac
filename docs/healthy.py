"""Train the runs that `docs/healthy.md` shows, and draw its pictures.

  python docs/healthy.py

Each is a run of scenes64, some minutes on two cores. They are kept in --folder, and
those that are complete are not repeated. A picture has a run's curves, and beside them
the first rows of its last sample grid.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from PIL import Image

from migan_jax.training.curves import CURVES_FILE

DOCS = Path(__file__).parent
RUNS = {  # name: the recipe, and settings that are not its own
    "healthy": ("scenes64",),
    "collapse": (
        *("scenes64:baseline", "losses.r1_gamma=0"),
        *("optimizer.learning_rate=0.02", "total_kimg=3.6"),
    ),
    "divergence": ("scenes64", "optimizer.learning_rate=0.1", "total_kimg=3.6"),
}
HEIGHT, ROWS = 630, 5  # of a picture, and of a grid in it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/healthy"))
    folder = parser.parse_args().folder
    for name, (recipe, *settings) in RUNS.items():
        train(folder / name, recipe, settings)
        path = DOCS / f"{name}.jpg"
        picture_of(folder / name).save(path, quality=85)
        print(path)


def train(workdir: Path, recipe: str, settings: list[str]) -> None:
    command = [
        *(sys.executable, "-m", "migan_jax.train"),
        *(f"--config={recipe}", f"--workdir={workdir}"),
        *(f"--config.{setting}" for setting in settings),
    ]
    subprocess.run(command, check=True)


def picture_of(workdir: Path) -> Image.Image:
    """Curves, and the upper part of the newest grid, as high as they are."""
    newest = max((workdir / "samples").glob("step_*.png"))
    with Image.open(workdir / CURVES_FILE) as curves, Image.open(newest) as grid:
        upper = grid.crop((0, 0, grid.width, grid.height * ROWS // 8))
        parts = [part.convert("RGB") for part in (curves, upper)]
    parts = [
        part.resize((part.width * HEIGHT // part.height, HEIGHT)) for part in parts
    ]
    picture = Image.new("RGB", (sum(part.width for part in parts), HEIGHT), "white")
    picture.paste(parts[0], (0, 0))
    picture.paste(parts[1], (parts[0].width, 0))
    return picture


if __name__ == "__main__":
    main()
