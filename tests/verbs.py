"""Running a verb inside the test's process, and judging what it says."""

import sys

from migan_jax.config import run_verb


def run_here(monkeypatch, verb, *arguments):
    """Run a verb's module; returns its exit status, or its message."""
    name = verb.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    try:
        run_verb(verb.main)
    except SystemExit as stopped:
        return stopped.code
    return 0


def one_sentence(message, *parts):
    assert isinstance(message, str) and message.startswith("error: ")
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
