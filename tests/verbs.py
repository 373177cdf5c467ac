"""Run a verb inside the test's process, and check its error message."""

import sys

from migan_jax.config import run_verb


def run_here(monkeypatch, verb, *arguments):
    """Run a verb's module; return its exit status, or its error message."""
    name = verb.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    try:
        run_verb(verb.main)
    except SystemExit as error:
        return error.code
    return 0


def assert_error_line(message, *parts):
    """Assert that the message is one line, and contains all parts."""
    assert isinstance(message, str) and message.startswith("error: ")
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
