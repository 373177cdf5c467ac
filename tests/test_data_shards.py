"""Shards: their content, interruptions, rejected files, damaged notes."""

import hashlib
import itertools
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from photo_folders import mask_folder, open_small, photo_folder, save
from pictures import picture
from PIL import Image

from migan_jax.data.mask_sets import MaskSet, write_mask_set
from migan_jax.data.rejects import Rejects
from migan_jax.data.shards import ShardOptions, ShardWriter
from migan_jax.data.sources import ArrayRecordSource, FileSource
from migan_jax.errors import UserError
from migan_jax.metrics.test_set import TestSet

# About four images per shard.
UNCHANGED = ShardOptions(size=None, smallest_side=1, shard_bytes=20_000)


def prepare(source, output, options=UNCHANGED, limit=0.5, advance=lambda count: None):
    writer = ShardWriter(source, output, options)
    if not writer.is_complete():
        rejects = Rejects(source, limit, output / "rejected.json")
        writer.run(rejects, 2, advance)
    return ArrayRecordSource(output)


def hash_files(folder):
    """Return the hash of each file."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
    }


def test_records_are_the_files(photos, tmp_path):
    source = FileSource(photos)
    shards = prepare(source, tmp_path / "out")
    assert [shards.name(i) for i in range(12)] == source.files.names
    for index in range(12):
        file = (photos / source.name(index)).read_bytes()
        assert shards.encoded(index).image == file
    names = set(hash_files(tmp_path / "out"))
    others = {name for name in names if not name.endswith(".array_record")}
    assert others == {"index.json", "rejected.json", "sheet.png"} and len(names) > 5


def test_large_images_are_shrunk(tmp_path):
    save(tmp_path / "in", "wide.png", picture(100, 150))
    save(tmp_path / "in", "small.png", picture(30, 90))
    mask = np.zeros((100, 150), np.uint8)
    mask[:50, :75] = 255
    save(tmp_path / "masks", "wide.png", mask)
    save(tmp_path / "masks", "small.png", mask[:30, :90])
    source = FileSource(tmp_path / "in", tmp_path / "masks")
    small, wide = prepare(source, tmp_path / "out", ShardOptions(40, 1))
    assert wide.image.shape == (40, 60, 3) and wide.hole.shape == (40, 60)
    assert wide.hole[:20, :30].all() and wide.hole.sum() == 600
    expected = Image.fromarray(picture(100, 150)).resize((60, 40), Image.BICUBIC)
    assert np.abs(wide.image.astype(int) - np.asarray(expected)).mean() < 2
    assert np.array_equal(small.image, picture(30, 90))


def test_black_masks_are_stored_white(photos, tmp_path):
    masks = mask_folder(tmp_path / "masks", photos)
    source = FileSource(photos, masks, "black")
    shards = prepare(source, tmp_path / "out")
    for index in range(12):
        assert np.array_equal(shards[index].hole, source[index].hole)


def test_fingerprint_depends_on_the_content_only(photos, tmp_path):
    first = prepare(FileSource(photos), tmp_path / "a").fingerprint
    moved = photos.rename(tmp_path / "moved")
    again = prepare(FileSource(moved), tmp_path / "b").fingerprint
    assert again.change_since(first) is None
    Image.fromarray(picture(41, 56, seed=99)).save(moved / "01.png")
    changed = prepare(FileSource(moved), tmp_path / "c").fingerprint
    assert changed.change_since(first) is not None


# Interruptions.


class Interrupted(Exception):
    pass


def interrupt_after(count):
    left = count

    def advance(done):
        nonlocal left
        left -= done
        if left < 0:
            raise Interrupted

    return advance


def test_resuming_after_any_image_gives_the_same_files(photos, tmp_path):
    source = FileSource(photos)
    (photos / "02.png").write_bytes(b"x")
    prepare(source, tmp_path / "whole")
    expected = hash_files(tmp_path / "whole")
    for count in range(0, 12):
        output = tmp_path / str(count)
        with pytest.raises(Interrupted):
            prepare(source, output, advance=interrupt_after(count))
        with pytest.raises(UserError, match="not finished"):
            ArrayRecordSource(output)
        counts = []
        prepare(source, output, advance=counts.append)
        assert hash_files(output) == expected
        assert sum(counts) == 12 and (count < 6 or counts[0] > 0)


# One image per shard, and time for a kill in between.
PREPARE = """
import time
from migan_jax.data import shards
from migan_jax.prepare import main

class SmallShards(shards.ShardOptions):
    def __init__(self, size, smallest_side):
        super().__init__(size, smallest_side, shard_bytes=1)

shards.ShardOptions = SmallShards
make_record = shards.ShardWriter._make_record
shards.ShardWriter._make_record = lambda *a: (time.sleep(0.01), make_record(*a))[1]
main()
"""


@pytest.mark.parametrize(
    "kills", [(5,), pytest.param((2, 5, 11), marks=pytest.mark.full)], ids=len
)
def test_killed_and_resumed(kills, tmp_path):
    """The actual command and SIGKILL."""
    photos = photo_folder(tmp_path / "photos", count=40, height=200, width=300)
    output = tmp_path / "out"
    options = [photos, output, "--workers=1", "--size=150"]
    command = [sys.executable, "-c", PREPARE, *map(str, options)]
    for shards in kills:
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(list(output.glob("shard-*"))) < shards:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = subprocess.run(
        [*command[:4], str(tmp_path / "whole"), *command[5:]], capture_output=True
    )
    assert again.returncode == 0
    assert hash_files(output) == hash_files(tmp_path / "whole")


# Kill the process before or after its n-th change of a folder.
KILLED = """
import os, pathlib, sys
left = int(sys.argv.pop(1))

def count(change):
    def counted(*arguments, **options):
        global left
        for call in (lambda: None, lambda: change(*arguments, **options)):
            call()
            left -= 1
            if left == 0:
                os.kill(os.getpid(), 9)
    return counted

for name in ("replace", "unlink", "mkdir"):
    setattr(os, name, count(getattr(os, name)))
"""


@pytest.mark.full
def test_killed_at_every_change_and_resumed(tmp_path):
    photos = photo_folder(tmp_path / "photos", count=3)
    (photos / "bad.png").write_bytes(b"x")
    options = "--workers=1", "--smallest-side=1", "--max-rejected=1"

    def run(output, changes):
        arguments = [str(changes), photos, output, *options]
        return subprocess.run(
            [sys.executable, "-c", KILLED + PREPARE, *arguments],
            capture_output=True,
            text=True,
        )

    assert run(tmp_path / "whole", -1).returncode == 0
    expected = hash_files(tmp_path / "whole")
    for changes in range(1, 100):
        output = tmp_path / str(changes)
        first = run(output, changes)
        if first.returncode == 0:
            break
        assert first.returncode == -signal.SIGKILL
        again = run(output, -1)
        assert again.returncode == 0, again.stderr
        assert hash_files(output) == expected, changes
    assert 20 < changes < 99


def test_other_files_or_options_need_another_folder(photos, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(Interrupted):
        prepare(FileSource(photos), output, advance=interrupt_after(5))
    with pytest.raises(UserError, match="size None, not 32"):
        prepare(FileSource(photos), output, ShardOptions(32, 1, UNCHANGED.shard_bytes))
    (photos / "01.png").unlink()
    with pytest.raises(UserError, match=r"12 .*11 .*out"):
        prepare(FileSource(photos), output)


def test_other_files_are_not_touched(photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="mine"):
        prepare(FileSource(photos), tmp_path / "mine")
    with pytest.raises(UserError, match="file"):
        prepare(FileSource(photos), tmp_path / "file")
    assert os.listdir(tmp_path / "mine") == ["x.txt"]


def test_full_disk(photos, tmp_path):
    source, output = FileSource(photos), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, before[1]))
        with pytest.raises(UserError, match=r"out.*cannot be written"):
            prepare(source, output, ShardOptions(None, 1, shard_bytes=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(output.glob("images-*"))
    assert (
        len(prepare(source, output, ShardOptions(None, 1, shard_bytes=100_000))) == 12
    )


def test_notes_of_earlier_versions(photos, tmp_path):
    """They had the reasons in the report only."""
    (photos / "01.png").write_bytes(b"x")
    source, output = FileSource(photos), tmp_path / "out"
    with pytest.raises(Interrupted):
        prepare(source, output, advance=interrupt_after(9))
    notes = list(output.glob("shard-*.json"))
    for path in notes:
        note = json.loads(path.read_text())
        del note["rejected"], note["plan"]
        path.write_text(json.dumps(note))
    prepare(source, output)
    prepare(source, tmp_path / "whole")
    assert hash_files(output) == hash_files(tmp_path / "whole") and notes


# Rejected files.


def test_rejected_files_are_reported(photos, tmp_path):
    (photos / "02.png").write_bytes(b"x")
    save(photos, "tiny.png", picture(8, 90))
    (photos / "notes.txt").write_text("x")
    source = FileSource(photos)
    shards = prepare(source, tmp_path / "out", ShardOptions(None, 16))
    assert len(shards) == 11
    report = json.loads((tmp_path / "out" / "rejected.json").read_text())
    assert set(report["rejected"]) == {"02.png", "tiny.png"}
    assert report["no_images"] == ["notes.txt"]


def test_limit_of_bad_files(photos, tmp_path):
    for name in ("01.png", "02.png", "04.png"):
        (photos / name).write_bytes(b"x")
    source = FileSource(photos)
    with pytest.raises(UserError, match=r"2 of 12 .*10\.0%"):
        prepare(source, tmp_path / "out", limit=0.1)
    assert len(prepare(source, tmp_path / "out", limit=0.5)) == 9


def test_limit_holds_when_run_again(photos, tmp_path):
    (photos / "01.png").write_bytes(b"x")
    for _ in range(3):
        with pytest.raises(UserError, match=r" 0\.0%"):
            prepare(FileSource(photos), tmp_path / "out", limit=0.0)


def test_images_too_long_for_jpeg_are_unchanged(tmp_path):
    save(tmp_path / "in", "wide.png", picture(4, 100_000))
    shards = prepare(FileSource(tmp_path / "in"), tmp_path / "out", ShardOptions(3, 1))
    assert shards[0].image.shape == (4, 100_000, 3)


@pytest.mark.parametrize("name", ["plan.json", "shard-00000.json", "index.json"])
@pytest.mark.parametrize("damage", ["", "x", "[]", "{}", "[" * 100_000, '{"plan": 3}'])
def test_damaged_notes_are_errors(name, damage, photos, tmp_path):
    source, output = FileSource(photos), tmp_path / "out"
    if name == "index.json":
        prepare(source, output)
    else:
        with pytest.raises(Interrupted):
            prepare(source, output, advance=interrupt_after(9))
    (output / name).write_text(damage)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        prepare(source, output)


# Files edited by hand: data read from them is right, or they are refused.

# One image per shard.
SINGLE = ShardOptions(size=None, smallest_side=1, shard_bytes=1)
VALUES = None, True, -1, 10**400, math.inf, "x", [], [1], {}, {"a": 1}


def edits(value):
    """Yield copies of a JSON value with one part of it replaced or removed."""
    yield from VALUES
    keys = range(len(value)) if isinstance(value, list) else value
    for key in keys if isinstance(value, list | dict) else ():
        for changed in edits(value[key]):
            copy = value.copy()
            copy[key] = changed
            yield copy
        copy = value.copy()
        del copy[key]
        yield copy


def damages(whole):
    """Yield other content for a file; None stands for a folder in its place."""
    yield from (None, b"", whole[: len(whole) // 2], bytes(100), b"\xff" * 9)
    yield from (json.dumps(value).encode() for value in edits(json.loads(whole)))


@pytest.fixture
def states(photos, masks, tmp_path):
    """Prepare three images and a bad one, with masks: once whole, once interrupted."""
    for path in [path for path in photos.rglob("*.png") if path.name > "02.png"]:
        path.unlink()
        (masks / path.relative_to(photos)).with_suffix(".bmp").unlink()
    (photos / "bad.png").write_bytes(b"x")
    shutil.copy(masks / "01.bmp", masks / "bad.bmp")
    source, folder = FileSource(photos, masks), tmp_path / "states"
    prepare(source, folder / "whole", SINGLE)
    drawn = {"kind": "box", "count": 3, "resolution": 16, "seed": 0}
    write_mask_set(folder / "whole" / "masks", **drawn)
    with pytest.raises(Interrupted):
        prepare(source, folder / "interrupted", SINGLE, advance=interrupt_after(3))
    return source, folder


def read_all(source, folder):
    """Yield a folder's examples: read, with its mask set, and after resuming."""

    def read_with_mask_set():
        images, masks = FileSource(source.files.location), MaskSet(folder / "masks")
        masks.check()
        test_set = TestSet(images, resolution=16, masks=masks, count=2)
        return [pair[1:] for pair in test_set.batch(range(len(test_set)))]

    for read in (
        lambda: open_small(folder),
        read_with_mask_set,
        lambda: prepare(source, folder, SINGLE),
    ):
        try:
            yield [example[:2] for example in read()]  # image and hole
        except UserError as error:
            assert "\n" not in str(error)
            yield None


@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.full), 7], ids=["all", "some"]
)
@pytest.mark.parametrize(
    "name",
    [
        "whole/index.json",
        "whole/masks/masks.json",
        "interrupted/plan.json",
        "interrupted/shard-00000.json",  # of an image
        "interrupted/shard-00002.json",  # of a bad one
        "interrupted/rejected.json",
    ],
)
def test_edited_files(name, every, states, tmp_path):
    source, folder = states
    state, file = name.split("/", 1)
    copy, whole = tmp_path / "copy", (folder / name).read_bytes()

    def read_with(content):
        shutil.copytree(folder / state, copy)
        (copy / file).unlink()
        if content is None:
            (copy / file).mkdir()
        else:
            (copy / file).write_bytes(content)
        yield from read_all(source, copy)
        shutil.rmtree(copy)

    expected = list(read_with(whole))
    assert all(expected) if state == "whole" else expected[-1]
    for content in itertools.islice(damages(whole), 0, None, every):
        for actual, right in zip(read_with(content), expected, strict=True):
            for (image, hole), (right_image, right_hole) in (
                zip(actual, right, strict=True) if actual else ()
            ):
                assert np.array_equal(image, right_image), content
                # An index without masks is valid.
                assert hole is None or np.array_equal(hole, right_hole), content


def test_interrupted_while_writing_the_first_file(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".plan.json.part-77").write_text("{")
    assert len(prepare(FileSource(photos), tmp_path / "out")) == 12
    assert not list((tmp_path / "out").glob(".*"))


def test_notes_left_beside_an_index_are_removed(photos, tmp_path):
    source, output = FileSource(photos), tmp_path / "out"
    prepare(source, output)
    expected = hash_files(output)
    (output / "plan.json").write_text("{}")
    (output / "shard-00000.json").write_text("{}")
    prepare(source, output)
    assert hash_files(output) == expected


def test_missing_shard(photos, tmp_path):
    source, output = FileSource(photos), tmp_path / "out"
    prepare(source, output)
    next(output.glob("images-*")).unlink()
    with pytest.raises(UserError, match="ArrayRecord"):
        prepare(source, output)


def test_folder_is_locked(photos, tmp_path):
    def prepare_again(count):
        with pytest.raises(UserError, match="out is in use"):
            prepare(FileSource(photos), tmp_path / "out")

    shards = prepare(FileSource(photos), tmp_path / "out", advance=prepare_again)
    assert len(shards) == 12


def test_only_unusable_images(tmp_path):
    for index in range(3):
        save(tmp_path / "in", f"{index}.png", picture(8, 8))
    with pytest.raises(UserError, match=r"rejected\.json"):
        prepare(
            FileSource(tmp_path / "in"), tmp_path / "out", ShardOptions(None, 16), 1.0
        )


def test_disk_space_estimate(tmp_path):
    photos = photo_folder(tmp_path / "photos", count=40, height=100, width=150)
    source = FileSource(photos)
    for options in (UNCHANGED, ShardOptions(50, 1)):
        output = tmp_path / str(options.size)
        estimate = ShardWriter(source, output, options).bytes_needed()
        prepare(source, output, options)
        shards = list(output.glob("*.array_record"))
        written = sum(path.stat().st_size for path in shards)
        padding = len(shards) << 17
        assert written < estimate < 1.4 * written + padding
