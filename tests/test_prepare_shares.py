"""Shares: `prepare --share` on several machines at once, killed tasks, `--join`."""

import dataclasses
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from photo_folders import mask_folder, photo_folder, save
from pictures import picture
from test_data_shards import UNCHANGED, hash_files
from verbs import assert_error_line, run_here

from migan_jax import prepare
from migan_jax.data import shards
from migan_jax.data.rejects import Rejects
from migan_jax.data.shards import ShardOptions, ShardWriter
from migan_jax.data.sources import ArrayRecordSource, FileSource
from migan_jax.errors import UserError

OPTIONS = ("--smallest-side=16",)
SMALL = dataclasses.replace(UNCHANGED, smallest_side=16)


@pytest.fixture
def run(monkeypatch):
    """Run the verb with small shards."""
    small = functools.partial(ShardOptions, shard_bytes=SMALL.shard_bytes)
    monkeypatch.setattr(shards, "ShardOptions", small)
    return functools.partial(run_here, monkeypatch, prepare)


@pytest.fixture
def pictures(tmp_path):
    """Make fifty pictures, about four per shard, some damaged or too small."""
    folder = photo_folder(tmp_path / "photos", count=50)
    for path in sorted(folder.rglob("*.png"))[3::13]:
        path.write_bytes(path.read_bytes()[:500])
    save(folder, "tiny.png", picture(8, 90))
    (folder / "notes.txt").write_text("x")
    return folder


def write_share(folder, output, share, advance=lambda count: None, options=SMALL):
    """Write a share without the verb, which cannot run twice in one process."""
    source = FileSource(folder)
    writer = ShardWriter(source, output, options, share)
    writer.run(Rejects(source, 0.5, None), 1, advance)


def inodes(folder):
    """Identify the shards: one that is written again is another file."""
    return {path.name: path.stat().st_ino for path in folder.glob("*.array_record")}


def test_joined_shares_are_what_one_process_writes(pictures, tmp_path, run):
    masks = mask_folder(tmp_path / "masks", photo_folder(tmp_path / "p", count=12))
    for folder, *options in (
        (pictures, *OPTIONS),
        (tmp_path / "p", *OPTIONS, f"--own-masks={masks}", "--size=30", "--masks=2"),
    ):
        one, joined = (tmp_path / name / folder.name for name in ("one", "joined"))
        assert run(folder, one, *options) == 0
        for index in (2, 0, 3, 1):
            assert run(folder, joined, *options, f"--share={index}/4") == 0
            assert not (joined / "rejected.json").exists()
            assert not (joined / "masks").exists()
        with pytest.raises(UserError, match="not finished"):
            ArrayRecordSource(joined)
        assert run(folder, joined, *options, "--join") == 0
        names = {path.name for path in joined.iterdir()}
        assert names == {path.name for path in one.iterdir()} and len(names) > 6
        for path in filter(os.path.isfile, one.iterdir()):
            assert path.read_bytes() == (joined / path.name).read_bytes(), path
        for again in ("--join", "--share=0/4"):
            assert run(folder, joined, *options, again) == 0
            assert {path.name for path in joined.iterdir()} == names


# One thread, and time for a kill between the shards.
SLOW = """
import sys, time
from pathlib import Path
from test_prepare_shares import write_share
write_share(*map(Path, sys.argv[1:3]), (1, 4), lambda count: time.sleep(0.1))
"""


def test_killed_share_beside_others(pictures, tmp_path, run):
    """A share is killed while the three others run; then it resumes."""
    output = tmp_path / "out"
    killed = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(pictures), str(output)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while not list(output.glob("shard-*")):
        assert killed.poll() is None
        time.sleep(0.01)
    with ThreadPoolExecutor(3) as pool:
        others = [
            pool.submit(write_share, pictures, output, (index, 4))
            for index in (0, 2, 3)
        ]
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        for other in others:
            other.result()
    done = inodes(output)
    for index in range(4):
        assert any(name.startswith(f"images-{index:05d}") for name in done)
    message = run(pictures, output, *OPTIONS, "--join")
    assert_error_line(message, "1/4")
    write_share(pictures, output, (1, 4))
    assert done.items() <= inodes(output).items() and len(done) < len(inodes(output))
    assert run(pictures, output, *OPTIONS, "--join") == 0
    assert run(pictures, tmp_path / "one", *OPTIONS) == 0
    assert hash_files(output) == hash_files(tmp_path / "one")


def test_temporary_files_of_other_shares_stay(photos, tmp_path, run):
    output = tmp_path / "out"
    output.mkdir()
    left = ".images-00001-of-00004.array_record.part-7", ".plan.json.part-77"
    for name in left:
        (output / name).write_text("x")
    write_share(photos, output, (0, 2))
    assert all((output / name).exists() for name in left)
    write_share(photos, output, (1, 2))
    assert not (output / left[0]).exists()
    assert run(photos, output, *OPTIONS, "--join") == 0
    assert not list(output.glob(".*"))


def test_locks(photos, tmp_path):
    """Refused are the same share, and the whole; other shares are not."""
    output, refused = tmp_path / "out", []

    def start_others(count):
        for share in ((0, 2), None):
            with pytest.raises(UserError, match=r"\.share-0-of-2 is in use"):
                write_share(photos, output, share)
            refused.append(share)
        write_share(photos, output, (1, 2))

    write_share(photos, output, (0, 2), start_others)
    assert len(refused) > 5


def test_other_options_or_files_are_refused(photos, tmp_path, run):
    output, others = tmp_path / "out", photo_folder(tmp_path / "others", count=9)
    assert run(photos, output, *OPTIONS, "--share=0/2") == 0
    for task in ("--share=1/2", "--join"):
        message = run(photos, output, "--smallest-side=17", task)
        assert_error_line(message, output, "16, not 17")
        assert_error_line(run(others, output, *OPTIONS, task), output, "changed")
    # Tasks that started at the same moment, and both wrote their plan.
    (output / "plan.json").unlink()
    write_share(photos, output, (1, 2), options=UNCHANGED)
    for side in (16, 1):
        message = run(photos, output, f"--smallest-side={side}", "--join")
        assert_error_line(message, output)
    assert not (output / "index.json").exists()


def test_missing_shares_are_named_with_the_command(photos, tmp_path, run):
    output = tmp_path / "it's out"
    options = photos, output, *OPTIONS
    message = run(*options, "--join")
    assert_error_line(message, output)
    assert "--share" not in message and "--join" not in message
    assert run(*options, "--share=1/3") == 0
    message = run(*options, "--join")
    assert_error_line(message, output, "0/3, 2/3")
    command = shlex.split(message.partition("Run: ")[2].partition(", and so on")[0])
    assert command[:3] == ["python", "-m", "migan_jax.prepare"]
    assert run(*command[3:]) == 0
    assert_error_line(run(*options, "--join"), "2/3", "--share=2/3")
    assert run(*options) == 0  # the rest on one machine
    assert len(ArrayRecordSource(output)) == 12


def test_limit_of_bad_files(photos, tmp_path, run):
    output = tmp_path / "out"
    for name in ("01.png", "11.png"):  # one in each share
        (photos / name).write_bytes(b"x")
    assert run(photos, output, *OPTIONS, "--share=0/2", "--max-rejected=0.1") == 0
    tasks = "--share=1/2", "--join"
    for task in tasks:
        for _ in range(2):  # also when run again
            message = run(photos, output, *OPTIONS, "--max-rejected=0.05", task)
            assert_error_line(message, "of 12 images", "5.0%")
        assert run(photos, output, *OPTIONS, task, "--max-rejected=0.2") == 0
    report = json.loads((output / "rejected.json").read_text())
    assert list(report["rejected"]) == ["01.png", "11.png"]


def test_more_shares_than_shards(photos, tmp_path, run):
    output = tmp_path / "out"
    for index in (99, 0, 1, 2, 3, 4):
        assert run(photos, output, *OPTIONS, f"--share={index}/100") == 0
    assert run(photos, output, *OPTIONS, "--join") == 0
    assert len(ArrayRecordSource(output)) == 12


@pytest.mark.parametrize(
    "arguments",
    [
        *(["a", "b", f"--share={text}"] for text in ("4/4", "1", "-1/4", "1/0", "x/4")),
        ["a", "b", "--share=0/2", "--join"],
        ["b", "--masks=2", "--share=0/2"],
        ["b", "--masks=2", "--join"],
        ["b", "--masks=2", "--runner=beam"],
        ["a", "b", "--beam-options=--x"],
        ["a", "b", "--runner=spark"],
    ],
)
def test_invalid_arguments(arguments, monkeypatch, capsys):
    assert run_here(monkeypatch, prepare, *arguments) == 2
    assert "usage:" in capsys.readouterr().err
