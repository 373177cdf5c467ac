"""Imports only go to a lower level; optional libraries stay where they belong.

The levels and the fences are CONTRIBUTING.md's, read from the syntax tree.
"""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "migan_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

LEVELS = {
    "errors": -2,
    "files": -1,
    "buckets": 0,
    "settings": -1,
    **dict.fromkeys(("config", "ops", "geometry", "metadata"), 0),
    **dict.fromkeys(("models", "losses", "data"), 1),
    **dict.fromkeys(("systems", "metrics", "weights", "twins"), 2),
    "families": 3,
    **dict.fromkeys(("training", "exporting", "inpainting", "photos"), 4),
    "planning": 5,
}
VERBS = 6  # every other module at the root

# Where a library may be imported; elsewhere it must not be.
FENCES = {
    "flax": ("models", "systems", "weights"),
    "torch": ("twins", "weights", "export"),
    "tensorflow": ("data",),
    "sklearn": ("metrics",),
    "apache_beam": ("data",),
}
# Extras: not every installation has them, so they are imported when they are needed.
# Nothing imports the twins unless it is about PyTorch.
LATE = (
    "apache_beam",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tensorflow",
    "sklearn",
    "libtpu",
)


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def level_of(name):
    return LEVELS.get(name, VERBS)


def imported_modules(path):
    """Every imported module with whether the import runs when the file is imported."""
    tree = ast.parse(path.read_text())
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    not_now = [
        node
        for node in ast.walk(tree)
        if isinstance(node, functions)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    late = {id(node) for part in not_now for node in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module, id(node) not in late


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_and_respect_the_fences(path):
    here = name_of(path)
    for module, at_import in imported_modules(path):
        library, _, rest = module.partition(".")
        if library in FENCES:
            assert here in FENCES[library], f"{path} imports {module}"
        if library in LATE and here != "twins":
            assert not at_import, f"{path} imports {module} at its top"
        if library == "migan_jax" and rest and here != "__init__":
            there = rest.partition(".")[0]
            if there == "twins" and here != "twins":
                assert not at_import, f"{path} imports {module} at its top"
            lower = level_of(there) < level_of(here)
            assert lower or there == here, f"{path} imports {module}"


def test_models_do_not_know_the_configuration():
    for path in (PACKAGE / "models").glob("*.py"):
        modules = [module for module, _ in imported_modules(path)]
        assert not any(module.startswith("migan_jax.config") for module in modules)


# Where nothing knows any family. Networks that look at pictures are no family's.
NEUTRAL = [
    path
    for path in FILES
    if name_of(path) in ("training", "planning", "metrics", "geometry")
]


def names_of_families():
    """Families, their networks, what is frozen for them, and what they minimise.

    Without what pictures are measured by, too.
    """
    from migan_jax.families import FAMILIES
    from migan_jax.metrics import image

    names = set()
    for family in FAMILIES.values():
        names |= {family.name, family.title, *family.frozen}
        names |= {word for kind in family.kinds for word in (kind.name, kind.role)}
        names |= {label.partition("/")[2] for label in family.labels}
    return {name.lower() for name in names} - {name.lower() for name in image.NAMES}


@pytest.mark.parametrize(
    "path", NEUTRAL, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_trainer_knows_no_family(path):
    forbidden = {name.replace("-", "") for name in names_of_families()}
    assert {"migan", "comodgan", "generator", "discriminator", "teacher"} <= forbidden
    assert {"distillation", "adversarial", "r1"} <= forbidden
    # The package's own name, and numpy's random generators, are others.
    allowed = {"migan_jax", "random.generator"}
    text = path.read_text().lower()
    for name in allowed:
        text = text.replace(name, "")
    text = text.replace("-", "")
    words = {*re.findall(r"[a-z0-9]+", text), *re.findall(r"\w+", text)}
    found = words & forbidden
    assert not found, f"{path} speaks of {', '.join(sorted(found))}"
