"""The programs of a run: the step of each stage, and its lazy turns.

A run compiles them for its devices, `plan` for devices that it need not have.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from migan_jax.families import family_named
from migan_jax.systems.base import Frozen, System, TrainState
from migan_jax.training.devices import resolve_dtype
from migan_jax.training.mesh import batch_sharding, make_mesh, replicated_sharding
from migan_jax.training.step import init_state, make_step
from migan_jax.training.timeline import Span, Timeline

if TYPE_CHECKING:
    from jax.stages import Compiled, Lowered
    from ml_collections import ConfigDict

# Options of the compiler by platform.
COMPILER_OPTIONS = {
    "tpu": {
        # It would turn rows into batch, and back, at each small convolution. Our strips
        # (ops/partition.py) do that where it pays; elsewhere it doubles the number of
        # operations, with which compilation time grows.
        "xla_tpu_run_space_to_batch": False,
        "xla_tpu_run_space_to_batch_on_new_platforms": False,
    },
}


@dataclasses.dataclass(frozen=True)
class Programs:
    """What the programs of a run are made of; arrays are given by their shapes."""

    config: "ConfigDict"
    system: System
    mesh: Mesh
    state: TrainState
    frozen: Mapping[str, Any]
    key: jax.ShapeDtypeStruct
    has_masks: bool  # of the user, which are loaded with the images
    points: int  # keypoints of each image, likewise

    def batch(self, span: Span) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the arrays of a stage's batches, as they are loaded, by name."""
        side, loads_masks = span.resolution, self.config.data.draw_masks_on == "host"
        arrays = {"image": ((side, side, 3), np.uint8)}
        if self.has_masks or loads_masks:
            arrays["mask"] = (side, side, 1), np.uint8
        if self.points:
            arrays["points"] = (self.points, 2), np.float32
        return {
            name: jax.ShapeDtypeStruct(
                (span.batch_size, *shape),
                dtype,
                sharding=batch_sharding(self.mesh, 1 + len(shape)),
            )
            for name, (shape, dtype) in arrays.items()
        }

    def lower(self, span: Span, every: int = 1) -> "Lowered":
        """Lower a stage's step (every = 1), or its lazy turns of an interval."""
        replicated = replicated_sharding(self.mesh)
        step = make_step(
            self.system,
            span,
            ema_halflife_kimg=self.config.optimizer.ema_halflife_kimg,
            microbatches=self.config.microbatches,
            every=every,
        )
        shardings = replicated, replicated
        program = jax.jit(step, donate_argnums=0, out_shardings=shardings)
        with jax.set_mesh(self.mesh):
            return program.lower(self.state, self.frozen, self.batch(span), self.key)

    def compile(
        self, lowered: "Lowered", options: Mapping[str, Any] = MappingProxyType({})
    ) -> "Compiled":
        """Compile a program for the devices of the mesh, with further options."""
        platform = self.mesh.devices.flat[0].platform
        options = {**COMPILER_OPTIONS.get(platform, {}), **options}
        with jax.set_mesh(self.mesh):
            return lowered.compile(compiler_options=options or None)


def plan_programs(
    config: "ConfigDict", devices: Sequence[jax.Device]
) -> tuple[Programs, Timeline, dict[str, Any]]:
    """Make the programs of a new run on these devices, without data or weights.

    Also returns the run's stages, and its networks with the frozen ones.
    """
    family = family_named(config.system)
    config = config.copy_and_resolve_references()
    config.networks.dtype = resolve_dtype(config.networks.dtype, device=devices[0])
    frozen = (family.outline_frozen or family.load_frozen)(config)
    system = build_system(config, frozen)
    timeline = make_timeline(config, system)
    mesh = mesh_of(config, system, timeline, devices)
    key = jax.random.key(config.seed)
    state = jax.eval_shape(lambda: initial_state(config, system))
    arrays = state, {name: network.variables for name, network in frozen.items()}, key
    state, variables, key = shapes_of(arrays, replicated_sharding(mesh))
    has_masks = config.data.masks is not None
    points = family.points(config)
    programs = Programs(config, system, mesh, state, variables, key, has_masks, points)
    networks = {name: one.network for name, one in frozen.items()}
    return programs, timeline, {**networks, **system.networks}


def build_system(config: "ConfigDict", frozen: Mapping[str, Frozen]) -> System:
    """Build the networks and losses of a configuration."""
    dtype = jnp.dtype(resolve_dtype(config.networks.dtype))
    return family_named(config.system).system(config, frozen, dtype)


def make_timeline(config: "ConfigDict", system: System) -> Timeline:
    """Make the schedule of a run's stages."""
    return Timeline(
        system.stages(),
        batch_size=config.batch_size,
        resolution=config.resolution,
        total_kimg=config.total_kimg,
    )


def initial_state(config: "ConfigDict", system: System) -> TrainState:
    """Return the state before the first step, from the seed; jit this."""
    with_ema = config.optimizer.ema_halflife_kimg > 0
    return init_state(system, jax.random.key(config.seed), with_ema)


def mesh_of(
    config: "ConfigDict",
    system: System,
    timeline: Timeline,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Make the mesh of a run, which fits the batches of all its stages."""
    batches = {
        span.stage.name: (span.batch_size, span.resolution) for span in timeline.spans
    }
    return make_mesh(
        config.mesh.space, batches, config.microbatches, system.batch_multiple, devices
    )


def peak_memory(analysis: Any) -> int:
    """Return the bytes that a compiled program needs on each device.

    Args:
      analysis: `compiled.memory_analysis()`. Its peak leaves out fragmentation, and for
        small TPU programs it lists no temporary arrays.
    """
    total = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    total += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    peak = max(total, analysis.peak_memory_in_bytes)
    return peak + analysis.generated_code_size_in_bytes


def shapes_of(tree: Any, sharding: Sharding) -> Any:
    """Return the shapes of arrays with this sharding."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
    )
