"""Where this package can be installed, and what is said where something is missing."""

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
from verbs import one_sentence, run_here

from migan_jax import convert, inpaint, prepare, train
from migan_jax.errors import UserError, missing_extra
from migan_jax.files import held, refuse_address
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


def required(platform):
    return {
        r.name for r in REQUIREMENTS if r.marker is None or r.marker.evaluate(platform)
    }


def test_array_record_is_required_where_there_are_builds_of_it():
    assert "array_record" in required(LINUX) & required(MAC)
    assert required(LINUX) - required(WINDOWS) == {"array_record"}
    assert {"clu", "tensorflow-datasets", "grain"} <= required(WINDOWS)


def test_extras_for_accelerators():
    extras = SETUP["options.extras_require"]
    for name in ("cuda12", "cuda13", "tpu"):
        (requirement,) = map(Requirement, extras[name].split())
        (jax,) = (r for r in REQUIREMENTS if r.name == "jax")
        assert requirement.extras == {name} and requirement.specifier == jax.specifier


def test_the_address_of_the_project_is_named_once():
    """And no command installs from an index on which it is not."""
    address = SETUP["metadata"]["url"]
    tracked = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("migan_jax/*.py"),
    ]
    for path in tracked:
        text = path.read_text()
        assert address not in text, path
        for command in re.findall(r"pip install ([^`\n]*)", text):
            assert not re.search(r"(^|[\s'\"])migan[_-]jax(\[|['\"\s]|$)", command), (
                path
            )


def test_photos_without_what_windows_lacks(tmp_path):
    """Which is fcntl and array_record; and grain, which wants the latter on Linux."""
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
    except SystemExit as stopped:
        print(stopped.code)

saved_network(migan.Generator(16, **SLIM), "net")
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
    ended = subprocess.run(
        [sys.executable, "-c", program.format(tests=str(ROOT / "tests"))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "wrote out.png" in ended.stdout and "wrote   net.safetensors" in ended.stdout
    assert "report.html" in ended.stdout
    torch, records, grain = ended.stdout.splitlines()[-3:]
    assert "Exporting needs PyTorch" in torch
    assert "Preparing pictures needs array_record" in records and "WSL" in records
    assert "Training needs grain" in grain and not (tmp_path / "runs").exists()


class Msvcrt:
    """What Windows has in place of fcntl, as far as it is used."""

    LK_NBLCK = 2
    locked = False

    def locking(self, descriptor, mode, count):
        if self.locked:
            raise PermissionError(13, "Permission denied")
        self.locked = True


def test_a_folder_is_held_without_fcntl(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt())
    with held(tmp_path):
        with pytest.raises(UserError, match="is in use by another run"):
            with held(tmp_path):
                pass


def test_extras_are_named_by_what_pip_can_find():
    said = str(missing_extra("onnxruntime", "onnx", "Running x.onnx"))
    stated = SETUP["options.extras_require"]["onnx"].split()
    for name in map(Requirement, stated):
        assert re.search(rf"'{name.name}[<>=]", said)
    assert "pip install 'onnx" in said and "(the extra onnx)" in said
    assert "pip install 'wonders' (the extra none)" in str(
        missing_extra("wonders", "none", "Wondering")
    )


@pytest.mark.parametrize(
    "address, folder",
    [
        ("gs://bucket/run/a", "/mnt/bucket/run/a"),
        (Path("gs://bucket/run"), "/mnt/bucket/run"),
        ("s3://bucket", "/mnt/bucket"),
    ],
)
def test_buckets_are_no_folders(address, folder):
    with pytest.raises(UserError, match=f"{folder} instead") as caught:
        refuse_address(address)
    assert "://bucket" in str(caught.value)


@pytest.mark.parametrize("path", ["C:/photos", "a/b:c", "/gs:/x", "photos"])
def test_paths_are_no_addresses(path):
    refuse_address(path)


def test_web_addresses_are_no_buckets():
    for address in ("https://x.org/net.pt", Path("https://x.org/net.pt")):
        with pytest.raises(
            UserError, match=r"https://x\.org/net\.pt is an address.*downl"
        ):
            refuse_address(address)


def test_names_that_are_not_utf_8(tmp_path, monkeypatch):
    """What C++ opens is refused before anything is begun; the rest may be called so."""
    odd = os.fsdecode(b"odd\xff")
    monkeypatch.chdir(tmp_path)
    saved_network(migan.Generator(16, **SLIM), tmp_path / "net")
    try:
        shutil.copytree("net", odd)
    except OSError:  # macOS, where there are no such names
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
    for verb, words in refused.items():
        said = run_here(monkeypatch, verb, *words.split())
        one_sentence(said, "not UTF-8", "rename it")
    assert sorted(map(str, tmp_path.rglob("*"))) == before
    words = ["net", f"{odd}.safetensors"]
    assert run_here(monkeypatch, convert, *words) == 0
    words = [f"photos{odd}", "prepared", "--smallest-side=8"]
    assert run_here(monkeypatch, prepare, *words) == 0
