"""Training runs for benchmarks; complete runs are not repeated."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def runs_parser(documentation: str, folder: str) -> argparse.ArgumentParser:
    """Make a parser with the options that these benchmarks share."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(folder), help="for the runs"
    )
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser


def train(recipe: str, workdir: Path, settings: Sequence[str], *arguments: str) -> None:
    """Train to the end; `settings` are "key=value" and override the recipe's."""
    command = [
        *(sys.executable, "-m", "migan_jax.train", f"--config={recipe}"),
        f"--workdir={workdir}",
        *(f"--config.{setting}" for setting in settings),
        *arguments,
    ]
    cache = str((workdir.parent / "compiled").absolute())
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    subprocess.run(command, check=True, env=environment)
