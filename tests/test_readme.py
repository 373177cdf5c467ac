"""The documents' commands exist: verbs with their flags, and make's targets."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/data.md",
    "docs/training.md",
    "docs/healthy.md",
    "docs/app.md",
    "docs/first_pod_run.md",
    "docs/deepgin.md",
    "docs/imputation.md",
    "docs/distillation.md",
)


def fenced_lines(name):
    text = (ROOT / name).read_text().replace("\\\n", "")
    for block in re.findall(r"^```(?:\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()


VERBS = [
    line
    for name in DOCUMENTS
    for line in fenced_lines(name)
    if line.startswith("python -m migan_jax.")
]
TARGETS = [
    line.split("#")[0].split()[1]
    for name in DOCUMENTS
    for line in fenced_lines(name)
    if line.startswith("make ")
]


@pytest.mark.parametrize("line", VERBS)
def test_verbs_take_the_documented_arguments(line, monkeypatch):
    _, _, module, *arguments = shlex.split(line, comments=True)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    importlib.import_module(module).parse_arguments()


def test_make_has_the_documented_targets():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert TARGETS
    assert set(TARGETS) <= set(targets)


def test_every_relative_link_and_path_exists():
    folders = (
        "benchmarks|configs|data|docs|geometry|launch|migan_jax|models|ops|systems|tests|"
        "training|weights"
    )
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        paths = re.findall(rf"`((?:{folders})/\S+)`", text)
        paths += re.findall(r"\]\((?!https:)([^)]+)\)", text)  # pictures, too
        assert paths
        places = ROOT, ROOT / "migan_jax", (ROOT / name).parent
        for path in paths:
            assert any((place / path).exists() for place in places), path
