"""The exception for users' mistakes, as opposed to bugs."""

import importlib.metadata
import re


class UserError(Exception):
    """A user's mistake: what is wrong, where, and what to do about it."""

    def __str__(self) -> str:
        """Escape control characters, which file names may contain.

        Only the line breaks of our own indented lists are kept.
        """
        return "\n  ".join(map(_printable, super().__str__().split("\n  ")))


def _printable(text: str) -> str:
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """Return the error for a library of an extra that is not installed.

    It names the libraries, which pip always finds; this package itself is on no index.
    """
    return UserError(
        f"{purpose} needs {package}, which is not installed. Run: "
        f"{how_to_install(extra, package)}."
    )


def how_to_install(extra: str, package: str) -> str:
    """Return the command that installs an extra's libraries, such as `package`."""
    try:
        required = importlib.metadata.requires("migan_jax") or []
    except importlib.metadata.PackageNotFoundError:  # used without being installed
        required = []
    of_extra = re.compile(rf"""extra == ["']{re.escape(extra)}["']""")
    names = [
        f"'{one.partition(';')[0].strip()}'" for one in required if of_extra.search(one)
    ]
    return f"pip install {' '.join(names) or repr(package)} (the extra {extra})"


def missing_package(package: str, purpose: str) -> UserError:
    """Return the error for a missing library that not all platforms have."""
    return UserError(
        f"{purpose} needs {package}, which is not installed. Run: pip install "
        f"{package}. If your platform has no build of it, use Linux or Windows' WSL."
    )
