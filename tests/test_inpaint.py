"""The verb inpaint on one photo: what it writes, what it says, what it leaves alone."""

import functools
import os
import shutil
import sys

import numpy as np
import pytest
from pictures import hole_in, picture
from PIL import Image
from scipy.ndimage import distance_transform_edt
from test_weights_names import NETWORKS, plausible_tensors
from verbs import one_sentence, run_here

import migan_jax
from migan_jax import inpaint, photos
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
    flag = f"--checkpoint={checkpoint}"
    return functools.partial(run_here, monkeypatch, inpaint, flag)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.uint8(255) * array if array.dtype == np.bool_ else array
    Image.fromarray(array).save(path)
    return path


def pixels(path):
    return read_photo(path).rgb


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def pair(folder, hole=HOLE, name="photo.png"):
    photo = save(folder / name, picture(*SHAPE))
    return f"--image={photo}", f"--mask={save(folder / 'mask.png', hole)}"


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


def test_a_hole_that_is_widened(run, tmp_path, checkpoint):
    image, mask = pair(tmp_path)
    output = tmp_path / "filled.png"
    assert run(image, mask, f"--output={output}", "--grow=3", "--feather=0") == 0
    photo, model = picture(*SHAPE), migan_jax.load(checkpoint)
    wider = distance_transform_edt(~HOLE) <= 3
    assert np.array_equal(pixels(output), model.inpaint(photo, wider, feather=0))
    expected = model.inpaint(photo, HOLE, feather=0, grow=3)
    assert np.array_equal(pixels(output), expected)
    assert (pixels(output) == photo)[~wider].all()
    assert run(image, mask, f"--output={output}", "--grow=-1") == 2


def test_heic(run, tmp_path, monkeypatch):
    """What iPhones save, turned by its metadata; a PNG comes out."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    turned = Image.fromarray(np.rot90(picture(*SHAPE)))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A camera"
    turned.save(tmp_path / "photo.heic", exif=exif.tobytes(), quality=-1)
    mask = save(tmp_path / "mask.png", HOLE)
    photo = f"--image={tmp_path / 'photo.heic'}"
    assert run(photo, f"--mask={mask}", f"--output={tmp_path / 'out.png'}") == 0
    before, after = pixels(tmp_path / "photo.heic"), pixels(tmp_path / "out.png")
    assert np.abs(before.astype(int) - picture(*SHAPE)).mean() < 3
    far = distance_transform_edt(~HOLE) > DEFAULT_FEATHER
    assert np.array_equal(before[far], after[far]) and (before != after)[HOLE].any()
    with Image.open(tmp_path / "out.png") as written:
        assert written.getexif()[0x010F] == "A camera"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = run(photo, f"--mask={mask}", f"--output={tmp_path / 'new.png'}")
    one_sentence(message, "photo.heic", "pip install 'pillow-heif", "extra heif")


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


def test_memory_that_runs_out(run, tmp_path, monkeypatch):
    image, mask = pair(tmp_path)
    words = image, mask, f"--output={tmp_path / 'x.png'}"

    def fails(checkpoint):
        raise MemoryError

    monkeypatch.setattr(migan_jax, "load", fails)
    one_sentence(run(*words), "photo.png has 50x40 pixels", "make it smaller")
    monkeypatch.setattr(photos, "free_memory", lambda: 0)
    one_sentence(run(*words), "photo.png has 50x40 pixels", "make it smaller")
    assert tree(tmp_path) == ["mask.png", "photo.png"]


@pytest.mark.parametrize("value", ["-1", "65"])
def test_feathers_out_of_range(value, run, tmp_path):
    message = run(
        *pair(tmp_path), f"--output={tmp_path / 'x.png'}", f"--feather={value}"
    )
    one_sentence(message, "feather is a whole number", "from 0 to 2", value)
