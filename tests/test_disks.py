"""Power cuts and full disks: what a verb says that it has done stays done.

Power is cut on an ext4 in an image file: a copy of the image, made while it is mounted,
has what was synced to it, and what the kernel happened to have written of the rest. Its
journal is committed every second, so that names are there early, and contents are not.
"""

import contextlib
import filecmp
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
import runs
from photo_folders import mask_folder, photo_folder

pytestmark = pytest.mark.slow

CHECKPOINT = "run"
# Verbs, with what they are told; the folder is the disk's, IN has pictures.
VERBS = {
    "train": "--config=scenes64 --smoke --workdir=again",
    "inpaint": "--checkpoint=run --image=IN/photos --mask=IN/masks --output=filled",
    "convert": "run converted",
    "convert to a file": "run converted.safetensors",
    "prepare": "IN/photos prepared --smallest-side=8",
    "prepare masks": "masks --masks=20 --resolution=32",
    "evaluate": "--checkpoint=run --images=IN/photos --output=report",
    "export": "--checkpoint=run --kind=network --output=net.onnx",
}
CUTS = 20


class Disk:
    """A mounted image, whose power can be cut any number of times."""

    def __init__(self, folder):
        self.image, self.root = folder / "disk", folder / "mounted"
        self.copy, self.after = folder / "copy", folder / "after"
        with self.image.open("wb") as file:
            file.truncate(256 << 20)
        for mountpoint in (self.root, self.after):
            mountpoint.mkdir()
        run("mkfs.ext4", "-q", self.image)

    @contextlib.contextmanager
    def cut(self):
        """What is left of it after a power cut, in the folder `after`."""
        while True:
            run("cp", "--sparse=always", self.image, self.copy)
            if filecmp.cmp(self.image, self.copy, shallow=False):
                break  # nothing was written meanwhile
        with mounted(self.copy, self.after):
            yield self.after


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def mounted(image, folder, options="loop"):
    run("mount", "-o", options, image, folder)
    try:
        yield
    finally:
        run("umount", folder)


@pytest.fixture
def disk(tmp_path):
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or shutil.which("mkfs.ext4") is None
    ):
        pytest.skip("a disk can be mounted by root only, on Linux")
    found = Disk(tmp_path)
    try:
        run("mount", "-o", "loop,commit=1", found.image, found.root)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no disk can be mounted: {error.stderr}")
    try:
        yield found
    finally:
        run("umount", found.root)


def files_in(folder):
    """Relative names with contents; without what only the file system has."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "lost+found" not in path.parts
    }


def do(verb, disk, cache, inputs):
    words = [word.replace("IN", str(inputs)) for word in VERBS[verb].split()]
    command = [sys.executable, "-m", f"migan_jax.{verb.split()[0]}", *words]
    done = subprocess.run(
        command,
        cwd=disk.root,
        env=runs.environment(cache),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def lost(disk):
    """What a power cut now would lose: names of files that are not as they are."""
    with disk.cut() as after:
        left = files_in(after)
    return [
        name
        for name, content in files_in(disk.root).items()
        if left.get(name) != content
    ]


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "inputs"
    photo_folder(folder / "photos")
    mask_folder(folder / "masks", folder / "photos")
    return folder


@pytest.fixture
def begun(disk, cache):
    """The disk with a checkpoint on it."""
    assert runs.train(disk.root / CHECKPOINT, 4, cache).returncode == 0
    return disk


def test_training_and_inpainting_outlive_a_power_cut(begun, cache, inputs):
    unsynced = begun.root / "unsynced"
    unsynced.write_text("to see that anything can be lost")
    time.sleep(2)
    assert lost(begun) == [unsynced.name]
    unsynced.unlink()
    do("inpaint", begun, cache, inputs)
    time.sleep(2)
    assert lost(begun) == []


@pytest.mark.full
@pytest.mark.torch
def test_every_verb_outlives_power_cuts(begun, cache, inputs):
    rng, cuts = random.Random(0), 0
    while cuts < CUTS:
        for verb in VERBS:
            for path in set(begun.root.iterdir()) - {begun.root / CHECKPOINT}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            os.sync()
            do(verb, begun, cache, inputs)
            time.sleep(rng.uniform(1, 20))
            assert lost(begun) == [], verb
            cuts += 1


# Kilobytes: too few for the first checkpoint, for the second, for metrics between.
@pytest.mark.parametrize("size", [220, 400, 500, 540, 580, 620, 660, 700])
@pytest.mark.full
def test_a_disk_that_gets_full(size, cache, tmp_path):
    """One sentence; and with room again the run ends as if nothing had been."""
    disk, steps = tmp_path / "disk", 26
    disk.mkdir()
    assert runs.train(tmp_path / "alone", steps, cache).returncode == 0
    try:
        run("mount", "-t", "tmpfs", "-o", f"size={size}k", "none", disk)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted: {error}")
    try:
        ended = runs.train(disk / "run", steps, cache)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        assert "cannot be written" in ended.stderr.splitlines()[-1]
        run("mount", "-o", "remount,size=100m", disk)
        ended = runs.train(disk / "run", steps, cache)
        assert ended.returncode == 0, ended.stderr
        runs.assert_same(disk / "run", tmp_path / "alone")
    finally:
        run("umount", disk)
