"""The field's words, and one name for one thing.

`OLD` lists words of our own that gave way to the usual one, `STAYS` the places where a
word means something else.
"""

import ast
import collections
import re
from pathlib import Path

import pytest

from migan_jax.config import base_config, flat
from migan_jax.families import FAMILIES
from migan_jax.settings import RENAMED

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "migan_jax"
TEXTS = [
    *sorted(PACKAGE.rglob("*.py")),
    *sorted((ROOT / "configs").glob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "docs").glob("*.py")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")),
]

OLD = {  # pattern: the usual word
    "eyes": "feature networks",
    "figures": "metrics",
    "judged?|judges": "discriminator, evaluated",
    "games?": "GAN, adversarial training",
    "meet|meeting": "barrier",
    "told|asked": "requested, given",
    "hold_back": "defer",
    "begun|begin_with": "initial, started",
    "anew": "again, from scratch",
    "aloud": "warns, prints",
    "doubts?|doubtful|doubted": "warning",
    "seals?|sealed": "manifest",
    "everyones": "gathered",
    "farewell": "next steps",
    "work(ed)? off": "run",
    "go(es)? on|going on|gone on": "continue, resume",
    "so many": "N, this many",
    "that there (is|are)": "all, existing",
    "are none|is none": "is not a, without",
    "brought": "loaded, given",
    r"\w*_share|SHARES?": "fraction",
    r"(LARGEST|SMALLEST|LONGEST|FEWEST|LEAST|MOST)_\w+": "MAX_, MIN_",
    "superfluous": "old",
    "remedy": "hint",
}
STAYS = {  # (file, word): why
    ("migan_jax/data/scenes.py", "eyes"): "eyes of drawn faces",
    ("migan_jax/data/surfaces.py", "meet"): "outlines meet",
    ("migan_jax/settings.py", "bad_share"): "an earlier setting, which is still read",
}
# Modules are named after what they hold, not after an activity.
ACTIVITIES = {"inpainting": "part of the public API", "reporting": "holds the Reporter"}


def hits(path, pattern):
    """Return the old words in a file, with their lines."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for match in re.finditer(rf"(?<![\w-])({pattern})(?![\w-])", line):
            yield match[0], number


@pytest.mark.parametrize("pattern", OLD)
def test_old_words_are_gone(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number} {word}"
        for path in TEXTS
        for word, number in hits(path, pattern)
        if (str(path.relative_to(ROOT)), word) not in STAYS
    ]
    assert not found, f"use {OLD[pattern]}: {found}"


def test_old_words_are_gone_from_settings_and_metrics():
    settings = flat(base_config()).keys()
    last = {key.rpartition(".")[2] for key in settings}
    assert not RENAMED.keys() & last and set(RENAMED.values()) <= last
    names = {*settings}
    for family in FAMILIES.values():
        names |= {*family.labels, *family.labels.values()}
    words = {word for name in names for word in re.split(r"[./ ]", name)}
    for pattern in OLD:
        assert not [word for word in words if re.fullmatch(pattern, word)]


def test_modules_are_named_after_what_they_hold():
    modules = {path.stem for path in PACKAGE.rglob("*.py")}
    assert {name for name in modules if name.endswith("ing")} == ACTIVITIES.keys()


BLOCKS, TWIN = "the same block of each family", "the same layer as a twin"
SAME = {  # names that several modules define, and why
    **dict.fromkeys(("Encoder", "EncoderBlock", "EncoderLastBlock"), BLOCKS),
    **dict.fromkeys(("Synthesis", "SynthesisBlock", "SynthesisFirstBlock"), BLOCKS),
    **dict.fromkeys(("Dense", "Head", "Mapping", "ModulatedConv", "ToRGB"), TWIN),
    **dict.fromkeys(("BRANCH_GAIN", "Noise", "Pyramid"), TWIN),
}


def public_names(path):
    """Return the classes and constants that a module defines."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def test_classes_and_constants_have_names_of_their_own():
    places = collections.defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for name in public_names(path):
            if not name.startswith("_") and name != "logger":
                places[name].add(str(path.relative_to(PACKAGE)))
    several = {name: sorted(p) for name, p in places.items() if len(p) > 1}
    assert several.keys() == SAME.keys(), several
