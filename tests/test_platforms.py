"""Platforms, extras, and errors where a library or feature is missing."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from photo_folders import photo_folder
from variables import SLIM, saved_network
from verbs import assert_error_line, run_here

from migan_jax import convert, inpaint, prepare, train
from migan_jax.errors import UserError, missing_extra
from migan_jax.files import lock_folder, refuse_address
from migan_jax.models import migan

ROOT = Path(__file__).parent.parent
LINUX = {"sys_platform": "linux", "platform_system": "Linux"}
MAC = {"sys_platform": "darwin", "platform_system": "Darwin"}
WINDOWS = {"sys_platform": "win32", "platform_system": "Windows"}
REQUIREMENTS = [
    Requirement(line)
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def required_on(platform):
    return {
        r.name for r in REQUIREMENTS if r.marker is None or r.marker.evaluate(platform)
    }


def test_array_record_is_required_except_on_windows():
    assert "array_record" in required_on(LINUX) & required_on(MAC)
    assert required_on(LINUX) - required_on(WINDOWS) == {"array_record"}
    assert {"clu", "tensorflow-datasets", "grain"} <= required_on(WINDOWS)


def test_extras_for_accelerators():
    extras = SETUP["options.extras_require"]
    for name in ("cuda12", "cuda13", "tpu"):
        (requirement,) = map(Requirement, extras[name].split())
        (jax,) = (r for r in REQUIREMENTS if r.name == "jax")
        assert requirement.extras == {name} and requirement.specifier == jax.specifier


def test_the_projects_url_is_in_setup_cfg_only():
    """And no documented command installs it from an index, where it is not."""
    url = SETUP["metadata"]["url"]
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("migan_jax/*.py")]
    for path in paths:
        text = path.read_text()
        assert url not in text, path
        for command in re.findall(r"pip install ([^`\n]*)", text):
            assert not re.search(r"(^|[\s'\"])migan[_-]jax(\[|['\"\s]|$)", command), (
                path
            )


def test_inpainting_without_libraries_that_windows_lacks(tmp_path):
    """Without fcntl and array_record, and without grain, which needs the latter."""
    program = """
import sys
for name in ("fcntl", "array_record", "grain", "resource", "torch"):
    sys.modules[name] = None
import numpy as np
from PIL import Image
from migan_jax.config import run_verb
from migan_jax import convert, evaluate, export, inpaint, prepare, train
from migan_jax.models import migan
sys.path.insert(0, {tests!r})
from variables import SLIM, saved_network

def run(verb, line):
    sys.argv = ["", *line.split()]
    try:
        run_verb(verb.main)
    except SystemExit as error:
        print(error.code)

saved_network(migan.MIGANGenerator(16, **SLIM), "net")
rng = np.random.default_rng(0)
Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save("photo.png")
mask = np.zeros((24, 24), np.uint8)
mask[4:8, 4:8] = 255
Image.fromarray(mask).save("mask.png")
run(inpaint, "--checkpoint=net --image=photo.png --mask=mask.png --output=out.png")
run(convert, "net net.safetensors")
run(evaluate, "--checkpoint=net --images=scenes --samples=2 --output=report")
run(export, "--checkpoint=net --kind=network --output=net.onnx")
run(prepare, ". prepared")
run(train, "--config=scenes64 --smoke")
"""
    done = subprocess.run(
        [sys.executable, "-c", program.format(tests=str(ROOT / "tests"))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in ("out.png", "net.safetensors", "report.html"):
        assert name in done.stdout
    torch, records, grain = done.stdout.splitlines()[-3:]
    assert "PyTorch" in torch
    assert "array_record" in records and "WSL" in records
    assert "grain" in grain and not (tmp_path / "runs").exists()


class Msvcrt:
    """A fake of the part of Windows' msvcrt that replaces fcntl."""

    LK_NBLCK = 2
    locked = False

    def locking(self, descriptor, mode, count):
        if self.locked:
            raise PermissionError(13, "Permission denied")
        self.locked = True


def test_folders_are_locked_without_fcntl(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt())
    with lock_folder(tmp_path):
        with pytest.raises(UserError, match="in use"):
            with lock_folder(tmp_path):
                pass


def test_missing_extras_name_packages_that_pip_can_find():
    message = str(missing_extra("onnxruntime", "onnx", "Running x.onnx"))
    packages = SETUP["options.extras_require"]["onnx"].split()
    for package in map(Requirement, packages):
        assert re.search(rf"'{package.name}[<>=]", message)
    assert "pip install 'onnx" in message and "extra onnx" in message
    message = str(missing_extra("unknown", "none", "Testing"))
    assert "pip install 'unknown'" in message and "extra none" in message


@pytest.mark.parametrize(
    "address, folder",
    [
        ("gs://bucket/run/a", "/mnt/bucket/run/a"),
        (Path("gs://bucket/run"), "/mnt/bucket/run"),
        ("s3://bucket", "/mnt/bucket"),
    ],
)
def test_buckets_are_refused(address, folder):
    with pytest.raises(UserError, match=folder) as caught:
        refuse_address(address)
    assert "://bucket" in str(caught.value)


@pytest.mark.parametrize("path", ["C:/photos", "a/b:c", "/gs:/x", "photos"])
def test_paths_are_not_refused(path):
    refuse_address(path)


def test_web_addresses_are_refused():
    for address in ("https://x.org/net.pt", Path("https://x.org/net.pt")):
        with pytest.raises(UserError, match=r"https://x\.org/net\.pt .*download"):
            refuse_address(address)


def test_names_that_are_not_utf_8(tmp_path, monkeypatch):
    """Paths for C++ libraries are refused before any work; others are accepted."""
    odd = os.fsdecode(b"odd\xff")
    monkeypatch.chdir(tmp_path)
    saved_network(migan.MIGANGenerator(16, **SLIM), tmp_path / "net")
    try:
        shutil.copytree("net", odd)
    except OSError:  # macOS has no such names
        return
    photo_folder(tmp_path / f"photos{odd}", count=2)
    one = f"photos{odd}/01.png"
    refused = {
        inpaint: f"--checkpoint={odd} --image={one} --mask={one} --output=out.png",
        convert: f"net {odd}2",
        prepare: f"photos{odd} prepared{odd}",
        train: f"--config=scenes64 --smoke --workdir={odd}2",
    }
    before = sorted(map(str, tmp_path.rglob("*")))
    for verb, arguments in refused.items():
        message = run_here(monkeypatch, verb, *arguments.split())
        assert_error_line(message, "UTF-8")
    assert sorted(map(str, tmp_path.rglob("*"))) == before
    assert run_here(monkeypatch, convert, "net", f"{odd}.safetensors") == 0
    arguments = [f"photos{odd}", "prepared", "--smallest-side=8"]
    assert run_here(monkeypatch, prepare, *arguments) == 0
