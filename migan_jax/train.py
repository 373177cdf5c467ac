"""Train an inpainting network: MI-GAN, or another family's.

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
from migan_jax.weights.locations import CHECKPOINTS

if TYPE_CHECKING:
    from migan_jax.training.loop import Ending
    from migan_jax.training.setup import Setup

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
        from migan_jax.training.loop import train
        from migan_jax.training.overview import announce
        from migan_jax.training.setup import set_up

        setup = set_up(config, workdir, source, arguments.force_resume)
        with setup.checkpoints:
            announce(setup)
            conclude(setup, train(setup, stopping))


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


def conclude(setup: "Setup", ending: "Ending") -> None:
    """Say how a run has ended and what there is, of several processes in the first."""
    step = ending.step
    if ending.is_stale:
        say(stale_sentence(setup, ending))
    elif step < setup.end_step:
        saved = f"saved is {ending.saved or 'nothing'}"
        if ending.saved == step:
            saved = "saved"
        say(f"stopped at step {step:,}, {saved}: the same command goes on there")
        return
    if ending.saved != step:
        kept = "there is no checkpoint yet"
        if ending.saved is not None:
            kept = f"the newest checkpoint is of step {ending.saved:,}"
        raise UserError(
            f"The run has ended at step {step:,} with losses or weights that are not "
            f"finite; {kept}."
        )
    say(farewell(setup, step))


def say(text: str) -> None:
    import jax

    if jax.process_index() == 0:
        print(text, flush=True)


def stale_sentence(setup: "Setup", ending: "Ending") -> str:
    """That a run has stopped by itself, and where its best weights are."""
    best, value = ending.best
    folder = setup.workdir / CHECKPOINTS / str(best)
    if best == 0:
        which = "was that of the beginning"
    elif best in setup.checkpoints.steps():
        which = f"was step {best:,}'s ({folder})"
    else:
        which = f"was step {best:,}'s, which is not kept"
    return (
        f"the held-out {setup.score.name} has not improved for "
        f"{setup.config.patience_kimg} kimg: the best, "
        f"{value if setup.score.more_is_better else -value:.4g}, {which}"
    )


def farewell(setup: "Setup", step: int) -> str:
    """What to do next, as a command that works."""
    import jax

    from migan_jax.training.curves import CURVES_FILE

    python = Path(sys.executable)
    here = python.is_relative_to(Path.cwd())  # as where make has installed it
    python = python.relative_to(Path.cwd()) if here else "python"
    image, mask, options, what = "PHOTO", "MASK", "", "your photo"
    if setup.samples is not None and jax.process_index() == 0:
        image, mask = setup.samples.save_example(setup.workdir)
        # Its mask is exact; those of photos want the margin that is the default.
        options, what = " --feather=0", "the first of the samples"
    curves = f", curves in {setup.workdir / CURVES_FILE}" if step else ""
    return (
        f"finished {step:,} steps{curves}. Next, fill {what}:\n"
        f"  {python} -m migan_jax.inpaint --checkpoint={setup.workdir} \\\n"
        f"      --image={image} --mask={mask} \\\n"
        f"      --output=inpainted.png{options}"
    )


if __name__ == "__main__":
    run_verb(main)
