"""A whole training iteration of MI-GAN: ours beside PyTorch's, in time and in memory.

  python benchmarks/train_step.py --threads=2 --json=out/train_step.json

An iteration is the generator's step (the game, and distillation from a frozen
Co-Mod-GAN), the discriminator's on the same pictures with fakes of the generator as it
is by then, Adam for both, and the generator's EMA. Every 16th has an R1 step of the
discriminator besides, so that a sixteenth of it counts. Noise and the teacher's latents
are drawn anew for each.

Variants:
  ours             `training.step.make_step`, jitted, float32
  eager            the PyTorch twins, stepped as the reference steps its networks
  eager-kept       likewise, as the reference runs it: by a slip it keeps the teacher's
                   graph until the generator's backward pass, which does not use it
  eager-efficient  the twins without products with the zeros of up-sampling
  compiled         likewise, with `torch.compile`; not R1, since a compiled network has
                   no second derivative
  autocast         on a GPU only: eager-efficient, bfloat16, channels-last
  ours-bfloat16    on a GPU only: ours, networks in bfloat16

PyTorch's networks hold the nine kernels per convolution that the reference trains. Ours
store the one that they stand for, which takes the same path; tests hold it to that. The
other eight are memory and time that ours saves, not work that it leaves out.

All variants start from the same weights and see the same pictures, masks and first
latents (noise has strength zero then): the losses of the first steps must agree, or the
benchmark stops. The discriminator's is after an update of the generator that already
differs by what Adam makes of rounding, so less is asked of it.

Every variant has a process of its own, and they take turns; the fastest turn counts. In
between they give back what memory they can, since all stay alive.
  iteration s  a step and a sixteenth of an R1 step
  peak GB      on a CPU, the most resident memory of the process (not of compilers that
               it calls), less what it had once its libraries were loaded; on a GPU, the
               most that was allocated on it
  first GB     the same of the first turns, compilation included; "peak GB" is of those
               after them, but of both where it is JAX on a GPU
  x its speed, x its GB
               as against eager-kept, or eager where that is left out
  compile s    what the first turns took beyond the fastest, where a compiler is at work

A second table says where our time goes, in separately jitted pieces. A backward pass
counts as two forward ones, but as one through a network that is not trained; R1 is a
pass, its gradient, and the backward passes of both. The rate that this is compared
with is that of one large float32 matrix product.
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
}
OURS = {"ours": None, "ours-bfloat16": "bfloat16"}  # what the networks compute in
VARIANTS = ("ours", *TORCH, "ours-bfloat16")
GPU_ONLY = ("autocast", "ours-bfloat16")
COMPILING = ("ours", "compiled", "ours-bfloat16")

# Relative differences of the first losses, of which the last two follow an update.
TOLERANCES = {"generator": 1e-4, "discriminator": 1e-2, "r1": 5e-2}
BFLOAT16_TOLERANCE = 0.1
INTERVAL = 16  # iterations from one R1 step to the next


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, repeats=3)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--width", type=float, default=1.0, help="of all layers, to try things out"
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
            first_peaks[name] = worker.ask("peak_gigabytes")
    check_losses({name: losses for name, (_, losses) in firsts.items()})
    best = take_turns(workers, arguments.repeats)
    rows = []
    for name, worker in workers.items():
        step, penalty = best[name]["step"], best[name]["penalty"]
        compiling = sum(firsts[name][0].values()) - step - penalty
        iteration = step + penalty / INTERVAL
        row = {"variant": name, "step s": step, "R1 step s": penalty}
        row |= {"iteration s": iteration, "images/s": arguments.batch / iteration}
        row["peak GB"] = worker.ask("peak_gigabytes")
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
    """GPU or cores, and the variants that fit: before JAX or PyTorch start."""
    import torch

    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    wanted = os.environ.get("JAX_PLATFORMS", "cuda")
    arguments.gpu = torch.cuda.is_available() and wanted == "cuda"
    if not arguments.gpu:
        use_cores(arguments.threads)
    able = [name for name in VARIANTS if arguments.gpu or name not in GPU_ONLY]
    arguments.variants = arguments.variants or able
    for name in arguments.variants:
        if name not in able:
            sys.exit(f"error: --variants={name} needs a GPU, and JAX_PLATFORMS=cuda.")


def check_losses(losses: dict[str, dict[str, float]]) -> None:
    """Stop unless all variants began alike."""
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
    """The fastest turn of each kind, in seconds, by variant."""
    best = {name: {} for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            for kind in ("step", "penalty"):
                seconds, _ = worker.ask(kind)
                best[name][kind] = min(best[name].get(kind, seconds), seconds)
    return best


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """How many times as fast as PyTorch, as the reference runs it, and its memory."""
    by_name = {row["variant"]: row for row in rows}
    reference = by_name.get("eager-kept", by_name.get("eager"))
    if reference is None:
        return
    for row in rows:
        row["x its speed"] = reference["iteration s"] / row["iteration s"]
        row["x its GB"] = row["peak GB"] / reference["peak GB"]


def print_pieces(worker: "Worker", rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our pieces; their rows."""
    pieces = worker.ask("pieces")
    (whole,) = (row["iteration s"] for row in rows if row["variant"] == "ours")
    print()
    print_table(pieces["rows"])
    print(
        f"\nA large matrix product runs at {pieces['rate'] / 1e9:.3g} G multiply-adds "
        f"a second.\nThe pieces take {pieces['seconds']:.3g} s together, our iteration "
        f"{whole:.3g} s."
    )
    shares = {
        row["piece"]: row["% of iteration"]
        for row in pieces["rows"]
        if row["% of iteration"] != "-"
    }
    most = max(shares, key=shares.get)
    print(f"The most expensive piece: {most}, {shares[most]:.0f} % of an iteration.")
    return pieces["rows"]


class Worker:
    """A variant in a process of its own, which does what it is asked to."""

    def __init__(self, name: str, arguments: argparse.Namespace, inputs: dict):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, there = context.Pipe()
        context.Process(
            target=serve, args=(there, name, arguments, inputs), daemon=True
        ).start()
        there.close()

    def ask(self, request: str) -> Any:
        """The answer; what fails ends the benchmark."""
        answer, problem = self._exchange(request)
        if problem:
            sys.exit(f"error: {self.name}: {problem}")
        return answer

    def first_turns(self) -> tuple[dict[str, float], dict[str, float]] | None:
        """Seconds and losses; None, said aloud, where PyTorch cannot compile."""
        seconds, losses = {}, {}
        for kind in ("step", "penalty"):
            answer, problem = self._exchange(kind)
            if problem and self.name == "compiled":
                print(f"compiled: left out, {problem}", flush=True)
                return None
            if problem:
                sys.exit(f"error: {self.name}: {problem}")
            seconds[kind], told = answer
            losses |= told
            print(f"{self.name}: first {kind} {seconds[kind]:.3g} s", flush=True)
        return seconds, losses

    def _exchange(self, request: str) -> tuple[Any, str | None]:
        """Answer and problem, one of which is None."""
        self._pipe.send(request)
        try:
            return self._pipe.recv()
        except EOFError:
            return None, "its process ended, perhaps for lack of memory"


def serve(pipe: Any, name: str, arguments: argparse.Namespace, inputs: dict) -> None:
    """What a worker's process runs, until its parent has gone."""
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
            give_memory_back()
            pipe.send((answer, None))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            pipe.send((None, f"{type(error).__name__}: {lines[0]}"))


def give_memory_back() -> None:
    """Free heap to the system, where its C library can: the next one needs it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def make_variant(name: str, arguments: argparse.Namespace, inputs: dict) -> Any:
    """Ours or theirs; a process loads only what it needs."""
    if name in TORCH:
        from train_step_torch import Theirs

        return Theirs(arguments, inputs, **TORCH[name])
    from train_step_ours import Ours

    return Ours(arguments, inputs, dtype=OURS[name])


if __name__ == "__main__":
    main()
