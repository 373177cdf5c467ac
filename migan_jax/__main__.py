"""MI-GAN in JAX: train, fine-tune, measure and ship a small inpainting network.

  python -m migan_jax.VERB --help     # describe a verb, with examples
  migan-jax VERB --help               # the same

Get the authors' released weights from {released};
they are read without conversion. To try things without them, train a small network in
a few minutes: python -m migan_jax.train --config=scenes64
"""

import importlib
import sys

from migan_jax.config import RELEASED, did_you_mean, run_verb

VERBS = (
    "inpaint",
    "train",
    "plan",
    "evaluate",
    "export",
    "prepare",
    "convert",
    "summary",
)


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    verb, *rest = words
    if verb not in VERBS:
        near = did_you_mean(verb, VERBS) or f"; there are {', '.join(VERBS)}"
        print(f"error: no such verb: {verb}{near}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"migan-jax {verb}", *rest]
    run_verb(_module(verb).main)


def overview() -> str:
    """List the verbs, each with the first line of its help."""
    lines = [f"  {verb:9} {_module(verb).__doc__.splitlines()[0]}" for verb in VERBS]
    head, _, rest = __doc__.format(released=RELEASED).partition("\n\n")
    return "\n".join([head, "", *lines, "", rest.rstrip()])


def _module(verb: str) -> object:
    return importlib.import_module(f"migan_jax.{verb}")


if __name__ == "__main__":
    main()
