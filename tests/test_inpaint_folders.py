"""The verb inpaint on folders, and from outside: batches, bad files, kill -9."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from pictures import hole_in, picture
from PIL import Image
from test_inpaint import HOLE, SHAPE, checkpoint, pixels, run, save, tree
from verbs import one_sentence

import migan_jax
from migan_jax import inpaint, photos
from migan_jax.geometry.filling import DEFAULT_FEATHER

__all__ = ["checkpoint", "run"]  # fixtures


@pytest.fixture
def folders(tmp_path):
    """photos/ of several formats and subfolders, and masks/ of the same names."""
    for number, name in enumerate(("a.png", "b.jpg", "sub/c.tif", "sub/d.webp")):
        save(tmp_path / "photos" / name, picture(*SHAPE, seed=number))
        save((tmp_path / "masks" / name).with_suffix(".png"), HOLE)
    return tmp_path


def arguments_of(folder, mask="masks"):
    names = {"image": "photos", "mask": mask, "output": "out"}
    return [f"--{flag}={folder / name}" for flag, name in names.items()]


def test_folders(run, folders, checkpoint, capsys):
    assert run(*arguments_of(folders)) == 0
    out = folders / "out"
    assert tree(out) == ["a.png", "b.jpg", "sub/c.tif", "sub/d.webp"]
    model = migan_jax.load(checkpoint)
    expected = model.inpaint(pixels(folders / "photos" / "sub" / "c.tif"), HOLE)
    assert np.array_equal(pixels(out / "sub" / "c.tif"), expected)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"4 completed, 0 there already, 0 left out; results are in {out}"
    )


def test_a_hole_that_leaves_little_to_go_by_is_said_once(run, folders, caplog):
    """Of all photos of a batch; where there is enough around it, nothing is said."""
    assert run(*arguments_of(folders)) == 0 and not caplog.records
    for path in (folders / "masks").rglob("*.png"):
        save(path, ~hole_in(SHAPE, (0, 0, 6, 50)))
    assert run(*arguments_of(folders), "--force") == 0
    said = [r.getMessage() for r in caplog.records if "network sees" in r.getMessage()]
    assert len(said) == 1 and "a.png" in said[0]


def test_one_mask_for_a_folder(run, folders):
    save(folders / "logo.png", ~HOLE)
    assert run(*arguments_of(folders, "logo.png"), "--mask-hole=black", "--raw") == 0
    names = ["a.png", "b.jpg", "sub/c.tif", "sub/d.webp"]
    raw = [f"{name}.raw.png" for name in names]
    assert tree(folders / "out") == sorted(names + raw)


def test_a_batch_is_continued(run, folders, capsys):
    assert run(*arguments_of(folders)) == 0
    out = folders / "out"
    (out / "b.jpg").unlink()
    mine = save(out / "a.png", picture(9, 9)).read_bytes()
    capsys.readouterr()
    assert run(*arguments_of(folders)) == 0
    assert "1 completed, 3 there already, 0 left out" in capsys.readouterr().out
    assert (out / "a.png").read_bytes() == mine
    assert run(*arguments_of(folders), "--force") == 0
    assert "4 completed, 0 there already" in capsys.readouterr().out
    assert (out / "a.png").read_bytes() != mine


def test_results_that_a_power_cut_has_damaged_are_made_again(
    run, folders, capsys, caplog
):
    assert run(*arguments_of(folders)) == 0
    out = folders / "out"
    whole = {name: (out / name).read_bytes() for name in tree(out)}
    (out / "a.png").write_bytes(b"")
    (out / "b.jpg").write_bytes(whole["b.jpg"][:-1])
    (out / "sub" / "c.tif").write_bytes(bytes(len(whole["sub/c.tif"])))
    capsys.readouterr()
    assert run(*arguments_of(folders)) == 0
    assert "3 completed, 1 there already, 0 left out" in capsys.readouterr().out
    assert caplog.text.count("damaged or incomplete, and is made again") == 3
    assert {name: (out / name).read_bytes() for name in tree(out)} == whole


def test_a_folder_in_place_of_a_result(run, folders, caplog):
    (folders / "out" / "b.jpg").mkdir(parents=True)
    one_sentence(run(*arguments_of(folders)), "left out, as said above: 1")
    assert f"is left out: {folders / 'out' / 'b.jpg'} is a folder" in caplog.text
    assert len(tree(folders / "out")) == 3


def test_raw_outputs_are_there_or_made(run, folders):
    arguments = [*arguments_of(folders), "--raw"]
    assert run(*arguments) == 0
    before = {path: path.read_bytes() for path in (folders / "out").rglob("*.raw.png")}
    missing, empty = sorted(before)[:2]
    missing.unlink()
    empty.write_bytes(b"")
    assert run(*arguments) == 0
    assert all(path.read_bytes() == content for path, content in before.items())


def test_photos_and_masks_larger_than_the_memory(run, folders, caplog, monkeypatch):
    """They are refused before they are decoded, and the others are done."""
    save(folders / "photos" / "large.png", picture(100, 100))
    save(folders / "masks" / "large.png", hole_in((100, 100), (1, 1, 9, 9)))
    save(folders / "masks" / "b.png", hole_in((200, 200), (1, 1, 9, 9)))
    monkeypatch.setattr(photos, "free_memory", lambda: 150_000)
    one_sentence(run(*arguments_of(folders)), "left out, as said above: 2")
    for name, size, needed in (
        ("photos/large.png", "100x100", "180 kB"),
        ("masks/b.png", "200x200", "480 kB"),
    ):
        sentence = f"{folders / name} has {size} pixels and needs about {needed}"
        assert caplog.text.count(sentence) == 1
    assert tree(folders / "out") == ["a.png", "sub/c.tif", "sub/d.webp"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "has 50x40 pixels and needs about 36 kB of memory"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
            "cannot be completed, the network finds too little memory (RESOURCE_EXHAU",
        ),
    ],
)
def test_memory_that_runs_out_ends_one_photo(
    error, sentence, run, folders, caplog, monkeypatch
):
    filled = inpaint.fill_holes

    def fails_once(*arguments, **options):
        if not caplog.records:
            raise error
        return filled(*arguments, **options)

    monkeypatch.setattr(inpaint, "fill_holes", fails_once)
    one_sentence(run(*arguments_of(folders)), "left out, as said above: 1")
    assert f"{folders / 'photos' / 'a.png'} {sentence}" in caplog.text
    assert tree(folders / "out") == ["b.jpg", "sub/c.tif", "sub/d.webp"]


def test_bad_files_are_left_out_and_the_rest_is_done(run, folders, capsys, caplog):
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
    message = run(*arguments_of(folders))
    one_sentence(message, "photos left out, as said above: 5.")
    assert tree(folders / "out") == [
        *("a.png", "b.jpg", "e.png", "sub/c.tif", "sub/d.webp")
    ]
    for part in (
        "broken.jpg cannot be read as an image",
        "alone.png is left out: there is no mask",
        "other size.png is 50x40 pixels, but",
        "are both its mask",
        "e.png is also that of",
    ):
        assert caplog.text.count(part) == 1, part
    assert "5 completed, 0 there already, 5 left out" in capsys.readouterr().out
    for name in ("broken.jpg", "alone.png", "other size.png", "twice.png", "e.png"):
        (photos / name).unlink()
    assert run(*arguments_of(folders)) == 0


def test_formats_that_are_only_read_become_png(run, folders):
    photos = folders / "photos"
    shutil.rmtree(photos / "sub")
    for name in ("b.jpg", "a.png"):
        (photos / name).unlink()
    save(photos / "b.ppm", picture(*SHAPE))
    assert run(*arguments_of(folders)) == 0
    assert tree(folders / "out") == ["b.png"]


def test_folders_inside_one_another(run, folders):
    """Results beside the photos' folder, and the one mask among the photos."""
    photos = folders / "photos"
    save(photos / "logo.png", HOLE)
    words = f"--image={photos}", f"--mask={photos / 'logo.png'}", f"--output={folders}"
    assert run(*words) == 0
    assert (folders / "sub" / "c.tif").exists() and not (folders / "logo.png").exists()
    out = f"--output={photos / 'sub' / '..' / 'out'}"
    for _ in range(2):
        assert run(*words[:2], out) == 0
    assert len(tree(photos / "out")) == 4


def test_links_in_circles_are_left_out(run, folders):
    (folders / "photos" / "loop.png").symlink_to("loop.png")
    save(folders / "masks" / "loop.png", HOLE)
    one_sentence(run(*arguments_of(folders)), "left out, as said above: 1")
    assert len(tree(folders / "out")) == 4


def test_a_wrong_feather_is_said_once(run, folders):
    words = *arguments_of(folders), "--feather=65"
    one_sentence(run(*words), "feather is a whole number")
    assert not (folders / "out").exists()


def test_photos_are_never_results(run, folders):
    """An output folder from which a result falls onto another photo."""
    photos = folders / "photos"
    save(photos / "photos" / "a.png", picture(*SHAPE, seed=9))
    save(folders / "mask.png", HOLE)
    before = {name: (photos / name).read_bytes() for name in tree(photos)}
    words = f"--image={photos}", f"--mask={folders / 'mask.png'}", f"--output={folders}"
    one_sentence(run(*words, "--force"), "left out, as said above: 1")
    assert {name: (photos / name).read_bytes() for name in tree(photos)} == before


def test_results_inside_the_photos_folder_are_not_photos(run, folders):
    photos, masks = folders / "photos", folders / "photos" / "masks"
    (folders / "masks").rename(masks)
    words = f"--image={photos}", f"--mask={masks}", f"--output={photos / 'out'}"
    assert run(*words) == 0
    assert run(*words) == 0
    assert len(tree(photos / "out")) == 4


@pytest.mark.parametrize(
    ("image", "mask", "output", "parts"),
    [
        ("photos", "photos", "out", ["--mask is the folder of --image"]),
        ("photos", "masks", "photos", ["--output is the folder of --image"]),
        ("photos", "masks", "masks", ["--output is the folder of --mask"]),
        ("photos", "masks", "photos/a.png", ["photos/a.png is a file"]),
        ("empty", "masks", "out", ["holds no photos"]),
    ],
)
def test_folders_that_make_no_sense(image, mask, output, parts, run, folders):
    (folders / "empty").mkdir()
    before = tree(folders)
    names = {"image": image, "mask": mask, "output": output}
    words = [f"--{flag}={folders / name}" for flag, name in names.items()]
    one_sentence(run(*words), *parts)
    assert tree(folders) == before


# From outside.


def verb(checkpoint, *words):
    command = [sys.executable, "-m", "migan_jax.inpaint", f"--checkpoint={checkpoint}"]
    return subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_as_a_command(folders, checkpoint):
    (folders / "photos" / "broken.png").write_text("x")
    save(folders / "masks" / "broken.png", HOLE)
    process = verb(checkpoint, *arguments_of(folders))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "error: photos left out, as said above: 1."
    assert out.count("wrote ") == 4  # no terminal, so lines instead of a bar


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no limit is known")
def test_a_limit_of_memory(folders, checkpoint):
    """169 million pixels in 3.4 GB; on one core, since JAX takes more for others."""
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
        [*command, *arguments_of(folders)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "large.png has 13000x13000 pixels and needs about 3.04 GB" in done.stderr
    assert tree(folders / "out") == ["a.png", "b.jpg"]


def test_killed_in_the_middle_every_file_is_old_or_new(folders, checkpoint, run):
    """At a random moment, again and again, while results are overwritten."""
    photos = folders / "photos"
    for number in range(40):
        save(photos / f"{number}.png", picture(*SHAPE, seed=number))
    save(folders / "mask.png", HOLE)
    words = [*arguments_of(folders, "mask.png"), "--force"]
    assert run(*words) == 0
    out = folders / "out"
    new = {name: (out / name).read_bytes() for name in tree(out)}
    rng = np.random.default_rng(0)
    killed = 0
    for _ in range(2):
        for name in new:
            (out / name).write_bytes(b"old")
        process = verb(checkpoint, *words)
        while process.poll() is None and (out / "0.png").read_bytes() == b"old":
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        for name, content in new.items():
            assert (out / name).read_bytes() in (b"old", content), name
    assert killed
    for path in out.glob(".*"):
        os.unlink(path)
    assert run(*words) == 0
    assert {name: (out / name).read_bytes() for name in tree(out)} == new


def test_help_does_not_wait_for_jax_and_names_the_default():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "migan_jax.inpaint", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert f"(default: {DEFAULT_FEATHER})" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "migan_jax.geometry.filling" in imported and "jax" not in imported
