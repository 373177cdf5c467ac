"""Command lines: how every verb parses its arguments and speaks of mistakes."""

import argparse
import os
import sys
from collections.abc import Callable

from migan_jax.errors import UserError


def verb_parser(verb: str, documentation: str) -> argparse.ArgumentParser:
    """A parser whose --help is the verb's own module docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m migan_jax.{verb}",
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run_verb(main: Callable[[], None]) -> None:
    """Run a verb; a user's mistake is one sentence on stderr and exit status 1."""
    sys.stdout.reconfigure(errors="backslashreplace")  # file names are any bytes
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # nobody reads on, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("interrupted")
