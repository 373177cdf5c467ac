"""Everything that a run holds: what is trained, on what data, and its programs."""

import logging
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from migan_jax.config import base_config, flat
from migan_jax.data.held_out import HeldOut, load_held_out
from migan_jax.data.opening import open_parts
from migan_jax.data.pipeline import Batches, batches_of
from migan_jax.errors import UserError
from migan_jax.files import write_json
from migan_jax.training import building, overview, processes, resuming
from migan_jax.training.building import Teacher
from migan_jax.training.checkpoint import Checkpoints
from migan_jax.training.curves import CURVES_FILE, save_curves
from migan_jax.training.devices import (
    describe_dtype,
    idle_accelerator,
    resolved_dtype,
)
from migan_jax.training.eyes import open_common_eyes
from migan_jax.training.mesh import (
    everywhere,
    images_sharding,
    make_mesh,
    put_images,
    rows_of_process,
)
from migan_jax.training.reporting import Reporter
from migan_jax.training.samples import (
    BY_MEAN_COLOUR,
    Beginning,
    Samples,
    save_grid,
    score_of,
)
from migan_jax.training.starting import Start, begin_with, read_start
from migan_jax.training.step import (
    Step,
    TrainState,
    make_penalty_step,
    make_step,
)
from migan_jax.weights.locations import CHECKPOINTS, CONFIG_FILE, check_checkpoint

if TYPE_CHECKING:
    from jax.stages import Compiled
    from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

REJECTS_FILE = "rejected.json"


class Run:
    """A run, ready for its next step. `migan_jax.train.train` is its loop."""

    def __init__(
        self,
        config: "ConfigDict",
        workdir: Path,
        init_from: Path | None = None,
        force_resume: bool = False,
    ):
        building.check_settings(config)
        if init_from is not None and not any((workdir / CHECKPOINTS).iterdir()):
            check_checkpoint(init_from)
        self.workdir = workdir
        self.mesh = make_mesh(
            config.mesh.space, config.resolution, config.batch_size, config.parts
        )
        self._source, held_out = open_parts(config)
        pictures = load_held_out(held_out, config)
        self._score = score_of(config.best_by, len(pictures or ()))
        self._checkpoints = Checkpoints(
            workdir, config.keep_last, config.keep_best, self._score
        )
        self._earlier = self._checkpoints.newest_run()
        self._dtype_is_chosen = config.networks.dtype == "auto"
        self.config = config = self._with_dtype(config)
        teacher = building.load_teacher(config)
        self.system = building.build_system(config, teacher)
        self._optimizers = building.build_optimizers(config, self.system)
        self._identity = resuming.identity(
            config, self._source.fingerprint, held_out.fingerprint, teacher
        )
        start = self._check_start(init_from, force_resume)
        self._rows = rows_of_process(self.mesh, config.batch_size, config.resolution)
        self._frozen = self._everywhere(
            {"teacher": teacher.variables} if teacher else {}
        )
        self._key = self._everywhere(jax.random.key(config.seed))
        self._samples = self._open_samples(pictures, teacher, start)
        # Of the last evaluation, and the best value of the score; with their steps.
        self._figures: tuple[int, dict[str, float]] | None = None
        self._best: tuple[int, float] | None = None
        self._step: Compiled | None = None
        self._penalty_step: Compiled | None = None
        self._begin(start)
        self.total_steps = max(building.total_steps(config), self.first_step)
        if self.is_stale(self.first_step):
            self.total_steps = self.first_step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """Wait for what is being saved."""
        self._checkpoints.__exit__(*raised)

    def _with_dtype(self, config: "ConfigDict") -> "ConfigDict":
        """The configuration with the dtype that the run keeps from its beginning on."""
        earlier = self._earlier and self._earlier["config"]["networks.dtype"]
        config = config.copy_and_resolve_references()
        config.networks.dtype = resolved_dtype(config.networks.dtype, earlier)
        return config

    def _check_start(self, init_from: Path | None, force_resume: bool) -> Start | None:
        """Weights to begin with, read and found to fit before anything is computed."""
        if self._earlier is not None:
            resuming.check(self._identity, self._earlier, force_resume)
            if init_from is not None:
                logger.warning(
                    "%s holds a run, which goes on: --init-from=%s is left aside; to "
                    "begin with it, name another --workdir",
                    self.workdir,
                    init_from,
                )
            return None
        building.check_start(self.config, init_from)
        if init_from is None:
            return None
        levels_stay = self.config.optimizer.frozen_levels > 0
        shapes = jax.eval_shape(self._first_state)
        return read_start(init_from, self.system, shapes, levels_stay)

    def _first_state(self) -> TrainState:
        return building.first_state(self.config, self.system, self._optimizers)

    def _open_samples(
        self, pictures: HeldOut | None, teacher: Teacher | None, start: Start | None
    ) -> Samples | None:
        eyes = open_common_eyes(self.config.best_by)
        if pictures is None:
            logger.warning("no pictures are held out: there will be no samples")
            return None
        beginning = Beginning(
            self.workdir, is_new=self._earlier is None, is_shown=start is not None
        )
        return Samples(
            self.system, pictures, teacher, eyes, self.config.seed, beginning
        )

    def _everywhere(self, tree: Any) -> Any:
        """The same arrays on every device of every process."""
        place = everywhere(self.mesh)

        def put(leaf: Any) -> jax.Array:
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data = self._everywhere(jax.random.key_data(leaf))
                return jax.random.wrap_key_data(data)
            local = np.asarray(leaf)
            return jax.make_array_from_callback(
                local.shape, place, lambda index: local[index]
            )

        return jax.tree.map(put, tree)

    def _begin(self, start: Start | None) -> None:
        """The state to begin with: the newest checkpoint's, or the first."""
        with jax.set_mesh(self.mesh):
            make = jax.jit(self._first_state, out_shardings=everywhere(self.mesh))
            shapes = jax.eval_shape(make)
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=everywhere(self.mesh)
            ),
            shapes,
        )
        saved = self._checkpoints.restore(like)
        self._earlier = None if saved is None else saved.run
        if saved is not None:
            self.state, self.first_step = saved.state, int(saved.state.step)
            before = flat(base_config()) | self._earlier["config"]
            if before["best_by"] == self.config.best_by:
                self._best = self._earlier["best"]
            else:
                self._best = self._checkpoints.best()
            logger.info("resuming at step %s", f"{self.first_step:,}")
            return
        self.state, self.first_step = make(), 0
        if start is not None:
            self.state = begin_with(start, self.state)
            logger.info(start.sentence)

    def announce(self) -> None:
        """Say what is going to be done."""
        config, source = self.config, self._source.fingerprint
        data, space = self.mesh.devices.shape
        if jax.process_index() == 0:
            write_json(self.workdir / CONFIG_FILE, flat(config))
        for line in overview.describe_state(self.state):
            logger.info(line)
        logger.info(
            overview.check_disk(
                self.workdir, self.state, config.keep_last + config.keep_best
            )
        )
        logger.info(
            "data: %s, %s pictures, fingerprint %s",
            source.source,
            f"{len(self._source):,}",
            source.digest[:12],
        )
        if config.system == "migan":
            logger.info(
                "teacher: %s",
                config.teacher or "none, so nothing is distilled (config.teacher)",
            )
        logger.info(
            "devices: %d %s in %d process%s, batch of %d split %d ways%s",
            self.mesh.size,
            jax.devices()[0].device_kind,
            jax.process_count(),
            "" if jax.process_count() == 1 else "es",
            config.batch_size,
            data,
            f", images {space} ways by rows" if space > 1 else "",
        )
        if space > 1 and config.mesh.space == "auto":
            logger.info(
                "so that the batch stays what it is, %d devices share an image "
                "(mesh.space=auto)",
                space,
            )
        logger.info(describe_dtype(config.networks.dtype, self._dtype_is_chosen))
        if sentence := idle_accelerator():
            logger.warning(sentence)

    def compile(self) -> None:
        """Make the programs of an iteration, and of the lazy penalty after some."""
        config, place = self.config, everywhere(self.mesh)
        side, images = config.resolution, images_sharding(self.mesh)
        channels = {"image": 3}
        if self._source.has_masks or config.data.draw_masks_on == "host":
            channels["mask"] = 1
        batch = {
            name: jax.ShapeDtypeStruct(
                (config.batch_size, side, side, count), np.uint8, sharding=images
            )
            for name, count in channels.items()
        }
        self._batch_names = tuple(batch)

        steps = (
            make_step(
                self.system,
                self._optimizers,
                building.ema_decay(config),
                config.parts,
                building.waiting(config),
            ),
            make_penalty_step(self.system, self._optimizers, config.parts),
        )

        def compile_one(step: Step) -> "Compiled":
            program = jax.jit(step, donate_argnums=0, out_shardings=(place, place))
            with jax.set_mesh(self.mesh):
                lowered = program.lower(self.state, self._frozen, batch, self._key)
                return lowered.compile()

        start = time.perf_counter()
        logger.info("compiling; on large networks this takes minutes")
        with ThreadPoolExecutor(2) as pool:  # XLA works outside of Python's lock
            self._step, self._penalty_step = pool.map(compile_one, steps)
        logger.info("compiled in %.0f s", time.perf_counter() - start)
        named = {"a step": self._step, "R1": self._penalty_step}
        for line in overview.describe_memory(named):
            logger.info(line)

    # What the loop does, in the order in which it does it.

    def batches(self) -> Batches:
        """Uint8 batches from the first step on; to be used in a `with`."""
        report = self.workdir / REJECTS_FILE if jax.process_index() == 0 else None
        return batches_of(
            self.config,
            self._source,
            rows=self._rows,
            first_step=self.first_step,
            report=report,
        )

    def reporter(self) -> Reporter:
        """Metrics go on from the first step; to be used in a `with`."""
        return Reporter(
            self.workdir,
            total_steps=self.total_steps,
            batch_size=self.config.batch_size,
            log_every_steps=self.config.log_every_steps,
            nonfinite_steps=self.config.nonfinite_steps,
            first_step=self.first_step,
            earlier=None if self._earlier is None else self._earlier["reporter"],
        )

    def evaluate(self, reporter: Reporter, step: int) -> None:
        """Figures and a grid of the held-out pictures, and the curves."""
        with reporter.aside():
            if self._samples is not None:
                self._show_samples(reporter, step)
            if jax.process_index() == 0 and step > 0:
                save_curves(self.workdir)

    def _show_samples(self, reporter: Reporter, step: int) -> None:
        figures, grid = self._samples.evaluate(self.state)
        self._figures = step, figures
        score = self._score.of(figures)
        if not math.isfinite(score):
            logger.warning("step %d has no %s to choose by", step, self._score.name)
        elif self._best is None or score > self._best[1]:
            self._best = step, score
        reporter.write(step, {f"eval/{name}": v for name, v in figures.items()})
        reporter.show(step, "samples", grid)
        if jax.process_index() == 0:
            path = save_grid(self.workdir, step, grid)
            reporter.say(
                f"step {step:,}: held-out hole PSNR {figures['hole_psnr']:.2f} dB, "
                f"that of the mean colour {figures[BY_MEAN_COLOUR]:.2f} dB; {path}"
            )

    def is_stale(self, step: int) -> bool:
        """Whether the score has not improved for as long as is allowed.

        Only where it is measured at regular steps, so that stops between them do not
        matter.
        """
        patience = self.config.patience_kimg
        regular = step % self.config.save_every_steps == 0
        if patience is None or self._best is None or not regular:
            return False
        return (step - self._best[0]) * self.config.batch_size >= 1000 * patience

    def save(self, reporter: Reporter, step: int) -> None:
        """Begin to save the state, with everything reported up to it on the disk."""
        if not reporter.is_finite:
            logger.warning("step %d: not saved, its losses are not finite", step)
            return
        reporter.flush()
        run = {**self._identity, "reporter": reporter.position, "best": self._best}
        measured, figures = self._figures or (None, {})
        finite = {name: v for name, v in figures.items() if math.isfinite(v)}
        figures = finite if measured == step and self._score.name in finite else None
        with reporter.aside():
            self._checkpoints.save(self.state, self.system.generator, run, figures)

    def put(self, batch: dict[str, "np.ndarray"]) -> dict[str, jax.Array]:
        """A loaded batch on the devices, split."""
        arrays = {name: batch[name] for name in self._batch_names}
        return put_images(arrays, self._rows, self.mesh, self.config.batch_size)

    def meet(self) -> None:
        """Wait until all processes are ready for the first step."""
        processes.meet("before the first step")

    def advance(self, step: int, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Take a step; returns its metrics, which are still being computed."""
        rest = self._frozen, batch, self._key
        self.state, metrics = self._step(self.state, *rest)
        if step % self.config.losses.r1_interval == 0:
            self.state, told = self._penalty_step(self.state, *rest)
            metrics |= told
        return metrics

    def finish(self, reporter: Reporter, step: int) -> None:
        """Wait until everything is on the disk, and say what there is."""
        self._checkpoints.wait()
        reporter.flush()
        newest = max(self._checkpoints.steps(), default=None)
        if self.is_stale(step):
            reporter.say(self._stale_sentence())
        elif step < self.total_steps:
            saved = "saved" if newest == step else f"saved is {newest or 'nothing'}"
            reporter.say(
                f"stopped at step {step:,}, {saved}: the same command goes on there"
            )
            return
        if newest != step:
            kept = "there is no checkpoint yet"
            if newest is not None:
                kept = f"the newest checkpoint is of step {newest:,}"
            raise UserError(
                f"The run has ended at step {step:,} with losses or weights that are "
                f"not finite; {kept}."
            )
        reporter.say(self._farewell(step))

    def _stale_sentence(self) -> str:
        best, score = self._best
        value = score if self._score.more_is_better else -score
        if best == 0:
            which = "was that of the beginning"
        elif best in self._checkpoints.steps():
            which = f"was step {best:,}'s ({self.workdir / CHECKPOINTS / str(best)})"
        else:
            which = f"was step {best:,}'s, which is not kept"
        return (
            f"the held-out {self._score.name} has not improved for "
            f"{self.config.patience_kimg} kimg: the best, {value:.4g}, {which}"
        )

    def _farewell(self, step: int) -> str:
        python = Path(sys.executable)
        here = python.is_relative_to(Path.cwd())  # as where make has installed it
        python = python.relative_to(Path.cwd()) if here else "python"
        image, mask, options, what = "PHOTO", "MASK", "", "your photo"
        if self._samples is not None and jax.process_index() == 0:
            image, mask = self._samples.save_example(self.workdir)
            # Its mask is exact; those of photos want the margin that is the default.
            options, what = " --feather=0", "the first of the samples"
        curves = f", curves in {self.workdir / CURVES_FILE}" if step else ""
        return (
            f"finished {step:,} steps{curves}. Next, fill {what}:\n"
            f"  {python} -m migan_jax.inpaint --checkpoint={self.workdir} \\\n"
            f"      --image={image} --mask={mask} \\\n"
            f"      --output=inpainted.png{options}"
        )
