"""Train MI-GAN, or its teacher.

  # A recipe that comes with the package, or a file of your own:
  python -m migan_jax.train --config=places512 --workdir=runs/a
  python -m migan_jax.train --config=my_recipe.py --workdir=runs/b
  # With other settings, and another variant of the recipe:
  python -m migan_jax.train --config=places256:baseline --workdir=runs/c \
      --config.batch_size=16 --config.data.source=photos
  # From weights that there are already:
  python -m migan_jax.train --config=places512 --workdir=runs/d \
      --init-from=migan_512_places2.pt

The same command again goes on where the run was stopped: by SIGTERM or Ctrl-C, which
save first, or by force. On several hosts, run it on each; TPU slices and SLURM are
noticed, elsewhere name --coordinator, --processes and --process-id. The workdir must be
a folder that all of them see.

WORKDIR gets checkpoints/ (for inpaint, convert and --init-from), samples/ with grids
of held-out pictures, curves.png, metrics.jsonl, tensorboard/, config.json, and
rejected.json with pictures that cannot be used.
"""

import argparse
import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from migan_jax.config import load_config, recipe_names, run_verb, verb_parser
from migan_jax.errors import UserError

if TYPE_CHECKING:
    from migan_jax.training.run import Run

logger = logging.getLogger(__name__)


class _SettingWithoutName(argparse.Action):
    """--config.KEY stands for all settings in the help; it is none itself."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error("--config.KEY=VALUE: name a setting instead of KEY")


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("train", __doc__)
    parser.add_argument(
        "--config",
        metavar="RECIPE[:VARIANT]",
        required=True,
        help=f"a file, or one of {', '.join(recipe_names())}",
    )
    parser.add_argument(
        "--workdir", metavar="DIR", type=Path, required=True, help="the run's folder"
    )
    parser.add_argument(
        "--config.KEY",
        metavar="VALUE",
        action=_SettingWithoutName,
        help="another value for a setting, such as --config.batch_size=16; "
        "migan_jax/config.py lists all",
    )
    parser.add_argument(
        "--init-from",
        metavar="CKPT",
        type=Path,
        help="begin with the weights of this .pt, .safetensors or workdir",
    )
    parser.add_argument(
        "--force-resume",
        action="store_true",
        help="go on with a changed configuration, dataset or teacher",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="two steps of a tiny version of the recipe on drawn scenes: does it run? "
        "In a workdir of its own",
    )
    several = parser.add_argument_group(
        "several processes, where nothing tells of them"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    several.add_argument(
        "--processes", metavar="N", type=int, help="how many there are"
    )
    several.add_argument(
        "--process-id", metavar="N", type=int, help="which this one is"
    )
    several.add_argument(
        "--connect-timeout",
        metavar="SECONDS",
        type=int,
        default=300,
        help="how long to wait for the others (default: 300)",
    )
    arguments, others = parser.parse_known_args()
    prefix = "--config."
    for other in others:
        if not other.startswith(prefix) or "=" not in other:
            parser.error(f"unknown argument {other}; settings are --config.KEY=VALUE")
    arguments.settings = [other.removeprefix(prefix) for other in others]
    return arguments


def main() -> None:
    arguments = parse_arguments()
    config = load_config(arguments.config, arguments.settings, arguments.smoke)
    from migan_jax.training import processes

    processes.connect(
        arguments.coordinator,
        arguments.processes,
        arguments.process_id,
        arguments.connect_timeout,
    )
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what it can do without
    workdir, source = arguments.workdir, arguments.init_from
    with (
        logs_of_one_process(),
        processes.ended_together(),
        processes.workdir_held(workdir),
    ):
        from migan_jax.training.run import Run

        with contextlib.closing(
            Run(config, workdir, source, arguments.force_resume)
        ) as run:
            train(run)


@contextlib.contextmanager
def logs_of_one_process() -> Iterator[None]:
    """Messages go to stderr, beside the bar; of several processes, the first's."""
    import jax
    from tqdm.contrib.logging import logging_redirect_tqdm

    first = jax.process_index() == 0
    logging.basicConfig(format="%(message)s", force=True)  # imports have set others
    logging.getLogger("migan_jax").setLevel(logging.INFO if first else logging.ERROR)
    # Orbax tells what it does, and of errors what it raises besides.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with logging_redirect_tqdm():
        yield


def train(run: "Run") -> None:
    """The loop. Its order matters: evaluate, save, next batch, step, report.

    A step's metrics are waited for when the next step is on its way.
    """
    from migan_jax.training.stopping import Stopping

    run.announce()
    if run.first_step < run.total_steps:
        run.compile()
    with Stopping() as stopping, run.batches() as batches, run.reporter() as reporter:
        pending = None
        for step in range(run.first_step, run.total_steps + 1):
            last = step == run.total_steps
            stop = stopping.asked(step)
            due = step % run.config.save_every_steps == 0 or last
            if (due or stop) and pending is not None:
                reporter.take(step, pending)
                pending = None
            fresh = step > run.first_step
            if due and (fresh or step == 0):
                run.evaluate(reporter, step)
            if (due or stop) and fresh:
                run.save(reporter, step)
            if last or stop or (due and run.is_stale(step)):
                break
            try:
                with reporter.waiting():
                    batch = run.put(next(batches))
            except UserError:
                if not stopping.told:
                    raise
                # The signal went to the processes that load, too.
                if fresh and not due:
                    if pending is not None:
                        reporter.take(step, pending)
                    run.save(reporter, step)
                break
            metrics = run.advance(step, batch)
            if pending is not None:
                reporter.take(step, pending)
            pending = metrics
        run.finish(reporter, step)


if __name__ == "__main__":
    run_verb(main)
