"""A whole training iteration of MI-GAN: our time and memory beside PyTorch's.

  python benchmarks/train_step.py --threads=2 --json=out/train_step.json
  python benchmarks/train_step.py --batch=32 --variants ours-bfloat16 compiled-autocast

An iteration is the generator's step (adversarial loss, and distillation from a frozen
Co-Mod-GAN), the discriminator's step on the same pictures with fakes of the updated
generator, Adam for both, and the generator's EMA. R1 is every 16th iteration, so a
sixteenth of its step counts. Each step draws new noise and latents of the teacher.

Variants:
  ours             `training.step.make_step`, jitted, float32
  eager            the PyTorch twins, trained as in the reference
  eager-kept       the same, as the reference runs it: it accidentally keeps the
                   teacher's graph until the generator's backward pass is done
  eager-efficient  the twins without multiplications by the zeros of up-sampling
  compiled         the same with `torch.compile`; R1 is not compiled, since a compiled
                   network has no second derivative
  autocast         GPUs only: eager-efficient in bfloat16, channels-last
  compiled-autocast
                   GPUs only: both, usually PyTorch's fastest
  ours-bfloat16    GPUs only: ours with networks in bfloat16

PyTorch's networks hold nine kernels per convolution, as the reference. Ours store their
sum, which takes the same trajectory, as tests prove. So ours saves memory and time
without leaving out work.

All variants start from the same weights and see the same pictures, masks and first
latents (the strength of the noise is zero then). The benchmark stops unless the losses
of the first steps agree. The discriminator's tolerance is larger, since Adam amplifies
rounding errors in the generator's update before it.

Each variant runs in its own process. They take turns, and the fastest turn counts. In
between they release memory, since all stay alive.
  iteration s  a step and a sixteenth of an R1 step
  peak GB      CPU: the process's maximum resident memory (without subprocesses), minus
               that after loading its libraries; GPU: the maximum allocated on it
  first GB     the same for the first turns, with compilation; "peak GB" is that of the
               later turns, except for JAX on a GPU, where it is of all
  x its speed, x its GB
               relative to eager-kept, or to eager without that
  compile s    how much longer the first turns took than the fastest ones

A second table shows where our time goes, in separately jitted pieces. A backward pass
counts as two forward passes, or as one through a frozen network. R1 is a forward pass,
its gradient, and the backward passes of both. The rate is compared with that of one
large float32 matrix product.
"""

import argparse
import ctypes
import gc
import multiprocessing
import os
import sys
import time
from typing import Any

from timing import benchmark_parser, print_table, save_json, use_cores

TORCH = {
    "eager": {"upsampling": "reference"},
    "eager-kept": {"upsampling": "reference", "keep_graph": True},
    "eager-efficient": {"upsampling": "efficient"},
    "compiled": {"upsampling": "efficient", "compiled": True},
    "autocast": {"upsampling": "efficient", "autocast": True},
    "compiled-autocast": {
        "upsampling": "efficient",
        "compiled": True,
        "autocast": True,
    },
}
OURS = {"ours": None, "ours-bfloat16": "bfloat16"}  # dtype of the networks
VARIANTS = ("ours", *TORCH, "ours-bfloat16")
GPU_ONLY = ("autocast", "compiled-autocast", "ours-bfloat16")
COMPILING = ("ours", "compiled", "compiled-autocast", "ours-bfloat16")

# Relative differences of the first losses; the last two follow an update.
TOLERANCES = {"generator": 1e-4, "discriminator": 1e-2, "r1": 5e-2}
BFLOAT16_TOLERANCE = 0.1
INTERVAL = 16  # iterations between R1 steps


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, repeats=3)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--width",
        type=float,
        default=1.0,
        help="relative width of all layers, for quick tries",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        help="default: all that this machine can run",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    prepare_machine(arguments)
    from train_step_ours import draw_inputs

    inputs = draw_inputs(arguments)
    workers, firsts, first_peaks = {}, {}, {}
    for name in arguments.variants:
        worker = Worker(name, arguments, inputs)
        first = worker.first_turns()
        if first is not None:
            workers[name], firsts[name] = worker, first
            first_peaks[name] = worker.call("peak_gigabytes")
    check_losses({name: losses for name, (_, losses) in firsts.items()})
    best = take_turns(workers, arguments.repeats)
    rows = []
    for name, worker in workers.items():
        step, penalty = best[name]["step"], best[name]["penalty"]
        compiling = sum(firsts[name][0].values()) - step - penalty
        iteration = step + penalty / INTERVAL
        row = {"variant": name, "step s": step, "R1 step s": penalty}
        row |= {"iteration s": iteration, "images/s": arguments.batch / iteration}
        row["peak GB"] = worker.call("peak_gigabytes")
        row["first GB"] = first_peaks[name]
        row["compile s"] = compiling if name in COMPILING else "-"
        rows.append(row)
    add_ratios(rows)
    print()
    print_table(rows)
    sys.stdout.flush()  # the pieces take minutes
    pieces = print_pieces(workers["ours"], rows) if "ours" in workers else []
    save_json(arguments.json, rows + pieces)


def prepare_machine(arguments: argparse.Namespace) -> None:
    """Choose GPU or cores and the variants, before JAX or PyTorch start."""
    import torch

    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    platform = os.environ.get("JAX_PLATFORMS", "cuda")
    arguments.gpu = torch.cuda.is_available() and platform == "cuda"
    if not arguments.gpu:
        use_cores(arguments.threads)
    possible = [name for name in VARIANTS if arguments.gpu or name not in GPU_ONLY]
    arguments.variants = arguments.variants or possible
    for name in arguments.variants:
        if name not in possible:
            sys.exit(f"error: --variants={name} needs a GPU, and JAX_PLATFORMS=cuda.")


def check_losses(losses: dict[str, dict[str, float]]) -> None:
    """Exit unless the first losses of all variants agree."""
    reference, expected = next(iter(losses.items()))
    for name, found in losses.items():
        rounded = {reference, name} & set(GPU_ONLY)
        for kind, tolerance in TOLERANCES.items():
            allowed = BFLOAT16_TOLERANCE if rounded else tolerance
            difference = abs(found[kind] / expected[kind] - 1)
            if not difference <= allowed:
                sys.exit(
                    f"error: {name}'s first {kind} loss is {found[kind]:.6g}, "
                    f"{reference}'s {expected[kind]:.6g}."
                )


def take_turns(workers: dict[str, "Worker"], repeats: int) -> dict[str, dict]:
    """Return the fastest turn of each kind, in seconds, by variant."""
    best = {name: {} for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            for kind in ("step", "penalty"):
                seconds, _ = worker.call(kind)
                best[name][kind] = min(best[name].get(kind, seconds), seconds)
    return best


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Add speed and memory relative to PyTorch as the reference runs it."""
    by_name = {row["variant"]: row for row in rows}
    reference = by_name.get("eager-kept", by_name.get("eager"))
    if reference is None:
        return
    for row in rows:
        row["x its speed"] = reference["iteration s"] / row["iteration s"]
        row["x its GB"] = row["peak GB"] / reference["peak GB"]


def print_pieces(worker: "Worker", rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print our pieces; return their rows."""
    pieces = worker.call("pieces")
    (whole,) = (row["iteration s"] for row in rows if row["variant"] == "ours")
    print()
    print_table(pieces["rows"])
    print(
        f"\nA large matrix product runs at {pieces['rate'] / 1e9:.3g} G multiply-adds "
        f"a second.\nThe pieces take {pieces['seconds']:.3g} s together, our iteration "
        f"{whole:.3g} s."
    )
    percentages = {
        row["piece"]: row["% of iteration"]
        for row in pieces["rows"]
        if row["% of iteration"] != "-"
    }
    piece = max(percentages, key=percentages.get)
    print(f"Most expensive: {piece}, {percentages[piece]:.0f} % of an iteration.")
    return pieces["rows"]


class Worker:
    """A variant in its own process, which calls the variant's methods by name."""

    def __init__(self, name: str, arguments: argparse.Namespace, inputs: dict):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, there = context.Pipe()
        context.Process(
            target=serve, args=(there, name, arguments, inputs), daemon=True
        ).start()
        there.close()

    def call(self, request: str) -> Any:
        """Return the result; exit on failure."""
        answer, problem = self._exchange(request)
        if problem:
            sys.exit(f"error: {self.name}: {problem}")
        return answer

    def first_turns(self) -> tuple[dict[str, float], dict[str, float]] | None:
        """Return seconds and losses, or None if PyTorch cannot compile here."""
        seconds, losses = {}, {}
        for kind in ("step", "penalty"):
            answer, problem = self._exchange(kind)
            if problem and self.name in TORCH and self.name in COMPILING:
                print(f"{self.name}: skipped, {problem}", flush=True)
                return None
            if problem:
                sys.exit(f"error: {self.name}: {problem}")
            seconds[kind], turn_losses = answer
            losses |= turn_losses
            print(f"{self.name}: first {kind} {seconds[kind]:.3g} s", flush=True)
        return seconds, losses

    def _exchange(self, request: str) -> tuple[Any, str | None]:
        """Return a result and a problem, one of them None."""
        self._pipe.send(request)
        try:
            return self._pipe.recv()
        except EOFError:
            return None, "its process died, perhaps out of memory"


def serve(pipe: Any, name: str, arguments: argparse.Namespace, inputs: dict) -> None:
    """Serve requests in a worker's process until its parent is gone."""
    variant = None
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            if variant is None:
                variant = make_variant(name, arguments, inputs)
            start = time.perf_counter()
            answer = getattr(variant, request)()
            if request in ("step", "penalty"):
                answer = (time.perf_counter() - start, answer)
            release_memory()
            pipe.send((answer, None))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            pipe.send((None, f"{type(error).__name__}: {lines[0]}"))


def release_memory() -> None:
    """Return free heap to the system, if the C library can: others need it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def make_variant(name: str, arguments: argparse.Namespace, inputs: dict) -> Any:
    """Make a variant; only its own libraries are loaded."""
    if name in TORCH:
        from train_step_torch import Theirs

        return Theirs(arguments, inputs, **TORCH[name])
    from train_step_ours import Ours

    return Ours(arguments, inputs, dtype=OURS[name])


if __name__ == "__main__":
    main()
