"""Runs of the trainer that benchmarks compare: kept, and not repeated if complete."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def runs_parser(documentation: str, folder: str) -> argparse.ArgumentParser:
    """The options that these benchmarks have."""
    parser = argparse.ArgumentParser(
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path(folder), help="of the runs")
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser


def train(recipe: str, workdir: Path, settings: Sequence[str], *arguments: str) -> None:
    """Train to the end.

    Args:
      settings: "key=value", put over the recipe.
    """
    command = [
        *(sys.executable, "-m", "migan_jax.train", f"--config={recipe}"),
        f"--workdir={workdir}",
        *(f"--config.{setting}" for setting in settings),
        *arguments,
    ]
    cache = str((workdir.parent / "compiled").absolute())
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    subprocess.run(command, check=True, env=environment)
