"""The verb inpaint on folders and as a subprocess: batches, bad files, kill -9."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from pictures import hole_in, picture
from PIL import Image
from test_inpaint import HOLE, SHAPE, checkpoint, list_files, read_pixels, run, save
from verbs import assert_error_line

import migan_jax
from migan_jax import inpaint, photos
from migan_jax.geometry.fill import DEFAULT_FEATHER

__all__ = ["checkpoint", "run"]  # fixtures


@pytest.fixture
def folders(tmp_path):
    """photos/ in several formats and subfolders, and masks/ with the same names."""
    for index, name in enumerate(("a.png", "b.jpg", "sub/c.tif", "sub/d.webp")):
        save(tmp_path / "photos" / name, picture(*SHAPE, seed=index))
        save((tmp_path / "masks" / name).with_suffix(".png"), HOLE)
    return tmp_path


def make_arguments(folder, mask="masks"):
    names = {"image": "photos", "mask": mask, "output": "out"}
    return [f"--{flag}={folder / name}" for flag, name in names.items()]


def counts(output):
    """Photos completed, found complete and failed, from the last line of output."""
    summary = output.splitlines()[-1].partition(";")[0]
    return [int(number) for number in re.findall(r"\d+", summary)]


def test_folders(run, folders, checkpoint, capsys):
    assert run(*make_arguments(folders)) == 0
    out = folders / "out"
    assert list_files(out) == ["a.png", "b.jpg", "sub/c.tif", "sub/d.webp"]
    model = migan_jax.load(checkpoint)
    expected = model.inpaint(read_pixels(folders / "photos" / "sub" / "c.tif"), HOLE)
    assert np.array_equal(read_pixels(out / "sub" / "c.tif"), expected)
    assert counts(capsys.readouterr().out) == [4, 0, 0]


def test_holes_with_little_context_get_one_warning_per_batch(run, folders, caplog):
    assert run(*make_arguments(folders)) == 0 and not caplog.records
    for path in (folders / "masks").rglob("*.png"):
        save(path, ~hole_in(SHAPE, (0, 0, 6, 50)))
    assert run(*make_arguments(folders), "--force") == 0
    messages = [r.getMessage() for r in caplog.records]
    messages = [message for message in messages if "16 x 16" in message]
    assert len(messages) == 1 and "a.png" in messages[0]


def test_one_mask_for_a_folder(run, folders):
    save(folders / "logo.png", ~HOLE)
    assert run(*make_arguments(folders, "logo.png"), "--mask-hole=black", "--raw") == 0
    names = ["a.png", "b.jpg", "sub/c.tif", "sub/d.webp"]
    raw = [f"{name}.raw.png" for name in names]
    assert list_files(folders / "out") == sorted(names + raw)


def test_batches_resume(run, folders, capsys):
    assert run(*make_arguments(folders)) == 0
    out = folders / "out"
    (out / "b.jpg").unlink()
    mine = save(out / "a.png", picture(9, 9)).read_bytes()
    capsys.readouterr()
    assert run(*make_arguments(folders)) == 0
    assert counts(capsys.readouterr().out) == [1, 3, 0]
    assert (out / "a.png").read_bytes() == mine
    assert run(*make_arguments(folders), "--force") == 0
    assert counts(capsys.readouterr().out) == [4, 0, 0]
    assert (out / "a.png").read_bytes() != mine


def test_damaged_results_are_written_again(run, folders, capsys, caplog):
    assert run(*make_arguments(folders)) == 0
    out = folders / "out"
    expected = {name: (out / name).read_bytes() for name in list_files(out)}
    (out / "a.png").write_bytes(b"")
    (out / "b.jpg").write_bytes(expected["b.jpg"][:-1])
    (out / "sub" / "c.tif").write_bytes(bytes(len(expected["sub/c.tif"])))
    capsys.readouterr()
    assert run(*make_arguments(folders)) == 0
    assert counts(capsys.readouterr().out) == [3, 1, 0]
    assert len(caplog.records) == 3
    for name in ("a.png", "b.jpg", "sub/c.tif"):
        assert str(out / name) in caplog.text
    assert {name: (out / name).read_bytes() for name in list_files(out)} == expected


def test_a_folder_in_place_of_a_result(run, folders, caplog):
    (folders / "out" / "b.jpg").mkdir(parents=True)
    assert_error_line(run(*make_arguments(folders)), ": 1.")
    assert f"{folders / 'out' / 'b.jpg'} is a folder" in caplog.text
    assert len(list_files(folders / "out")) == 3


def test_missing_and_damaged_raw_outputs_are_written(run, folders):
    arguments = [*make_arguments(folders), "--raw"]
    assert run(*arguments) == 0
    before = {path: path.read_bytes() for path in (folders / "out").rglob("*.raw.png")}
    missing, empty = sorted(before)[:2]
    missing.unlink()
    empty.write_bytes(b"")
    assert run(*arguments) == 0
    assert all(path.read_bytes() == content for path, content in before.items())


def test_photos_and_masks_larger_than_memory(run, folders, caplog, monkeypatch):
    """They are refused before decoding, and the others are filled."""
    save(folders / "photos" / "large.png", picture(100, 100))
    save(folders / "masks" / "large.png", hole_in((100, 100), (1, 1, 9, 9)))
    save(folders / "masks" / "b.png", hole_in((200, 200), (1, 1, 9, 9)))
    monkeypatch.setattr(photos, "free_memory", lambda: 150_000)
    assert_error_line(run(*make_arguments(folders)), ": 2.")
    for name, size, needed in (
        ("photos/large.png", "100x100", "180 kB"),
        ("masks/b.png", "200x200", "480 kB"),
    ):
        messages = [r.getMessage() for r in caplog.records if name in r.getMessage()]
        assert len(messages) == 1
        assert all(part in messages[0] for part in (str(folders), size, needed))
    assert list_files(folders / "out") == ["a.png", "sub/c.tif", "sub/d.webp"]


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (MemoryError(), ("50x40", "36 kB")),
        (RuntimeError("RESOURCE_EXHAUSTED: allocating 9"), ("RESOURCE_EXHAUSTED",)),
    ],
)
def test_running_out_of_memory_skips_one_photo(
    error, parts, run, folders, caplog, monkeypatch
):
    fill_holes = inpaint.fill_holes

    def fail_once(*arguments, **options):
        if not caplog.records:
            raise error
        return fill_holes(*arguments, **options)

    monkeypatch.setattr(inpaint, "fill_holes", fail_once)
    assert_error_line(run(*make_arguments(folders)), ": 1.")
    (record,) = caplog.records
    for part in (str(folders / "photos" / "a.png"), *parts):
        assert part in record.getMessage()
    assert list_files(folders / "out") == ["b.jpg", "sub/c.tif", "sub/d.webp"]


def test_bad_files_are_skipped(run, folders, capsys, caplog):
    photos, masks = folders / "photos", folders / "masks"
    (photos / "broken.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    save(masks / "broken.png", HOLE)
    save(photos / "alone.png", picture(*SHAPE))
    save(photos / "other size.png", picture(9, 9))
    save(masks / "other size.png", HOLE)
    save(photos / "twice.png", picture(*SHAPE))
    save(masks / "twice.png", HOLE)
    save(masks / "twice.bmp", HOLE)
    save(photos / "e.gif", picture(*SHAPE))
    save(photos / "e.png", picture(*SHAPE))
    save(masks / "e.png", HOLE)
    (photos / "notes.txt").write_text("not a photo")
    (photos / ".hidden.png").write_text("nor this")
    assert_error_line(run(*make_arguments(folders)), ": 5.")
    assert list_files(folders / "out") == [
        *("a.png", "b.jpg", "e.png", "sub/c.tif", "sub/d.webp")
    ]
    messages = [record.getMessage() for record in caplog.records]
    for parts in (
        [photos / "broken.jpg"],
        [photos / "alone.png", masks / "alone.*"],
        [photos / "other size.png", masks / "other size.png", "50x40", "9x9"],
        [photos / "twice.png", masks / "twice.bmp", masks / "twice.png"],
        [photos / "e.gif", photos / "e.png", folders / "out" / "e.png"],
    ):
        found = [m for m in messages if all(str(part) in m for part in parts)]
        assert len(found) == 1, parts
    assert counts(capsys.readouterr().out) == [5, 0, 5]
    for name in ("broken.jpg", "alone.png", "other size.png", "twice.png", "e.png"):
        (photos / name).unlink()
    assert run(*make_arguments(folders)) == 0


def test_formats_that_cannot_be_written_become_png(run, folders):
    photos = folders / "photos"
    shutil.rmtree(photos / "sub")
    for name in ("b.jpg", "a.png"):
        (photos / name).unlink()
    save(photos / "b.ppm", picture(*SHAPE))
    assert run(*make_arguments(folders)) == 0
    assert list_files(folders / "out") == ["b.png"]


def test_folders_inside_one_another(run, folders):
    """Results beside the photos' folder, and a single mask among the photos."""
    photos = folders / "photos"
    save(photos / "logo.png", HOLE)
    arguments = (
        f"--image={photos}",
        f"--mask={photos / 'logo.png'}",
        f"--output={folders}",
    )
    assert run(*arguments) == 0
    assert (folders / "sub" / "c.tif").exists() and not (folders / "logo.png").exists()
    out = f"--output={photos / 'sub' / '..' / 'out'}"
    for _ in range(2):
        assert run(*arguments[:2], out) == 0
    assert len(list_files(photos / "out")) == 4


def test_circular_links_are_skipped(run, folders):
    (folders / "photos" / "loop.png").symlink_to("loop.png")
    save(folders / "masks" / "loop.png", HOLE)
    assert_error_line(run(*make_arguments(folders)), ": 1.")
    assert len(list_files(folders / "out")) == 4


def test_a_wrong_feather_ends_the_batch(run, folders):
    arguments = *make_arguments(folders), "--feather=65"
    assert_error_line(run(*arguments), "feather", "65")
    assert not (folders / "out").exists()


def test_results_never_overwrite_photos(run, folders):
    """An output folder in which one result has the path of another photo."""
    photos = folders / "photos"
    save(photos / "photos" / "a.png", picture(*SHAPE, seed=9))
    save(folders / "mask.png", HOLE)
    before = {name: (photos / name).read_bytes() for name in list_files(photos)}
    arguments = (
        f"--image={photos}",
        f"--mask={folders / 'mask.png'}",
        f"--output={folders}",
    )
    assert_error_line(run(*arguments, "--force"), ": 1.")
    assert {name: (photos / name).read_bytes() for name in list_files(photos)} == before


def test_results_inside_the_photos_folder_are_not_photos(run, folders):
    photos, masks = folders / "photos", folders / "photos" / "masks"
    (folders / "masks").rename(masks)
    arguments = f"--image={photos}", f"--mask={masks}", f"--output={photos / 'out'}"
    assert run(*arguments) == 0
    assert run(*arguments) == 0
    assert len(list_files(photos / "out")) == 4


@pytest.mark.parametrize(
    ("image", "mask", "output", "parts"),
    [
        ("photos", "photos", "out", ["--mask", "--image"]),
        ("photos", "masks", "photos", ["--output", "--image"]),
        ("photos", "masks", "masks", ["--output", "--mask"]),
        ("photos", "masks", "photos/a.png", ["--output", "photos/a.png"]),
        ("empty", "masks", "out", ["--image", "empty"]),
    ],
)
def test_wrong_folders(image, mask, output, parts, run, folders):
    (folders / "empty").mkdir()
    before = list_files(folders)
    names = {"image": image, "mask": mask, "output": output}
    arguments = [f"--{flag}={folders / name}" for flag, name in names.items()]
    assert_error_line(run(*arguments), *parts)
    assert list_files(folders) == before


# As a subprocess.


def start_verb(checkpoint, *arguments):
    command = [sys.executable, "-m", "migan_jax.inpaint", f"--checkpoint={checkpoint}"]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_as_a_subprocess(folders, checkpoint):
    (folders / "photos" / "broken.png").write_text("x")
    save(folders / "masks" / "broken.png", HOLE)
    process = start_verb(checkpoint, *make_arguments(folders))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert_error_line(err.splitlines()[-1], ": 1.")
    for name in ("a.png", "b.jpg", "sub/c.tif", "sub/d.webp"):  # lines, not a bar
        assert out.count(str(folders / "out" / name)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_limit(folders, checkpoint):
    """169 million pixels in 3.4 GB; on one core, since JAX needs more for others."""
    shutil.rmtree(folders / "photos" / "sub")
    large = Image.new("1", (13_000, 13_000))
    large.save(folders / "photos" / "large.png")
    large.paste(1, (1000, 1000, 12_000, 12_000))
    large.save(folders / "masks" / "large.png")
    limited = (
        "import os, resource, runpy\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3_400_000_000,) * 2)\n"
        "runpy.run_module('migan_jax.inpaint', run_name='__main__')"
    )
    command = [sys.executable, "-c", limited, f"--checkpoint={checkpoint}"]
    done = subprocess.run(
        [*command, *make_arguments(folders)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for part in ("large.png", "13000x13000", "3.04 GB"):
        assert part in done.stderr
    assert list_files(folders / "out") == ["a.png", "b.jpg"]


def test_when_killed_every_file_is_old_or_new(folders, checkpoint, run):
    """Kill at random moments while results are overwritten."""
    photos = folders / "photos"
    for index in range(40):
        save(photos / f"{index}.png", picture(*SHAPE, seed=index))
    save(folders / "mask.png", HOLE)
    arguments = [*make_arguments(folders, "mask.png"), "--force"]
    assert run(*arguments) == 0
    out = folders / "out"
    new = {name: (out / name).read_bytes() for name in list_files(out)}
    rng = np.random.default_rng(0)
    killed = 0
    for _ in range(2):
        for name in new:
            (out / name).write_bytes(b"old")
        process = start_verb(checkpoint, *arguments)
        while process.poll() is None and (out / "0.png").read_bytes() == b"old":
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        for name, content in new.items():
            assert (out / name).read_bytes() in (b"old", content), name
    assert killed
    for path in out.rglob(".*"):
        os.unlink(path)
    assert run(*arguments) == 0
    assert {name: (out / name).read_bytes() for name in list_files(out)} == new


def test_help_states_the_default_without_importing_jax():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "migan_jax.inpaint", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert f"(default: {DEFAULT_FEATHER})" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "migan_jax.geometry.fill" in imported and "jax" not in imported
