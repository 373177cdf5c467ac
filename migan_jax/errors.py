"""The one exception that stands for a user's mistake rather than for a bug."""


class UserError(Exception):
    """Bad input, in one sentence: what is wrong, where, and what to do about it."""

    def __str__(self) -> str:
        """Without what file names may hold to break lines or to colour a terminal.

        Of our own, only lists have more lines than one, which are indented.
        """
        return "\n  ".join(map(_printable, super().__str__().split("\n  ")))


def _printable(text: str) -> str:
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """The sentence for a library that belongs to an extra and is not installed."""
    return UserError(
        f"{purpose} needs {package}, which is not installed: "
        f"pip install 'migan_jax[{extra}]'."
    )
