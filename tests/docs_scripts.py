"""Import the scripts in docs/, which are not in a package."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def docs_script(name):
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
