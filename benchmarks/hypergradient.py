"""What hypergradients cost: time and memory of one step on a CPU, by mode.

  python benchmarks/hypergradient.py --threads=2 --json=benchmarks/hypergradient.json
  python benchmarks/hypergradient.py --recipe=distillation_scenes64:net3 \\
      --settings batch_size=4 distillation.unrolled_steps=1

`exact`, `sgd_virtual` and `first_order` are steps of the main stage that train the meta
networks, too (distillation.hyper_mode). `unrolled` are the same steps of the network
with constant meta networks, and `one step` is a single one of these. Alternatives run
in turn, and the fastest run of each counts. Memory is that of temporary arrays, as the
compiler states it.
"""

import argparse
from typing import Any

from stage_steps import compile_steps
from timing import benchmark_parser, minimum_ms, print_table, save_json, use_cores

CONSTANT = "constant meta networks"
ROWS = {  # stage and settings
    "one step": (CONSTANT, ["distillation.unrolled_steps=1"]),
    "unrolled": (CONSTANT, []),
    "first_order": ("main", ["distillation.hyper_mode=first_order"]),
    "sgd_virtual": ("main", ["distillation.hyper_mode=sgd_virtual"]),
    "exact": ("main", ["distillation.hyper_mode=exact"]),
}


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, repeats=5)
    parser.add_argument("--recipe", default="distillation_scenes64:net8")
    parser.add_argument("--settings", nargs="*", default=[], help="key=value")
    parser.add_argument("--modes", nargs="+", choices=ROWS, default=list(ROWS))
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    use_cores(arguments.threads)
    # In every step: rarer updates have a program of their own.
    shared = [*arguments.settings, "distillation.meta_every=1"]
    steps = {}
    for name in arguments.modes:
        stage, settings = ROWS[name]
        print(f"compiling {name}", flush=True)
        compiled = compile_steps(arguments.recipe, [*shared, *settings], [stage])
        steps[name] = compiled[stage, 1]
    times = minimum_ms({n: step.run for n, step in steps.items()}, arguments.repeats)
    memory = {name: step.temporary_bytes / 1e6 for name, step in steps.items()}
    rows = list(make_rows(times, memory))
    print_table(rows)
    save_json(arguments.json, rows)


def make_rows(times: dict[str, float], memory: dict[str, float]) -> Any:
    """Yield the table, with ratios to the alternatives that take steps alone."""
    for name, ms in times.items():
        row = {"": name, "ms": ms, "MB": memory[name]}
        for base in ("unrolled", "one step"):
            if base in times:
                row[f"ms / {base}"] = ms / times[base]
                row[f"MB / {base}"] = memory[name] / memory[base]
        yield row


if __name__ == "__main__":
    main()
