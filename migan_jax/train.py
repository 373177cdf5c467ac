"""Train an inpainting network: MI-GAN, or another family's.

  # A recipe of the package, or your own file:
  python -m migan_jax.train --config=places512
  python -m migan_jax.train --config=my_recipe.py --workdir=runs/b
  # A variant of a recipe, with some settings overridden:
  python -m migan_jax.train --config=places256:baseline --workdir=runs/c \\
      --config.batch_size=16 --config.data.source=photos
  # Start from pretrained weights:
  python -m migan_jax.train --config=finetune512 --workdir=runs/d \\
      --init-from=migan_512_places2.pt --config.data.source=photos

Run the same command again to resume. SIGTERM and Ctrl-C save a checkpoint first; after
a kill, the run resumes from the newest checkpoint. To train on several hosts, run the
command on each. TPU slices and SLURM are detected; elsewhere pass --coordinator,
--processes and --process-id. All hosts must share the workdir.

The workdir holds checkpoints/ (for inpaint, convert and --init-from), samples/ (grids
of held-out images), curves.png, metrics.jsonl, tensorboard/, config.json,
parameters.txt, rejected.json (unusable images), and compiled/ (JAX's compilation
cache). It may be in a bucket: --workdir=gs://BUCKET/RUN or s3://BUCKET/RUN, with the
extra gcs or s3. The run then works in a local copy, and uploads it at each checkpoint.
"""

import argparse
import contextlib
import importlib.util
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from migan_jax.config import (
    add_config_arguments,
    load_config,
    run_verb,
    split_settings,
    verb_parser,
    whole_number,
)
from migan_jax.errors import UserError, missing_package
from migan_jax.weights.locations import CHECKPOINTS

if TYPE_CHECKING:
    from migan_jax.training.loop import Outcome
    from migan_jax.training.setup import Setup

logger = logging.getLogger("migan_jax.train")  # __name__ may be "__main__"


def parse_arguments() -> argparse.Namespace:
    parser = verb_parser("train", __doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=Path,
        help="the run's folder (default: runs/RECIPE[-VARIANT][-smoke])",
    )
    parser.add_argument(
        "--init-from",
        metavar="CKPT",
        type=Path,
        help="start from the weights in this .pt, .safetensors or workdir",
    )
    parser.add_argument(
        "--force-resume",
        action="store_true",
        help="resume even if the configuration, dataset or teacher has changed",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="run two steps of a tiny version of the recipe on drawn scenes",
    )
    distributed = parser.add_argument_group(
        "several processes, if the environment does not describe them"
    )
    distributed.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0"
    )
    distributed.add_argument(
        "--processes", metavar="N", type=whole_number(1), help="number of processes"
    )
    distributed.add_argument(
        "--process-id",
        metavar="N",
        type=whole_number(0),
        help="index of this process, from 0",
    )
    distributed.add_argument(
        "--connect-timeout",
        metavar="SECONDS",
        type=whole_number(1, maximum=1_000_000),
        default=300,
        help="how long to wait for the other processes (default: 300)",
    )
    settings, others = split_settings(sys.argv[1:])
    arguments = parser.parse_args(others)
    arguments.settings = settings
    # Resuming an earlier smoke test would test nothing.
    arguments.clear = arguments.smoke and arguments.workdir is None
    if arguments.workdir is None:
        arguments.workdir = default_workdir(arguments.config, arguments.smoke)
    return arguments


def default_workdir(recipe: str, smoke: bool) -> Path:
    """Return runs/RECIPE[-VARIANT][-smoke]."""
    location, _, variant = recipe.partition(":")
    names = [Path(location).stem, *([variant] if variant else [])]
    names += ["smoke"] if smoke else []
    return Path("runs") / re.sub(r"[^\w.=,-]", "_", "-".join(names))


def main() -> None:
    arguments = parse_arguments()
    config = load_config(arguments.config, arguments.settings, arguments.smoke)
    if importlib.util.find_spec("grain") is None:
        raise missing_package("grain", "Training")
    import jax

    from migan_jax.training import processes
    from migan_jax.training.devices import check_devices
    from migan_jax.training.mirror import COMPILED, open_workdir
    from migan_jax.training.preemption import StopSignals

    processes.connect(
        arguments.coordinator,
        arguments.processes,
        arguments.process_id,
        arguments.connect_timeout,
    )
    with processes.fail_fast():
        check_devices()
    if arguments.smoke:
        # Load again: the batch size depends on the number of devices.
        devices = jax.device_count()
        config = load_config(arguments.config, arguments.settings, True, devices)
        # Such small programs take longer to compile than to run.
        jax.config.update("jax_disable_most_optimizations", True)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged metadata
    location, source = arguments.workdir, arguments.init_from
    with (
        configure_logging(),
        processes.fail_fast(),
        StopSignals() as signals,
        open_workdir(location, arguments.clear) as (workdir, mirror),
    ):
        logger.info("workdir: %s", mirror or workdir)
        if jax.config.jax_compilation_cache_dir is None:
            jax.config.update("jax_compilation_cache_dir", str(workdir / COMPILED))
        from migan_jax.training.loop import train
        from migan_jax.training.overview import log_overview
        from migan_jax.training.setup import set_up

        setup = set_up(config, workdir, source, arguments.force_resume, mirror)
        with setup.checkpoints:
            log_overview(setup)
            report_outcome(setup, train(setup, signals))


@contextlib.contextmanager
def configure_logging() -> Iterator[None]:
    """Log process 0's messages to stderr, around the progress bar."""
    import jax
    from tqdm.contrib.logging import logging_redirect_tqdm

    level = logging.INFO if jax.process_index() == 0 else logging.ERROR
    logging.basicConfig(format="%(message)s", force=True)  # imports add handlers
    logging.getLogger("migan_jax").setLevel(level)
    # Orbax logs every action, and every error that it also raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with logging_redirect_tqdm():
        yield


def report_outcome(setup: "Setup", outcome: "Outcome") -> None:
    """Print why the run ended and what to do next, or raise UserError."""
    step = outcome.step
    if outcome.stopped_early:
        print_once(early_stop_message(setup, outcome))
    elif step < setup.end_step:
        saved = "saved"
        if outcome.saved != step:
            saved = f"newest checkpoint: {outcome.saved or 'none'}"
        print_once(f"stopped at step {step:,}, {saved}. Run the same command to resume")
        return
    if outcome.saved != step:
        newest = "There is no checkpoint yet"
        if outcome.saved is not None:
            newest = f"The newest checkpoint is step {outcome.saved:,}"
        raise UserError(
            f"The run ended at step {step:,} with losses or weights that are not "
            f"finite. {newest}."
        )
    print_once(next_steps(setup, step))


def print_once(text: str) -> None:
    """Print in process 0 only."""
    import jax

    if jax.process_index() == 0:
        print(text, flush=True)


def early_stop_message(setup: "Setup", outcome: "Outcome") -> str:
    """Describe early stopping, and where the best weights are."""
    best, value = outcome.best
    folder = f"{setup.location}/{CHECKPOINTS}/{best}"
    if best == 0:
        where = "at the start of the run"
    elif best in setup.checkpoints.steps():
        where = f"at step {best:,} ({folder})"
    else:
        where = f"at step {best:,}, whose checkpoint is not kept"
    return (
        f"stopped early: the held-out {setup.score.name} has not improved for "
        f"{setup.config.patience_kimg} kimg. The best was "
        f"{value if setup.score.more_is_better else -value:.4g}, {where}"
    )


def next_steps(setup: "Setup", step: int) -> str:
    """Return a working command that tries the trained network."""
    import jax

    from migan_jax.training.curves import CURVES_FILE

    python = Path(sys.executable)
    is_local = python.is_relative_to(Path.cwd())  # installed by make
    python = python.relative_to(Path.cwd()) if is_local else "python"
    image, mask, options, target = "PHOTO", "MASK", "", "your photo"
    # Pictures are not read from buckets.
    has_example = setup.samples is not None and setup.mirror is None
    if has_example and jax.process_index() == 0:
        image, mask = setup.samples.save_example(setup.workdir)
        # This mask is exact. Masks of photos need the default feather.
        options, target = " --feather=0", "the first sample"
    curves = f", curves in {setup.location}/{CURVES_FILE}" if step else ""
    return (
        f"finished {step:,} steps{curves}. Next, fill {target}:\n"
        f"  {python} -m migan_jax.inpaint --checkpoint={setup.location} \\\n"
        f"      --image={image} --mask={mask} \\\n"
        f"      --output=inpainted.png{options}"
    )


if __name__ == "__main__":
    run_verb(main)
