"""Shared by benchmarks: run on n cores, time alternatives in turn, print tables.

A machine's speed drifts, so compare ratios within one run only. Every repeat runs every
alternative once; the minimum over repeats counts.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Search this folder after the packages: its onnx.py must not hide the package onnx.
sys.path.append(sys.path.pop(0))


def benchmark_parser(documentation: str, repeats: int) -> argparse.ArgumentParser:
    """Make a parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser


def use_cores(count: int) -> None:
    """Restrict this process; call it before JAX or PyTorch start thread pools."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    available = sorted(os.sched_getaffinity(0))
    if count > len(available):
        raise SystemExit(
            f"error: --threads={count} exceeds the {len(available)} cores."
        )
    os.sched_setaffinity(0, available[:count])


def minimum_ms(
    alternatives: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
    """Time each alternative: the minimum of `repeats` runs after one warm-up, in ms."""
    for run in alternatives.values():
        run()
    best = dict.fromkeys(alternatives, float("inf"))
    for _ in range(repeats):
        for name, run in alternatives.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a table, with numbers to three significant digits."""
    cells = [
        [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
        for row in rows
    ]
    header = list(rows[0])
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for line in [header, *cells]:
        print("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def save_json(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Write the rows to a JSON file, if there is a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")
