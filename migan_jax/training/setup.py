"""Setup of a run: checks settings, opens the data, and loads or makes the state."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from migan_jax.config import base_config, check_numbers, flat
from migan_jax.data.sources import Source
from migan_jax.data.splits import check_settings as check_data_settings
from migan_jax.data.splits import load_held_out, open_splits
from migan_jax.errors import UserError
from migan_jax.families import Family, family_named
from migan_jax.metrics import image
from migan_jax.systems.base import System, TrainState
from migan_jax.training.checkpoint import Checkpoints, Score
from migan_jax.training.devices import resolve_dtype
from migan_jax.training.feature_networks import open_shared_feature_networks
from migan_jax.training.identity import check_resume, run_identity
from migan_jax.training.mesh import replicated_sharding
from migan_jax.training.mirror import Mirror
from migan_jax.training.pretrained import Pretrained, read_pretrained, replace_weights
from migan_jax.training.profiler import profiled_steps
from migan_jax.training.programs import (
    build_system,
    initial_state,
    make_timeline,
    mesh_of,
    shapes_of,
)
from migan_jax.training.samples import InitialCompletions, Samples, make_score
from migan_jax.training.timeline import Timeline
from migan_jax.weights.kinds import kind_of
from migan_jax.weights.locations import find_checkpoint

if TYPE_CHECKING:
    from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16")
# Metrics of held-out images that can rank checkpoints.
SCORES = *image.NAMES, "lpips_alex", "lpips_vgg", "fid", "kid"


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run, ready for its next step."""

    config: "ConfigDict"
    workdir: Path
    mirror: Mirror | None  # uploads the workdir, if it is in a bucket
    family: Family
    system: System
    frozen: Mapping[str, Any]  # variables by network, on all devices
    mesh: Mesh
    key: jax.Array
    timeline: Timeline
    source: Source
    samples: Samples | None  # None: no images are held out
    score: Score
    checkpoints: Checkpoints
    identity: dict[str, Any]  # saved with each checkpoint
    state: TrainState  # donated by the first step
    first_step: int
    best: tuple[int, float] | None  # step and score of the best evaluation so far
    reporter_position: dict[str, Any] | None  # None: a new run
    clock: dict[str, Any] | None  # the checkpoint's; earlier versions stored none
    dtype_is_auto: bool

    @property
    def location(self) -> Mirror | Path:
        """The workdir as the user knows it."""
        return self.mirror or self.workdir

    @property
    def end_step(self) -> int:
        """The number of steps at which the run ends."""
        return max(self.timeline.end_step, self.first_step)


def check_settings(config: "ConfigDict") -> Family:
    """Return the family, or raise UserError if a setting is invalid."""
    check_numbers(config)
    family = family_named(config.system)
    if config.networks.dtype not in DTYPES:
        raise UserError(
            f"networks.dtype is {config.networks.dtype!r}, but must be one of "
            f"{', '.join(DTYPES)}."
        )
    if config.best_by not in SCORES:
        raise UserError(
            f"best_by is {config.best_by!r}, but must be one of {', '.join(SCORES)}."
        )
    if config.data.points and not family.points(config):
        raise UserError(
            f"data.points is given, but {family.title} takes no keypoints. Leave it "
            f"empty (--config.data.points=none)."
        )
    if family.points(config) and not config.data.points:
        raise UserError(
            f"system={config.system} needs {family.points(config)} keypoints for each "
            f"image: give them with --config.data.points, or train without keypoints."
        )
    profiled_steps(config.profile)
    check_data_settings(config)
    family.check_settings(config)
    return family


def set_up(
    config: "ConfigDict",
    workdir: Path,
    init_from: Path | None = None,
    force_resume: bool = False,
    mirror: Mirror | None = None,
) -> Setup:
    """Check the settings, open the data, and restore or initialise the state.

    Settings, data and pretrained weights are checked before the state is computed.
    """
    family = check_settings(config)
    system = build_system(config, {})  # frozen networks take long to load
    timeline = make_timeline(config, system)
    mesh = mesh_of(config, system, timeline)
    largest = max(config.resolution, *(span.resolution for span in timeline.spans))
    source, held_out = open_splits(config, largest)
    if source.points != (needed := family.points(config)):
        raise UserError(
            f"{config.data.points} has {source.points} keypoints for each image, but "
            f"this configuration needs {needed}."
        )
    validation = load_held_out(held_out, config)
    score = make_score(config.best_by, len(validation or ()))
    checkpoints = Checkpoints(
        workdir, config.keep_last, config.keep_best, score, mirror
    )
    earlier = checkpoints.newest_run()
    if init_from is not None and earlier is None:
        init_from = find_checkpoint(init_from)
    dtype_is_auto = config.networks.dtype == "auto"
    config = _resolve_config_dtype(config, earlier)
    frozen = family.load_frozen(config)
    system = build_system(config, frozen)
    for name in system.exported:  # fails now rather than when saving
        kind_of(system.networks[name], family.kinds)
    if unknown := frozen.keys() - family.frozen.keys():
        raise ValueError(f"{family.name}.frozen does not name {', '.join(unknown)}")
    identity = run_identity(
        config, family, source.fingerprint, held_out.fingerprint, frozen
    )
    pretrained = None
    if earlier is None:
        pretrained = _read_init(config, family, system, init_from)
    else:
        check_resume(identity, earlier, family, force_resume)
        if init_from is not None:
            logger.warning(
                "ignoring --init-from=%s, since %s holds a run, which is resumed. To "
                "start a new run, use another --workdir",
                init_from,
                mirror or workdir,
            )
    variables = {name: network.variables for name, network in frozen.items()}
    feature_networks = open_shared_feature_networks(config.best_by)
    samples = None
    if validation is None:
        logger.warning("no images are held out: no samples, no validation metrics")
    else:
        initial = InitialCompletions(
            workdir, is_new=earlier is None, is_shown=pretrained is not None
        )
        samples = Samples(
            system, validation, variables, feature_networks, config.seed, initial
        )
    state, run = _restore_or_init(config, system, mesh, checkpoints, pretrained)
    return Setup(
        config=config,
        workdir=workdir,
        mirror=mirror,
        family=family,
        system=system,
        frozen=_replicate(variables, mesh),
        mesh=mesh,
        key=_replicate(jax.random.key(config.seed), mesh),
        timeline=make_timeline(config, system),
        source=source,
        samples=samples,
        score=score,
        checkpoints=checkpoints,
        identity=identity,
        state=state,
        first_step=int(state.step),
        best=_previous_best(run, config, checkpoints),
        reporter_position=None if run is None else run["reporter"],
        clock=None if run is None else run.get("clock"),
        dtype_is_auto=dtype_is_auto,
    )


def _resolve_config_dtype(
    config: "ConfigDict", earlier: Mapping[str, Any] | None
) -> "ConfigDict":
    """Replace the dtype "auto"; a resumed run keeps its own."""
    previous = earlier and earlier["config"]["networks.dtype"]
    config = config.copy_and_resolve_references()
    config.networks.dtype = resolve_dtype(config.networks.dtype, previous)
    return config


def _read_init(
    config: "ConfigDict", family: Family, system: System, init_from: Path | None
) -> Pretrained | None:
    """Read the weights of --init-from, and check that they fit."""
    if init_from is None:
        family.check_init(config, ())
        return None
    shapes = jax.eval_shape(lambda: initial_state(config, system))
    pretrained = read_pretrained(init_from, system, shapes)
    family.check_init(config, pretrained.params)
    return pretrained


def _restore_or_init(
    config: "ConfigDict",
    system: System,
    mesh: Mesh,
    checkpoints: Checkpoints,
    pretrained: Pretrained | None,
) -> tuple[TrainState, dict[str, Any] | None]:
    """Return the newest checkpoint's state and run, or the initial state and None."""
    sharding = replicated_sharding(mesh)
    with jax.set_mesh(mesh):
        make = jax.jit(lambda: initial_state(config, system), out_shardings=sharding)
        shapes = jax.eval_shape(make)
    saved = checkpoints.restore(shapes_of(shapes, sharding))
    if saved is not None:
        logger.info("resuming at step %s", f"{int(saved.state.step):,}")
        return saved.state, saved.run
    state = make()
    if pretrained is not None:
        state = replace_weights(pretrained, state)
        logger.info(pretrained.summary)
    return state, None


def _previous_best(
    run: Mapping[str, Any] | None, config: "ConfigDict", checkpoints: Checkpoints
) -> tuple[int, float] | None:
    """Return step and score of the best evaluation, by the current best_by."""
    if run is None:
        return None
    before = flat(base_config()) | run["config"]
    if before["best_by"] == config.best_by:
        return run["best"]
    return checkpoints.best()


def _replicate(tree: Any, mesh: Mesh) -> Any:
    """Put the same arrays on every device of every process."""
    sharding = replicated_sharding(mesh)

    def put(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _replicate(jax.random.key_data(leaf), mesh)
            return jax.random.wrap_key_data(data)
        local = np.asarray(leaf)
        return jax.make_array_from_callback(
            local.shape, sharding, lambda index: local[index]
        )

    return jax.tree.map(put, tree)
