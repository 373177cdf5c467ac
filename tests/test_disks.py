"""Power cuts and full disks: finished verbs lose no output.

A power cut is simulated on an ext4 file system in an image file. A copy of the mounted
image contains all synced data, and the part of the rest that the kernel has written.
The journal is committed every second, so names are written early but contents are not.
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
# Verbs with arguments; they run in the disk's root, and IN is a folder of images.
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
    """A mounted disk image, whose power can be cut repeatedly."""

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
        """Yield the folder `after`, the disk's contents after a power cut."""
        while True:
            run("cp", "--sparse=always", self.image, self.copy)
            if filecmp.cmp(self.image, self.copy, shallow=False):
                break  # the image did not change while copying
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
        pytest.skip("mounting a disk needs Linux and root")
    disk = Disk(tmp_path)
    try:
        run("mount", "-o", "loop,commit=1", disk.image, disk.root)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no disk can be mounted: {error.stderr}")
    try:
        yield disk
    finally:
        run("umount", disk.root)


def files_in(folder):
    """Return the contents of files by relative path, without the file system's own."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "lost+found" not in path.parts
    }


def run_verb(verb, disk, cache, inputs):
    words = [word.replace("IN", str(inputs)) for word in VERBS[verb].split()]
    command = [sys.executable, "-m", f"migan_jax.{verb.split()[0]}", *words]
    ended = subprocess.run(
        command,
        cwd=disk.root,
        env=runs.environment(cache),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr


def lost_files(disk):
    """Return the files that a power cut now would lose or change."""
    with disk.cut() as after:
        remaining = files_in(after)
    return [
        name
        for name, content in files_in(disk.root).items()
        if remaining.get(name) != content
    ]


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "inputs"
    photo_folder(folder / "photos")
    mask_folder(folder / "masks", folder / "photos")
    return folder


@pytest.fixture
def trained(disk, cache):
    """Return the disk with a checkpoint on it."""
    assert runs.train(disk.root / CHECKPOINT, 4, cache).returncode == 0
    return disk


def test_training_and_inpainting_survive_a_power_cut(trained, cache, inputs):
    unsynced = trained.root / "unsynced"
    unsynced.write_text("shows that files can be lost")
    time.sleep(2)
    assert lost_files(trained) == [unsynced.name]
    unsynced.unlink()
    run_verb("inpaint", trained, cache, inputs)
    time.sleep(2)
    assert lost_files(trained) == []


@pytest.mark.full
@pytest.mark.torch
def test_all_verbs_survive_power_cuts(trained, cache, inputs):
    rng, cuts = random.Random(0), 0
    while cuts < CUTS:
        for verb in VERBS:
            for path in set(trained.root.iterdir()) - {trained.root / CHECKPOINT}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            os.sync()
            run_verb(verb, trained, cache, inputs)
            time.sleep(rng.uniform(1, 20))
            assert lost_files(trained) == [], verb
            cuts += 1


# Kilobytes, too few for the first or second checkpoint, or for metrics in between.
@pytest.mark.parametrize("size", [220, 400, 500, 540, 580, 620, 660, 700])
@pytest.mark.full
def test_full_disk(size, cache, tmp_path):
    """The run ends with one error line, and resumes once there is free space."""
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
        assert ended.stderr.splitlines()[-1].startswith("error: ")
        run("mount", "-o", "remount,size=100m", disk)
        ended = runs.train(disk / "run", steps, cache)
        assert ended.returncode == 0, ended.stderr
        runs.assert_same(disk / "run", tmp_path / "alone")
    finally:
        run("umount", disk)
