"""Everything that a run is begun with: what is trained, on what data, from where."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from migan_jax.config import base_config, check_numbers, flat
from migan_jax.data.held_out import load_held_out
from migan_jax.data.opening import open_parts
from migan_jax.data.sources import Source
from migan_jax.errors import UserError
from migan_jax.families import Family, family_named
from migan_jax.metrics import image
from migan_jax.systems.base import Frozen, System, TrainState
from migan_jax.training import resuming
from migan_jax.training.checkpoint import Checkpoints, Score
from migan_jax.training.devices import resolved_dtype
from migan_jax.training.eyes import open_common_eyes
from migan_jax.training.mesh import everywhere, make_mesh
from migan_jax.training.samples import Beginning, Samples, score_of
from migan_jax.training.starting import Start, begin_with, read_start
from migan_jax.training.step import init_state
from migan_jax.training.timeline import Timeline
from migan_jax.weights.kinds import kind_of
from migan_jax.weights.locations import CHECKPOINTS, check_checkpoint

if TYPE_CHECKING:
    from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16")
# Figures of held-out pictures, to choose checkpoints by.
SCORES = *image.NAMES, "lpips_alex", "lpips_vgg", "fid", "kid"


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run, ready for its next step: nothing in it changes but what it holds."""

    config: "ConfigDict"
    workdir: Path
    family: Family
    system: System
    frozen: Mapping[str, Any]  # variables by network, everywhere
    mesh: Mesh
    key: jax.Array
    timeline: Timeline
    source: Source
    samples: Samples | None  # None: no pictures are held out
    score: Score
    checkpoints: Checkpoints
    identity: dict[str, Any]  # what a checkpoint notes of the run
    state: TrainState  # given away with the first step
    first_step: int
    best: tuple[int, float] | None  # step and score of the best evaluation so far
    reported: dict[str, Any] | None  # the reporter's position; None: the run begins
    dtype_is_chosen: bool  # by the devices

    @property
    def end_step(self) -> int:
        """The step before which the run ends."""
        return max(self.timeline.end_step, self.first_step)


def check_settings(config: "ConfigDict") -> Family:
    """Refuse settings of the training that make no sense, by their names."""
    check_numbers(config)
    family = family_named(config.system)
    if config.networks.dtype not in DTYPES:
        kinds = ", ".join(DTYPES)
        raise UserError(
            f"networks.dtype is one of {kinds}, not {config.networks.dtype!r}."
        )
    if config.best_by not in SCORES:
        raise UserError(
            f"best_by is one of {', '.join(SCORES)}, not {config.best_by!r}."
        )
    family.check_settings(config)
    return family


def build_system(config: "ConfigDict", frozen: Mapping[str, Frozen]) -> System:
    """The networks and losses that a configuration describes."""
    dtype = jnp.dtype(resolved_dtype(config.networks.dtype))
    return family_named(config.system).system(config, frozen, dtype)


def timeline_of(config: "ConfigDict", system: System) -> Timeline:
    """The stages of a run, one after another."""
    return Timeline(
        system.stages(),
        batch_size=config.batch_size,
        resolution=config.resolution,
        total_kimg=config.total_kimg,
    )


def first_state(config: "ConfigDict", system: System) -> TrainState:
    """The state before the first step, from the seed; to be jitted."""
    with_ema = config.optimizer.ema_halflife_kimg > 0
    return init_state(system, jax.random.key(config.seed), with_ema)


def set_up(
    config: "ConfigDict",
    workdir: Path,
    init_from: Path | None = None,
    force_resume: bool = False,
) -> Setup:
    """Check, open and read everything; only the first state is computed."""
    family = check_settings(config)
    if init_from is not None and not any((workdir / CHECKPOINTS).iterdir()):
        check_checkpoint(init_from)
    system = build_system(config, {})  # without what takes long to read
    mesh = make_mesh(
        config.mesh.space,
        {
            span.stage.name: (span.batch_size, span.resolution)
            for span in timeline_of(config, system).spans
        },
        config.parts,
        system.batch_multiple,
    )
    source, held_out = open_parts(config)
    pictures = load_held_out(held_out, config)
    score = score_of(config.best_by, len(pictures or ()))
    checkpoints = Checkpoints(workdir, config.keep_last, config.keep_best, score)
    earlier = checkpoints.newest_run()
    dtype_is_chosen = config.networks.dtype == "auto"
    config = _with_dtype(config, earlier)
    frozen = family.load_frozen(config)
    system = build_system(config, frozen)
    for name in system.exported:  # before they are saved for the first time
        kind_of(system.networks[name], family.kinds)
    if unknown := frozen.keys() - family.frozen.keys():
        raise ValueError(f"{family.name}.frozen does not name {', '.join(unknown)}")
    identity = resuming.identity(
        config, family, source.fingerprint, held_out.fingerprint, frozen
    )
    start = None
    if earlier is None:
        start = _read_start(config, family, system, init_from)
    else:
        resuming.check(identity, earlier, family, force_resume)
        if init_from is not None:
            logger.warning(
                "%s holds a run, which goes on: --init-from=%s is left aside; to begin "
                "with it, name another --workdir",
                workdir,
                init_from,
            )
    variables = {name: network.variables for name, network in frozen.items()}
    eyes = open_common_eyes(config.best_by)
    samples = None
    if pictures is None:
        logger.warning("no pictures are held out: there will be no samples")
    else:
        beginning = Beginning(
            workdir, is_new=earlier is None, is_shown=start is not None
        )
        samples = Samples(system, pictures, variables, eyes, config.seed, beginning)
    state, run = _begin(config, system, mesh, checkpoints, start)
    return Setup(
        config=config,
        workdir=workdir,
        family=family,
        system=system,
        frozen=_everywhere(variables, mesh),
        mesh=mesh,
        key=_everywhere(jax.random.key(config.seed), mesh),
        timeline=timeline_of(config, system),
        source=source,
        samples=samples,
        score=score,
        checkpoints=checkpoints,
        identity=identity,
        state=state,
        first_step=int(state.step),
        best=_best_of(run, config, checkpoints),
        reported=None if run is None else run["reporter"],
        dtype_is_chosen=dtype_is_chosen,
    )


def _with_dtype(
    config: "ConfigDict", earlier: Mapping[str, Any] | None
) -> "ConfigDict":
    """The configuration with the dtype that the run keeps from its beginning on."""
    before = earlier and earlier["config"]["networks.dtype"]
    config = config.copy_and_resolve_references()
    config.networks.dtype = resolved_dtype(config.networks.dtype, before)
    return config


def _read_start(
    config: "ConfigDict", family: Family, system: System, init_from: Path | None
) -> Start | None:
    """Weights to begin with, read and found to fit before anything is computed."""
    if init_from is None:
        family.check_start(config, ())
        return None
    shapes = jax.eval_shape(lambda: first_state(config, system))
    start = read_start(init_from, system, shapes)
    family.check_start(config, start.params)
    return start


def _begin(
    config: "ConfigDict",
    system: System,
    mesh: Mesh,
    checkpoints: Checkpoints,
    start: Start | None,
) -> tuple[TrainState, dict[str, Any] | None]:
    """The newest checkpoint's state and what was noted with it, or the first state."""
    place = everywhere(mesh)
    with jax.set_mesh(mesh):
        make = jax.jit(lambda: first_state(config, system), out_shardings=place)
        shapes = jax.eval_shape(make)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
    )
    saved = checkpoints.restore(like)
    if saved is not None:
        logger.info("resuming at step %s", f"{int(saved.state.step):,}")
        return saved.state, saved.run
    state = make()
    if start is not None:
        state = begin_with(start, state)
        logger.info(start.sentence)
    return state, None


def _best_of(
    run: Mapping[str, Any] | None, config: "ConfigDict", checkpoints: Checkpoints
) -> tuple[int, float] | None:
    """Of what was evaluated so far, by the score of now."""
    if run is None:
        return None
    before = flat(base_config()) | run["config"]
    if before["best_by"] == config.best_by:
        return run["best"]
    return checkpoints.best()


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device of every process."""
    place = everywhere(mesh)

    def put(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _everywhere(jax.random.key_data(leaf), mesh)
            return jax.random.wrap_key_data(data)
        local = np.asarray(leaf)
        return jax.make_array_from_callback(
            local.shape, place, lambda index: local[index]
        )

    return jax.tree.map(put, tree)
