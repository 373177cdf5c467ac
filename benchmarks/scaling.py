"""Training on 1 to 8 devices: the same losses, and what each device computes and sends.

  python benchmarks/scaling.py --json=out/scaling.json

Compiles the programs that `train` runs, a step and the lazy R1 turn, for meshes of CPU
devices (data x space): a small MI-GAN with a small teacher, and operations in the forms
that TPUs run. It stops unless, on every mesh,

  losses     of the first steps (--repeats) and an R1 turn are those of one device,
  MFLOP      of a device's convolutions and matrix products are as predicted: layers are
             split over the mesh, but those of small images over data only,
  gradients  are summed over devices once for each use of a parameter, in float32,
  rows       that devices exchange at borders are those that the program sends, of which
             XLA sends equal ones once.

A second table lists the other collectives. Bytes are those of whole arrays, for each
device. "all MFLOP" includes elementwise operations; XLA repeats them wherever it fuses
their results, so there is no prediction. Nothing is timed, as devices share the cores.

On meshes with a whole batch of 8 per device, blocks of small images are no strips. If
such devices share images, XLA splits some of these blocks by itself. It then computes
less and sends more than predicted.
"""

import argparse
import collections
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.extend.core import Literal
from jax.interpreters import partial_eval
from timing import benchmark_parser, print_table, save_json, use_cores

from migan_jax.config import load_config
from migan_jax.families import family_named, save_checkpoint
from migan_jax.models.comodgan import CoModGANGenerator
from migan_jax.models.costs import block_of, count
from migan_jax.ops import partition
from migan_jax.planning.hlo import read_program
from migan_jax.training.mesh import images_sharding, replicated_sharding
from migan_jax.training.programs import Programs, initial_state, plan_programs
from migan_jax.training.step import make_step
from migan_jax.training.timeline import Span
from migan_jax.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from jax.stages import Compiled
    from ml_collections import ConfigDict

MESHES = ["1x1", "2x1", "1x2", "2x2", "8x1", "4x2", "2x4"]
BATCH = 8
WIDTHS = {"channel_base": 512, "channel_max": 32}
CODES = {"z_dim": 16, "w_dim": 16, "encoder_dim": 16}
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",  # programs run once or twice
    # It would join all sums, and only name a few.
    "--xla_disable_hlo_passes=cpu-all-reduce-combiner",
)
MAX_LOSS_DIFFERENCE = 1e-3
MAX_DEVIATION = 0.15
MIN_LISTED = 0.05  # of the gradients' bytes
# A gradient's sum comes from a layer of a block.
GRADIENT = re.compile(r"transpose\(.*/b\d+/(?!batch_statistics)\w+/")

# Work of a network in a program, in forward passes: that of convolutions and products,
# and that of FIR filters. The gradient of a pass in its input costs one more, that in
# its kernels another one; filters have no kernels.
STEP_PASSES = {
    "teacher": (1, 1),
    # In its own turn, and in the discriminator's.
    "generator": (3 + 1, 2 + 1),
    # In the generator's turn, and with fake and with real images.
    "discriminator": (2 + 3 + 3, 2 + 2 + 2),
}
R1_PASSES = {"discriminator": (6, 4)}  # a pass and its gradient, both differentiated


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, repeats=2)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--meshes", nargs="+", default=MESHES, help="the first: 1x1")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    use_cores(arguments.threads)
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
    jax.config.update("jax_platforms", "cpu")
    use_tpu_forms()
    rows, others, expected = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder, "teacher.safetensors")
        save_teacher(teacher, arguments.resolution)
        for mesh in arguments.meshes:
            run = Run(mesh, arguments.resolution, teacher)
            for name, losses in run.losses(arguments.repeats).items():
                row, collectives = run.compare(name)
                deviation = max_difference(losses, expected.setdefault(name, losses))
                rows.append(row | {"loss difference": deviation or "-"})
                others += collectives
            print(f"{mesh}: as predicted", flush=True)
    print_table(rows)
    if others:
        print_table(others)
    save_json(arguments.json, rows)


def use_tpu_forms() -> None:
    """Run operations in the forms of TPUs."""
    lax.platform_dependent = lambda *arrays, default, tpu=None, **_: (tpu or default)(
        *arrays
    )
    partition.on_tpus = lambda: not jax.sharding.get_abstract_mesh().empty


def save_teacher(path: Path, resolution: int) -> None:
    """Write a small Co-Mod-GAN with initial weights."""
    network = CoModGANGenerator(resolution, **WIDTHS, **CODES)
    inputs = [np.zeros(x.shape, x.dtype) for x in network.inputs()]
    variables = jax.jit(network.init)(jax.random.key(1), *inputs)
    checkpoint = Checkpoint(network, variables["params"], variables["stats"])
    save_checkpoint(checkpoint, path, "training")


def small_config(resolution: int, space: int, teacher: Path) -> "ConfigDict":
    """Make a small recipe that differs from places256 in sizes."""
    settings = {
        "resolution": resolution,
        "batch_size": BATCH,
        "teacher": teacher,
        "mesh.space": space,
        "networks.dtype": "float32",
        **{f"networks.{name}": width for name, width in WIDTHS.items()},
    }
    pairs = [f"{key}={value}" for key, value in settings.items()]
    return load_config("places256", pairs, tiny=False)


def max_difference(losses: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """Return the maximum relative difference, or stop if it is not rounding."""
    relative = {
        name: abs(losses[name] - value) / abs(value) for name, value in expected.items()
    }
    worst = max(relative, key=relative.get)
    if not relative[worst] <= MAX_LOSS_DIFFERENCE:
        raise SystemExit(
            f"error: {worst} is {losses[worst]:.6g}, but {expected[worst]:.6g} on the "
            "first mesh."
        )
    return relative[worst]


class Run:
    """The programs of a run on a mesh."""

    def __init__(self, mesh: str, resolution: int, teacher: Path):
        self._mesh = mesh
        self._data, self._space = map(int, mesh.split("x"))
        config = small_config(resolution, self._space, teacher)
        devices = jax.devices()[: self._data * self._space]
        self._programs, timeline, self._networks = plan_programs(config, devices)
        self._span = timeline.at(0)
        (lazy,) = self._span.stage.lazy
        self._intervals = {"step": 1, "R1": lazy}
        with ThreadPoolExecutor() as pool:
            programs = pool.map(self._compile, self._intervals.values())
            self._compiled = dict(zip(self._intervals, programs, strict=True))
        shape = BATCH, resolution, resolution, 3
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        sharding = images_sharding(self._programs.mesh)
        self._batch = jax.device_put({"image": image}, sharding)

    def _compile(self, every: int) -> "Compiled":
        return self._programs.compile(self._programs.lower(self._span, every))

    def losses(self, steps: int) -> dict[str, dict[str, float]]:
        """Take steps and an R1 turn; return their metrics by program."""
        config, system = self._programs.config, self._programs.system
        sharding = replicated_sharding(self._programs.mesh)
        loaded = family_named(config.system).load_frozen(config)
        frozen = {name: network.variables for name, network in loaded.items()}
        key = jax.random.key(config.seed)
        frozen, key = jax.device_put((frozen, key), sharding)
        with jax.set_mesh(self._programs.mesh):
            make = jax.jit(
                lambda: initial_state(config, system), out_shardings=sharding
            )
            state = make()
        losses: dict[str, dict[str, float]] = {name: {} for name in self._intervals}
        for index, name in enumerate(["step"] * steps + ["R1"]):
            program = self._compiled[name]
            state, metrics = program(state, frozen, self._batch, key)
            losses[name] |= {f"{key} {index}": float(x) for key, x in metrics.items()}
        return losses

    def compare(self, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Compare a program with the predictions; list its other collectives."""
        every, params = self._intervals[name], self._programs.state.params
        found = measure(self._compiled[name])
        passes = STEP_PASSES if every == 1 else R1_PASSES
        flops = predict_flops(self._networks, passes, self._data, self._space)
        gradients = predict_gradients(params, every, self._data, self._space)
        # XLA may split the small images, too.
        most = predict_gradients(params, every, self._data * self._space, 1)
        sent = predict_rows(self._programs, self._span, every, self._batch)
        self._check(name, "FLOPs", found.flops, flops, flops)
        self._check(name, "bytes of gradients", found.gradients, gradients, most)
        self._check(name, "bytes of rows", found.rows, sent, sent)
        label = {"mesh": self._mesh, "program": name}
        row = label | {
            "MFLOP": found.flops / 1e6,
            "predicted": flops / 1e6,
            "ratio": found.flops / flops,
            "all MFLOP": found.all_flops / 1e6,
            "gradients kB": found.gradients / 1e3 or "-",
            "predicted kB": gradients / 1e3 or "-",
            "rows kB": found.rows / 1e3 or "-",
            "sent kB": sent / 1e3 or "-",
            "others kB": sum(found.others.values()) / 1e3 or "-",
        }
        others = [
            label
            | {
                "collective": kind,
                "kB": size / 1e3,
                "% of gradients": 100 * size / found.gradients,
                "operation": operation,
            }
            for (kind, operation), size in found.others.most_common()
            if size > MIN_LISTED * found.gradients
        ]
        return row, others

    def _check(
        self, name: str, what: str, found: float, minimum: float, maximum: float
    ) -> None:
        if not (
            (1 - MAX_DEVIATION) * minimum <= found <= (1 + MAX_DEVIATION) * maximum
        ):
            raise SystemExit(
                f"error: {self._mesh} {name}: {found:,.0f} {what} per device, but "
                f"{minimum:,.0f} to {maximum:,.0f} are predicted."
            )


# What a device does, as predicted.


def is_split(block: str) -> bool:
    """Return whether a block's images are split over space."""
    level = re.search(r"b(\d+)$", block)
    return level is not None and int(level[1]) >= partition.MIN_ROWS


def predict_flops(
    networks: Mapping[str, Any],
    passes: Mapping[str, tuple[int, int]],
    data: int,
    space: int,
) -> float:
    """Predict FLOPs of convolutions, products and filters."""
    total = 0.0
    for name, (products, filters) in passes.items():
        for block, cost in count(networks[name], *networks[name].inputs()).items():
            sample = 2 * (products * cost.convolution + filters * cost.filter)
            total += sample * BATCH / data / (space if is_split(block) else 1)
    return total


def predict_gradients(params: Any, every: int, data: int, space: int) -> int:
    """Predict bytes of the gradients that are summed over devices."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        network, *names = (part.key for part in path)
        block = block_of(names)
        if data > 1 or (space > 1 and is_split(block)):
            total += 4 * leaf.size * uses(network, block, names[-1], every)
    return total


def uses(network: str, block: str, name: str, every: int) -> int:
    """Return how often a program differentiates in a parameter."""
    if every == 1:
        return 1 if network == "generator" else 2  # with fake and with real images
    if network == "generator":
        return 0
    # R1 uses kernels in a pass and in its gradient. It depends on the pass, in which
    # the biases are, only up to the minibatch statistics; then D is piecewise linear.
    return 2 - (block == "b4") - (name == "bias")


def predict_rows(programs: Programs, span: Span, every: int, batch: Any) -> int:
    """Count bytes of the rows that a program sends to neighbours."""
    halflife = programs.config.optimizer.ema_halflife_kimg
    step = make_step(programs.system, span, ema_halflife_kimg=halflife, every=every)
    with jax.set_mesh(programs.mesh):
        closed = jax.make_jaxpr(step)(
            programs.state, programs.frozen, batch, programs.key
        )
    needed = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, needed)
    sent: dict[Any, int] = {}
    number_values(jaxpr, range(len(jaxpr.invars)), sent)
    return sum(sent.values())


def number_values(jaxpr: Any, inputs: Iterable[Any], sent: dict[Any, int]) -> list[Any]:
    """Number the values of a program, equal ones alike; return those of its outputs.

    `sent` gets the bytes of each `ppermute` by number.
    """
    numbers = dict(zip(jaxpr.invars, inputs, strict=True))
    numbers |= {constant: hash(constant) for constant in jaxpr.constvars}

    def number(value: Any) -> Any:
        return str(value) if isinstance(value, Literal) else numbers[value]

    for equation in jaxpr.eqns:
        operands = tuple(map(number, equation.invars))
        called = [value for value in equation.params.values() if hasattr(value, "eqns")]
        if len(called) == 1 and equation.primitive.name not in ("scan", "while"):
            body = getattr(called[0], "jaxpr", called[0])
            results = number_values(body, operands, sent)
        else:
            key = hash((equation.primitive, str(equation.params), operands))
            results = [hash((key, i)) for i in range(len(equation.outvars))]
            if equation.primitive.name == "ppermute":
                sent[key] = 4 * equation.invars[0].aval.size
        numbers.update(zip(equation.outvars, results, strict=True))
    return [number(value) for value in jaxpr.outvars]


# What a device does, as compiled.


class Measured(NamedTuple):
    """FLOPs and bytes of a program on a device."""

    flops: float
    all_flops: float
    gradients: float
    rows: float
    others: collections.Counter[tuple[str, str]]  # by kind and operation


def measure(compiled: "Compiled") -> Measured:
    """Read a compiled program."""
    text = compiled.as_text()
    program = read_program(text, {"default": 1, "high": 1, "highest": 1})
    # XLA on CPUs computes gradients of depthwise kernels between all pairs of channels,
    # [C, 3, 3, C], of which the diagonal is used.
    channels = dict(re.findall(r"%([\w.-]+) = f32\[(\d+),3,3,\2\]", text))
    flops = sum(op.flops / int(channels.get(op.name, 1)) for op in program.ops)
    unused = sum(op.flops for op in program.ops) - flops
    all_flops = compiled.cost_analysis()["flops"] - unused
    gradients = rows = 0.0
    others: collections.Counter[tuple[str, str]] = collections.Counter()
    for one in program.collectives:
        if one.kind == "all-reduce" and GRADIENT.search(one.op_name):
            gradients += one.bytes
        elif one.op_name.endswith("/ppermute"):
            rows += one.bytes
        else:
            others[one.kind, one.op_name.removeprefix("jit(step)/")] += one.bytes
    return Measured(flops, all_flops, gradients, rows, others)


if __name__ == "__main__":
    main()
