"""Plans: what the programs of a recipe cost on a topology."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax

from migan_jax.errors import UserError
from migan_jax.planning.chips import Chip, open_topology
from migan_jax.planning.compilation import compile_programs, compiler_versions
from migan_jax.planning.estimate import Estimate, estimate
from migan_jax.planning.hlo import read_program
from migan_jax.training.programs import Programs, plan_programs
from migan_jax.training.timeline import Timeline

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage of a run: its step, and its lazy turns by interval."""

    name: str
    steps: int
    batch_size: int
    step: Estimate
    lazy: dict[int, Estimate]

    def mean(self, seconds: Callable[[Estimate], float]) -> float:
        """Average a time over steps, lazy turns included."""
        turns = (seconds(turn) / every for every, turn in self.lazy.items())
        return seconds(self.step) + sum(turns)

    @property
    def compute_seconds(self) -> float:
        """Mean time per step, without collectives."""
        return self.mean(lambda program: program.total.seconds)

    @property
    def link_seconds(self) -> float:
        """Mean time of collectives per step."""
        return self.mean(lambda program: program.link_seconds)

    @property
    def seconds(self) -> float:
        """Mean time per step if no collective overlaps with anything else."""
        return self.compute_seconds + self.link_seconds

    @property
    def peak_bytes(self) -> int:
        """Peak memory of its programs."""
        return max(program.memory.peak for program in (self.step, *self.lazy.values()))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe on a topology.

    Attributes:
      chips: number of chips; JAX has `devices`, more on some TPUs.
      mesh: devices over samples, and over rows of an image.
      available: bytes of a device's memory.
      state: bytes of what each device keeps, by name.
      stages: empty if a program is so large that it was not compiled.
      missing: bytes that do not fit, or 0.
    """

    recipe: str
    settings: tuple[str, ...]
    topology: str
    chip: str
    chips: int
    devices: int
    mesh: tuple[int, int]
    resolution: int
    batch_size: int
    microbatches: int
    dtype: str
    remat: bool
    available: float
    state: dict[str, int]
    stages: tuple[StagePlan, ...]
    missing: float
    versions: dict[str, str]

    @property
    def fits(self) -> bool:
        return bool(self.stages) and self.missing == 0

    @property
    def has_compiler_time(self) -> bool:
        """Return whether times are the compiler's estimates; else they are floors."""
        return all(stage.step.has_compiler_time for stage in self.stages)

    @property
    def days(self) -> float:
        """Duration of the run."""
        return sum(stage.steps * stage.seconds for stage in self.stages) / 86_400

    @property
    def chip_hours(self) -> float:
        return 24 * self.days * self.chips

    @property
    def images_per_second(self) -> float:
        """Of the whole run, over all chips."""
        images = sum(stage.steps * stage.batch_size for stage in self.stages)
        return images / (86_400 * self.days)

    @property
    def peak_bytes(self) -> float:
        if not self.stages:
            return self.available + self.missing
        return max(stage.peak_bytes for stage in self.stages)

    def to_json(self, price: float | None) -> dict[str, Any]:
        """Return everything, with the cost of all chips if one has a price per hour."""
        content = dataclasses.asdict(self)
        content |= {"fits": self.fits, "peak_bytes": self.peak_bytes}
        if self.stages:
            content |= {
                "days": self.days,
                "chip_hours": self.chip_hours,
                "images_per_second": self.images_per_second,
                "seconds_per_step": [stage.seconds for stage in self.stages],
            }
            content |= {"cost": self.chip_hours * price} if price else {}
        return content


@dataclasses.dataclass(frozen=True)
class Outline:
    """A recipe on a topology, before anything is compiled."""

    recipe: str
    settings: tuple[str, ...]
    topology: str
    chip: Chip
    programs: Programs
    timeline: Timeline
    networks: dict[str, str]  # names by class


def outline_plan(
    recipe: str, settings: tuple[str, ...], config: "ConfigDict", topology: str
) -> Outline:
    """Prepare a plan, or raise UserError if the recipe does not suit the topology.

    Args:
      recipe, settings: where the configuration comes from, for the report.
    """
    devices, chip = open_topology(topology)
    try:
        programs, timeline, networks = plan_programs(config, devices)
    except UserError as error:
        raise UserError(f"{topology}: {error}") from error
    names = {type(network).__name__: name for name, network in networks.items()}
    return Outline(recipe, settings, topology, chip, programs, timeline, names)


def make_plan(outline: Outline, dump: Path | None = None) -> Plan:
    """Compile the programs, or read them from the cache.

    Args:
      dump: a folder for the compiled programs' HLO.
    """
    programs, chip = outline.programs, outline.chip
    config, devices = programs.config, programs.mesh.size
    stages: list[StagePlan] = []
    missing = 0.0
    for span in outline.timeline.spans:
        compiled = compile_programs(programs, span, outline.topology, dump)
        missing = max(missing, *(program.missing for program in compiled.values()))
        if any(not program.hlo for program in compiled.values()):
            stages.clear()
            break
        estimates = {
            every: estimate(
                read_program(program.hlo, chip.float32_passes),
                chip,
                devices,
                SimpleNamespace(**program.memory),
                turns=[turn.name for group in span.stage.turns for turn in group],
                networks=outline.networks,
            )
            for every, program in compiled.items()
        }
        steps = span.end_step - span.first_step
        step = estimates.pop(1)
        stages.append(
            StagePlan(span.stage.name, steps, span.batch_size, step, estimates)
        )
        missing = max(missing, stages[-1].peak_bytes - chip.hbm_bytes)
    return Plan(
        recipe=outline.recipe,
        settings=outline.settings,
        topology=outline.topology,
        chip=chip.name,
        chips=devices // chip.devices_per_chip,
        devices=devices,
        mesh=programs.mesh.devices.shape,
        resolution=config.resolution,
        batch_size=config.batch_size,
        microbatches=config.microbatches,
        dtype=config.networks.dtype,
        remat=config.networks.remat,
        available=chip.hbm_bytes,
        state={
            "parameters": _bytes(programs.state.params),
            "optimizer state": _bytes(programs.state.opt_state),
            "EMA": _bytes(programs.state.ema),
            "frozen networks": _bytes(programs.frozen),
        },
        stages=tuple(stages),
        missing=missing,
        versions=compiler_versions(programs),
    )


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
