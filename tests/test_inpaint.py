"""The verb inpaint: files and folders, what it says, what it leaves alone."""

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
from scipy.ndimage import distance_transform_edt
from test_weights_names import NETWORKS, plausible_tensors

import migan_jax
from migan_jax import inpaint
from migan_jax.config import run_verb
from migan_jax.geometry.filling import DEFAULT_FEATHER
from migan_jax.photos import read_photo
from migan_jax.weights.reading import write_tensors

SHAPE = (40, 50)
HOLE = hole_in(SHAPE, (10, 20, 16, 27))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "x.safetensors"
    write_tensors(path, plausible_tensors(NETWORKS["migan_fused"]))
    return path


@pytest.fixture
def run(monkeypatch, checkpoint):
    """Run the verb in this process; returns its exit status, or its message."""

    def run(*arguments):
        words = [f"--checkpoint={checkpoint}", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["inpaint", *words])
        try:
            run_verb(inpaint.main)
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


@pytest.fixture
def folders(tmp_path):
    """photos/ of several formats and subfolders, and masks/ of the same names."""
    for number, name in enumerate(("a.png", "b.jpg", "sub/c.tif", "sub/d.webp")):
        save(tmp_path / "photos" / name, picture(*SHAPE, seed=number))
        save((tmp_path / "masks" / name).with_suffix(".png"), HOLE)
    return tmp_path


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.uint8(255) * array if array.dtype == np.bool_ else array
    Image.fromarray(array).save(path)
    return path


def pixels(path):
    return read_photo(path).rgb


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def one_sentence(message, *parts):
    assert isinstance(message, str) and message.startswith("error: ")
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def pair(folder, hole=HOLE, name="photo.png"):
    photo = save(folder / name, picture(*SHAPE))
    return f"--image={photo}", f"--mask={save(folder / 'mask.png', hole)}"


# One photo.


def test_one_photo(run, tmp_path, checkpoint, capsys):
    image, mask = pair(tmp_path)
    output = tmp_path / "new" / "filled.png"
    assert run(image, mask, f"--output={output}") == 0
    assert capsys.readouterr().out == f"wrote {output}\n"
    photo = picture(*SHAPE)
    expected = migan_jax.load(checkpoint).inpaint(photo, HOLE)
    assert np.array_equal(pixels(output), expected)
    assert tree(tmp_path / "new") == ["filled.png"]


def test_options(run, tmp_path, checkpoint):
    image, mask = pair(tmp_path, ~HOLE)
    output = tmp_path / "filled.png"
    options = "--mask-hole=black", "--feather=0", "--raw"
    assert run(image, mask, f"--output={output}", *options) == 0
    photo = picture(*SHAPE)
    expected = migan_jax.load(checkpoint).inpaint(photo, HOLE, feather=0)
    assert np.array_equal(pixels(output), expected)
    raw = pixels(tmp_path / "filled.png.raw.png")
    assert np.array_equal(raw[HOLE], expected[HOLE])  # nothing was resized
    assert not np.array_equal(raw, expected)


def test_results_are_not_overwritten_unless_forced(run, tmp_path):
    image, mask = pair(tmp_path)
    output = tmp_path / "filled.png"
    output.write_bytes(b"mine")
    one_sentence(run(image, mask, f"--output={output}"), output, "exists", "--force")
    assert output.read_bytes() == b"mine"
    assert run(image, mask, f"--output={output}", "--force") == 0
    assert pixels(output).shape == (*SHAPE, 3)


def test_inputs_are_never_overwritten(run, tmp_path):
    image, mask = pair(tmp_path)
    for name in ("photo.png", "mask.png"):
        before = (tmp_path / name).read_bytes()
        message = run(image, mask, f"--output={tmp_path / name}", "--force")
        one_sentence(message, "would be overwritten")
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("taken_by", ["--image", "--mask"])
def test_raw_pictures_overwrite_nothing_either(taken_by, run, tmp_path):
    taken = tmp_path / "filled.png.raw.png"
    words = dict(word.split("=") for word in pair(tmp_path))
    shutil.copy(words[taken_by], taken)
    words |= {taken_by: taken, "--output": tmp_path / "filled.png"}
    options = [f"{flag}={path}" for flag, path in words.items()]
    before = taken.read_bytes()
    one_sentence(run(*options, "--raw", "--force"), taken, "would be overwritten")
    assert taken.read_bytes() == before
    options = *pair(tmp_path), f"--output={tmp_path / 'filled.png'}"
    one_sentence(run(*options, "--raw"), taken, "exists")
    assert taken.read_bytes() == before and not (tmp_path / "filled.png").exists()


def test_a_link_is_an_output_that_exists(run, tmp_path):
    link = tmp_path / "link.png"
    link.symlink_to("nowhere.png")
    one_sentence(run(*pair(tmp_path), f"--output={link}"), "exists")
    assert link.is_symlink()


@pytest.mark.parametrize("flag", ["--image", "--mask"])
def test_pipes_are_no_photos(flag, run, tmp_path):
    """Reading one would wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    words = [word for word in pair(tmp_path) if not word.startswith(flag)]
    words += [f"{flag}={tmp_path / 'pipe.png'}", f"--output={tmp_path / 'x.png'}"]
    one_sentence(run(*words), "pipe.png is not a file")


def test_an_output_folder_takes_the_photos_name(run, tmp_path):
    image, mask = pair(tmp_path)
    (tmp_path / "out").mkdir()
    assert run(image, mask, f"--output={tmp_path / 'out'}") == 0
    assert tree(tmp_path / "out") == ["photo.png"]


def test_a_mask_folder_is_searched_for_the_photos_name(run, tmp_path):
    image, _ = pair(tmp_path)
    save(tmp_path / "masks" / "photo.bmp", HOLE)
    output = tmp_path / "filled.png"
    assert run(image, f"--mask={tmp_path / 'masks'}", f"--output={output}") == 0
    assert output.exists()


def test_without_a_hole_the_file_is_copied(run, tmp_path, caplog):
    _, mask = pair(tmp_path, hole_in(SHAPE))
    photo = save(tmp_path / "photo.jpg", picture(*SHAPE))
    output = tmp_path / "same.jpg"
    assert run(f"--image={photo}", mask, f"--output={output}") == 0
    assert output.read_bytes() == photo.read_bytes()
    assert "no hole" in caplog.text
    assert run(f"--image={photo}", mask, f"--output={tmp_path / 'other.png'}") == 0
    assert np.array_equal(pixels(tmp_path / "other.png"), pixels(photo))


def test_doubtful_masks_are_named(run, tmp_path, caplog):
    image, mask = pair(tmp_path, ~HOLE)
    assert run(image, mask, f"--output={tmp_path / 'x.png'}") == 0
    assert f"{tmp_path / 'mask.png'}: The mask makes 98% of" in caplog.text
    assert "wrong way round, then --mask-hole=black." in caplog.text


def test_transparent_parts_of_a_photo_are_filled_and_shown(run, tmp_path):
    photo = np.dstack([picture(*SHAPE), np.where(HOLE, 0, 255).astype(np.uint8)])
    path, output = save(tmp_path / "photo.png", photo), tmp_path / "filled.png"
    assert run(f"--image={path}", f"--mask={path}", f"--output={output}") == 0
    assert read_photo(output).mode == "RGB"
    far = distance_transform_edt(~HOLE) > DEFAULT_FEATHER
    assert np.array_equal(pixels(output)[far], photo[far][:, :3])


def test_alpha_is_kept(run, tmp_path):
    alpha = np.arange(40 * 50).reshape(SHAPE).astype(np.uint8)
    path = save(tmp_path / "photo.png", np.dstack([picture(*SHAPE), alpha]))
    _, mask = pair(tmp_path, name="other.png")
    output = tmp_path / "filled.png"
    assert run(f"--image={path}", mask, f"--output={output}") == 0
    assert np.array_equal(read_photo(output).pixels[..., 3], alpha)


def test_masks_are_of_the_upright_photo(run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(picture(SHAPE[1], SHAPE[0])).save(path, exif=exif)
    output = tmp_path / "x.jpg"
    upright = save(tmp_path / "upright.png", HOLE)
    stored = save(tmp_path / "stored.png", np.ascontiguousarray(HOLE.T))
    assert run(f"--image={path}", f"--mask={upright}", f"--output={output}") == 0
    assert pixels(output).shape[:2] == SHAPE
    message = run(
        f"--image={path}", f"--mask={stored}", f"--output={output}", "--force"
    )
    one_sentence(message, "40x50", "50x40 as viewers turn it")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"--image": "absent.png"}, ["--image", "nothing at", "absent.png"]),
        ({"--mask": "absent.png"}, ["--mask", "nothing at", "absent.png"]),
        ({"--output": "x.gif"}, ["x.gif", "use one of .bmp"]),
        ({"--output": "x"}, ["use one of .bmp"]),
        ({"--image": "text.png"}, ["text.png", "not an image in a known format"]),
        ({"--mask": "text.png"}, ["text.png", "not an image in a known format"]),
        ({"--mask": "small.png"}, ["small.png is 5x4 pixels", "photo.png is 50x40"]),
        ({"--mask": "folder"}, ["there is no mask", "photo.*"]),
        ({"--checkpoint": "absent.pt"}, ["no checkpoint at", "absent.pt"]),
        ({"--checkpoint": "text.png"}, ["text.png"]),
        ({"--output": "text.png/x.png"}, ["text.png/x.png", "cannot be written"]),
    ],
)
def test_mistakes_get_one_sentence(changes, parts, run, tmp_path):
    pair(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("hello")
    save(tmp_path / "small.png", HOLE[:4, :5])
    before = tree(tmp_path)
    flags = {"--image": "photo.png", "--mask": "mask.png", "--output": "out.png"}
    words = [f"{flag}={tmp_path / name}" for flag, name in {**flags, **changes}.items()]
    one_sentence(run(*words), *parts)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("value", ["-1", "65"])
def test_feathers_out_of_range(value, run, tmp_path):
    message = run(
        *pair(tmp_path), f"--output={tmp_path / 'x.png'}", f"--feather={value}"
    )
    one_sentence(message, "feather is a whole number", "from 0 to 2", value)


# Folders.


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
    (out / "a.png").write_bytes(b"mine")
    capsys.readouterr()
    assert run(*arguments_of(folders)) == 0
    assert "1 completed, 3 there already, 0 left out" in capsys.readouterr().out
    assert (out / "a.png").read_bytes() == b"mine"
    assert run(*arguments_of(folders), "--force") == 0
    assert "4 completed, 0 there already" in capsys.readouterr().out
    assert (out / "a.png").read_bytes() != b"mine"


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
