"""What the benchmarks share: one process on n cores, alternatives timed in turns.

A machine's speed drifts, so only ratios within one run mean anything: every repeat runs
every alternative once, and the minimum over repeats is what is compared.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# This folder comes after the packages: onnx.py in it is not onnx.
sys.path.append(sys.path.pop(0))


def benchmark_parser(documentation: str, repeats: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser


def use_cores(count: int) -> None:
    """Restrict this process; call before JAX or PyTorch start their thread pools."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    available = sorted(os.sched_getaffinity(0))
    if count > len(available):
        raise SystemExit(f"error: --threads={count}, but there are {len(available)}.")
    os.sched_setaffinity(0, available[:count])


def minimum_ms(
    alternatives: Mapping[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
    """Fastest of `repeats` turns each, in milliseconds, after one warm-up."""
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
    """Columns by name, numbers to three significant digits."""
    cells = [
        [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
        for row in rows
    ]
    header = list(rows[0])
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for line in [header, *cells]:
        print("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def save_json(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Write the rows where asked to."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")
