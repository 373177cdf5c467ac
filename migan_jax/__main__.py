"""MI-GAN in JAX: train, fine-tune, measure and ship a small inpainting network.

  python -m migan_jax.VERB --help     # what a verb does, with examples
  migan-jax VERB --help               # the same

The released weights are the authors', and are read as they are: get them from
{released}. Without them, a few minutes of
`python -m migan_jax.train --config=scenes64` make a small network to try things with.
"""

import importlib
import sys

from migan_jax.config import RELEASED, nearest, run_verb

VERBS = "inpaint", "train", "evaluate", "export", "prepare", "convert", "summary"


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    verb, *rest = words
    if verb not in VERBS:
        near = nearest(verb, VERBS) or f", but {', '.join(VERBS)}"
        print(f"error: there is no verb {verb}{near}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"migan-jax {verb}", *rest]
    run_verb(_module(verb).main)


def overview() -> str:
    """The verbs, each with the first line of its own help."""
    lines = [f"  {verb:9} {_module(verb).__doc__.splitlines()[0]}" for verb in VERBS]
    head, _, rest = __doc__.format(released=RELEASED).partition("\n\n")
    return "\n".join([head, "", *lines, "", rest.rstrip()])


def _module(verb: str) -> object:
    return importlib.import_module(f"migan_jax.{verb}")


if __name__ == "__main__":
    main()
