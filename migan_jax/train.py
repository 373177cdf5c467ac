"""Train MI-GAN, or its teacher.

  # A recipe that comes with the package, or a file of your own:
  python -m migan_jax.train --config=places512
  python -m migan_jax.train --config=my_recipe.py --workdir=runs/b
  # With other settings, and another variant of the recipe:
  python -m migan_jax.train --config=places256:baseline --workdir=runs/c \\
      --config.batch_size=16 --config.data.source=photos
  # From weights that there are already:
  python -m migan_jax.train --config=finetune512 --workdir=runs/d \\
      --init-from=migan_512_places2.pt --config.data.source=photos

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
import importlib.util
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from migan_jax.config import (
    load_config,
    recipe_names,
    run_verb,
    verb_parser,
    whole_number,
)
from migan_jax.errors import UserError, missing_here

if TYPE_CHECKING:
    from migan_jax.training.run import Run
    from migan_jax.training.stopping import Stopping

logger = logging.getLogger("migan_jax.train")  # also where this module is __main__


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("train", __doc__)
    parser.add_argument(
        "--config",
        metavar="RECIPE[:VARIANT]",
        required=True,
        help=f"a file, or one of {', '.join(recipe_names())}",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=Path,
        help="the run's folder (default: runs/RECIPE[-VARIANT][-smoke])",
    )
    parser.add_argument(
        "--config.KEY",
        metavar="VALUE",
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
        help="two steps of a tiny version of the recipe on drawn scenes: does it run?",
    )
    several = parser.add_argument_group(
        "several processes, where nothing tells of them"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    several.add_argument(
        "--processes", metavar="N", type=whole_number(1), help="how many there are"
    )
    several.add_argument(
        "--process-id", metavar="N", type=whole_number(0), help="which this one is"
    )
    several.add_argument(
        "--connect-timeout",
        metavar="SECONDS",
        type=whole_number(1, most=1_000_000),
        default=300,
        help="how long to wait for the others (default: 300)",
    )
    settings, others = split_settings(sys.argv[1:])
    arguments = parser.parse_args(others)
    arguments.settings = settings
    # That of an earlier smoke test would be gone on with, and nothing be tested.
    arguments.anew = arguments.smoke and arguments.workdir is None
    if arguments.workdir is None:
        arguments.workdir = default_workdir(arguments.config, arguments.smoke)
    return arguments


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings as "KEY=VALUE", whether given with "=" or a space, and other words."""
    settings, others = [], []
    remaining = iter(words)
    for word in remaining:
        key = word.removeprefix("--config.")
        if key == word:
            others.append(word)
        elif "=" in word:
            settings.append(key)
        else:
            value = next(remaining, "")
            settings.append(f"{key}={'' if value.startswith('--') else value}")
            others += [value] if value.startswith("--") else []
    return settings, others


def default_workdir(recipe: str, smoke: bool) -> Path:
    """runs/RECIPE[-VARIANT][-smoke]."""
    location, _, variant = recipe.partition(":")
    names = [Path(location).stem, *([variant] if variant else [])]
    names += ["smoke"] if smoke else []
    return Path("runs") / re.sub(r"[^\w.=,-]", "_", "-".join(names))


def main() -> None:
    arguments = parse_arguments()
    config = load_config(arguments.config, arguments.settings, arguments.smoke)
    if importlib.util.find_spec("grain") is None:
        raise missing_here("grain", "Training")
    import jax

    from migan_jax.training import processes
    from migan_jax.training.stopping import Stopping

    processes.connect(
        arguments.coordinator,
        arguments.processes,
        arguments.process_id,
        arguments.connect_timeout,
    )
    if arguments.smoke:
        # Again, since now it is known over how many devices a batch is to be split.
        devices = jax.device_count()
        config = load_config(arguments.config, arguments.settings, True, devices)
        # So small programs take longer to compile than to run.
        jax.config.update("jax_disable_most_optimizations", True)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what it can do without
    workdir, source = arguments.workdir, arguments.init_from
    with (
        logs_of_one_process(),
        processes.ended_together(),
        Stopping() as stopping,
        processes.workdir_held(workdir, arguments.anew),
    ):
        logger.info("workdir: %s", workdir)
        from migan_jax.training.run import Run

        with Run(config, workdir, source, arguments.force_resume) as run:
            train(run, stopping)


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


def train(run: "Run", stopping: "Stopping") -> None:
    """The loop. Its order matters: evaluate, save, next batch, step, report.

    A step's metrics are waited for when the next step is on its way.
    """
    run.announce()
    if run.first_step < run.total_steps:
        run.compile()
    with run.batches() as batches, run.reporter() as reporter:
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
            if step == run.first_step:
                run.meet()
                stopping.hold_back()
            metrics = run.advance(step, batch)
            if pending is not None:
                reporter.take(step, pending)
            pending = metrics
        run.finish(reporter, step)


if __name__ == "__main__":
    run_verb(main)
