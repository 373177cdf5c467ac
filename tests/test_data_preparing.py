"""Shards: what they hold, how they are continued, what is written beside them."""

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
from photo_folders import mask_folder, opened, photo_folder, save
from pictures import picture
from PIL import Image

from migan_jax.data.mask_sets import MaskSet, write_mask_set
from migan_jax.data.preparing import Options, Preparation
from migan_jax.data.rejects import Rejects
from migan_jax.data.sources import ArrayRecordSource, FileSource
from migan_jax.errors import UserError
from migan_jax.metrics.test_set import TestSet

KEPT = Options(size=None, smallest_side=1, shard_bytes=20_000)  # four pictures or so


def prepare(source, output, options=KEPT, limit=0.5, advance=lambda count: None):
    preparation = Preparation(source, output, options)
    if not preparation.is_complete():
        rejects = Rejects(source, limit, output / "rejected.json")
        preparation.run(rejects, 2, advance)
    return ArrayRecordSource(output)


def content(folder):
    """Every file's hash."""
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
    names = set(content(tmp_path / "out"))
    others = {name for name in names if not name.endswith(".array_record")}
    assert others == {"index.json", "rejected.json", "sheet.png"} and len(names) > 5


def test_pictures_are_shrunk_and_small_ones_kept(tmp_path):
    save(tmp_path / "in", "wide.png", picture(100, 150))
    save(tmp_path / "in", "small.png", picture(30, 90))
    mask = np.zeros((100, 150), np.uint8)
    mask[:50, :75] = 255
    save(tmp_path / "masks", "wide.png", mask)
    save(tmp_path / "masks", "small.png", mask[:30, :90])
    source = FileSource(tmp_path / "in", tmp_path / "masks")
    small, wide = prepare(source, tmp_path / "out", Options(40, 1))
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


def test_the_fingerprint_is_of_the_content(photos, tmp_path):
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


def test_continued_after_any_picture_it_is_the_same(photos, tmp_path):
    source = FileSource(photos)
    (photos / "02.png").write_bytes(b"x")
    prepare(source, tmp_path / "whole")
    expected = content(tmp_path / "whole")
    for count in range(0, 12):
        output = tmp_path / str(count)
        with pytest.raises(Interrupted):
            prepare(source, output, advance=interrupt_after(count))
        with pytest.raises(UserError, match="not finished: run the command"):
            ArrayRecordSource(output)
        told = []
        prepare(source, output, advance=told.append)
        assert content(output) == expected
        assert sum(told) == 12 and (count < 6 or told[0] > 0)


# One picture a shard, and time to be killed in.
PREPARE = """
import time
from migan_jax.data import preparing
from migan_jax.prepare import main

class Small(preparing.Options):
    def __init__(self, size, smallest_side):
        super().__init__(size, smallest_side, shard_bytes=1)

preparing.Options = Small
record = preparing.Preparation._record
preparing.Preparation._record = lambda *a: (time.sleep(0.01), record(*a))[1]
main()
"""


@pytest.mark.parametrize(
    "kills", [(5,), pytest.param((2, 5, 11), marks=pytest.mark.full)], ids=len
)
def test_killed_at_any_time_and_continued(kills, tmp_path):
    """The real command and the real signal."""
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
    assert content(output) == content(tmp_path / "whole")


# The same, killed at the n-th change of what the folder holds.
KILLED = """
import os, pathlib, sys
left = int(sys.argv.pop(1))

def counted(change):
    def changed(*arguments, **options):
        global left
        for happens in (lambda: None, lambda: change(*arguments, **options)):
            happens()
            left -= 1
            if left == 0:
                os.kill(os.getpid(), 9)
    return changed

for name in ("replace", "unlink", "mkdir"):
    setattr(os, name, counted(getattr(os, name)))
"""


@pytest.mark.full
def test_killed_at_every_change_and_continued(tmp_path):
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
    expected = content(tmp_path / "whole")
    for changes in range(1, 100):
        output = tmp_path / str(changes)
        first = run(output, changes)
        if first.returncode == 0:
            break
        assert first.returncode == -signal.SIGKILL
        again = run(output, -1)
        assert again.returncode == 0, again.stderr
        assert content(output) == expected, changes
    assert 20 < changes < 99


def test_other_files_or_options_do_not_go_into_the_same_folder(photos, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(Interrupted):
        prepare(FileSource(photos), output, advance=interrupt_after(5))
    with pytest.raises(UserError, match="begun with size None, not 32: name another"):
        prepare(FileSource(photos), output, Options(32, 1, KEPT.shard_bytes))
    (photos / "01.png").unlink()
    with pytest.raises(UserError, match=r"it had 12 pictures.*was begun before that"):
        prepare(FileSource(photos), output)


def test_other_things_are_not_touched(photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        prepare(FileSource(photos), tmp_path / "mine")
    with pytest.raises(UserError, match="is no folder"):
        prepare(FileSource(photos), tmp_path / "file")
    assert os.listdir(tmp_path / "mine") == ["x.txt"]


def test_a_full_disk_loses_nothing(photos, tmp_path):
    source, output = FileSource(photos), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, before[1]))
        with pytest.raises(UserError, match=r"out.*cannot be written"):
            prepare(source, output, Options(None, 1, shard_bytes=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(output.glob("images-*"))
    assert len(prepare(source, output, Options(None, 1, shard_bytes=100_000))) == 12


# What is left out.


def test_rejected_files_are_named(photos, tmp_path):
    (photos / "02.png").write_bytes(b"x")
    save(photos, "tiny.png", picture(8, 90))
    (photos / "notes.txt").write_text("x")
    source = FileSource(photos)
    shards = prepare(source, tmp_path / "out", Options(None, 16))
    assert len(shards) == 11
    report = json.loads((tmp_path / "out" / "rejected.json").read_text())
    assert set(report["rejected"]) == {"02.png", "tiny.png"}
    assert report["no_images"] == ["notes.txt"]


def test_too_many_bad_files_stop_it_and_may_be_allowed(photos, tmp_path):
    for name in ("01.png", "02.png", "04.png"):
        (photos / name).write_bytes(b"x")
    source = FileSource(photos)
    with pytest.raises(UserError, match=r"Of 12 .*, 2 cannot .* more than the 10.0%"):
        prepare(source, tmp_path / "out", limit=0.1)
    assert len(prepare(source, tmp_path / "out", limit=0.5)) == 9


def test_running_again_does_not_pass_the_limit(photos, tmp_path):
    (photos / "01.png").write_bytes(b"x")
    for _ in range(3):
        with pytest.raises(UserError, match=r"more than the 0.0% that may be"):
            prepare(FileSource(photos), tmp_path / "out", limit=0.0)


def test_what_jpeg_cannot_hold_stays_as_it_is(tmp_path):
    save(tmp_path / "in", "wide.png", picture(4, 100_000))
    shards = prepare(FileSource(tmp_path / "in"), tmp_path / "out", Options(3, 1))
    assert shards[0].image.shape == (4, 100_000, 3)


@pytest.mark.parametrize("name", ["plan.json", "shard-00000.json", "index.json"])
@pytest.mark.parametrize("damage", ["", "x", "[]", "{}", "[" * 100_000, '{"plan": 3}'])
def test_damaged_notes_are_one_sentence(name, damage, photos, tmp_path):
    source, output = FileSource(photos), tmp_path / "out"
    if name == "index.json":
        prepare(source, output)
    else:
        with pytest.raises(Interrupted):
            prepare(source, output, advance=interrupt_after(9))
    (output / name).write_text(damage)
    with pytest.raises(UserError, match=f"{name} is damaged or not ours"):
        prepare(source, output)


# Edited by hand: what is read then is right, or refused in one sentence.

EACH = Options(size=None, smallest_side=1, shard_bytes=1)  # in a shard of its own
VALUES = None, True, -1, 10**400, math.inf, "x", [], [1], {}, {"a": 1}


def edits(value):
    """Copies of what a file holds, with one thing in it replaced or removed."""
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
    """Other content for a file; None for a folder in its place."""
    yield from (None, b"", whole[: len(whole) // 2], bytes(100), b"\xff" * 9)
    yield from (json.dumps(value).encode() for value in edits(json.loads(whole)))


@pytest.fixture
def states(photos, masks, tmp_path):
    """Three pictures and a bad one with masks; in folders, one whole and one begun."""
    for path in [path for path in photos.rglob("*.png") if path.name > "02.png"]:
        path.unlink()
        (masks / path.relative_to(photos)).with_suffix(".bmp").unlink()
    (photos / "bad.png").write_bytes(b"x")
    shutil.copy(masks / "01.bmp", masks / "bad.bmp")
    source, folder = FileSource(photos, masks), tmp_path / "states"
    prepare(source, folder / "whole", EACH)
    drawn = {"kind": "box", "count": 3, "resolution": 16, "seed": 0}
    write_mask_set(folder / "whole" / "masks", **drawn)
    with pytest.raises(Interrupted):
        prepare(source, folder / "begun", EACH, advance=interrupt_after(3))
    return source, folder


def read_all(source, folder):
    """Its pictures as they are, those with its masks, and those after going on."""

    def evaluated():
        pictures, masks = FileSource(source.files.location), MaskSet(folder / "masks")
        masks.check()
        test_set = TestSet(pictures, resolution=16, masks=masks, count=2)
        return test_set.batch(range(len(test_set)))

    readers = (lambda: opened(folder)), evaluated, lambda: prepare(source, folder, EACH)
    for read in readers:
        try:
            yield [example[-2:] for example in read()]  # picture and hole
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
        "begun/plan.json",
        "begun/shard-00000.json",  # of a picture
        "begun/shard-00002.json",  # of none, since it is bad
        "begun/rejected.json",
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
        for found, right in zip(read_with(content), expected, strict=True):
            for here, there in zip(found, right, strict=True) if found else ():
                assert np.array_equal(here[0], there[0]), content
                # An index that names no masks is one of pictures alone.
                assert here[1] is None or np.array_equal(here[1], there[1]), content


def test_interrupted_while_the_first_file_is_written(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".plan.json.part-77").write_text("{")
    assert len(prepare(FileSource(photos), tmp_path / "out")) == 12
    assert not list((tmp_path / "out").glob(".*"))


def test_what_is_left_beside_an_index_is_removed(photos, tmp_path):
    source, output = FileSource(photos), tmp_path / "out"
    prepare(source, output)
    expected = content(output)
    (output / "plan.json").write_text("{}")
    (output / "shard-00000.json").write_text("{}")
    prepare(source, output)
    assert content(output) == expected


def test_a_missing_shard_is_noticed(photos, tmp_path):
    source, output = FileSource(photos), tmp_path / "out"
    prepare(source, output)
    next(output.glob("images-*")).unlink()
    with pytest.raises(UserError, match="cannot be read as ArrayRecord"):
        prepare(source, output)


def test_two_runs_do_not_share_a_folder(photos, tmp_path):
    def another(count):
        with pytest.raises(UserError, match="in use by another run"):
            prepare(FileSource(photos), tmp_path / "out")

    assert len(prepare(FileSource(photos), tmp_path / "out", advance=another)) == 12


def test_nothing_usable(tmp_path):
    for index in range(3):
        save(tmp_path / "in", f"{index}.png", picture(8, 8))
    with pytest.raises(UserError, match="None of the pictures"):
        prepare(FileSource(tmp_path / "in"), tmp_path / "out", Options(None, 16), 1.0)


def test_the_disk_need_is_near_what_is_written(tmp_path):
    photos = photo_folder(tmp_path / "photos", count=40, height=100, width=150)
    source = FileSource(photos)
    for options in (KEPT, Options(50, 1)):
        output = tmp_path / str(options.size)
        guess = Preparation(source, output, options).bytes_needed()
        prepare(source, output, options)
        shards = list(output.glob("*.array_record"))
        written = sum(path.stat().st_size for path in shards)
        padding = len(shards) << 17
        assert written < guess < 1.4 * written + padding
