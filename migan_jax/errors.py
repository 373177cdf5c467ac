"""The one exception that stands for a user's mistake rather than for a bug."""

import importlib.metadata
import re


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
    """The sentence for a library that belongs to an extra and is not installed.

    It names the libraries themselves, which pip finds whether this package was
    installed from a checkout or from a wheel: this package itself is on no index.
    """
    return UserError(
        f"{purpose} needs {package}, which is not installed: "
        f"{how_to_install(extra, package)}."
    )


def how_to_install(extra: str, package: str) -> str:
    """The command that brings an extra's libraries; `package` is one of them."""
    try:
        stated = importlib.metadata.requires("migan_jax") or []
    except importlib.metadata.PackageNotFoundError:  # used without being installed
        stated = []
    ours = re.compile(rf"""extra == ["']{re.escape(extra)}["']""")
    found = [f"'{one.partition(';')[0].strip()}'" for one in stated if ours.search(one)]
    return f"pip install {' '.join(found) or repr(package)} (the extra {extra})"


def missing_here(package: str, purpose: str) -> UserError:
    """The sentence for a library that has no build for some platforms."""
    return UserError(
        f"{purpose} needs {package}, which is not installed: pip install {package}, or "
        f"where there is no build of it use Linux, on Windows WSL."
    )
