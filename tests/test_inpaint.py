"""The verb inpaint on one photo: outputs, messages, and files that must not change."""

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
from verbs import assert_error_line, run_here

import migan_jax
from migan_jax import inpaint, photos
from migan_jax.errors import UserError
from migan_jax.geometry.fill import DEFAULT_FEATHER
from migan_jax.photos import read_photo
from migan_jax.weights.tensor_files import write_tensors

SHAPE = (40, 50)
HOLE = hole_in(SHAPE, (10, 20, 16, 27))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "x.safetensors"
    write_tensors(path, plausible_tensors(NETWORKS["migan_fused"]))
    return path


@pytest.fixture
def run(monkeypatch, checkpoint):
    """Run the verb in this process; return its exit status, or its error message."""
    flag = f"--checkpoint={checkpoint}"
    return functools.partial(run_here, monkeypatch, inpaint, flag)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.uint8(255) * array if array.dtype == np.bool_ else array
    Image.fromarray(array).save(path)
    return path


def read_pixels(path):
    return read_photo(path).rgb


def list_files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def save_pair(folder, hole=HOLE, name="photo.png"):
    photo = save(folder / name, picture(*SHAPE))
    return f"--image={photo}", f"--mask={save(folder / 'mask.png', hole)}"


def test_one_photo(run, tmp_path, checkpoint, capsys):
    image, mask = save_pair(tmp_path)
    output = tmp_path / "new" / "filled.png"
    assert run(image, mask, f"--output={output}") == 0
    assert capsys.readouterr().out == f"wrote {output}\n"
    photo = picture(*SHAPE)
    expected = migan_jax.load(checkpoint).inpaint(photo, HOLE)
    assert np.array_equal(read_pixels(output), expected)
    assert list_files(tmp_path / "new") == ["filled.png"]


def test_options(run, tmp_path, checkpoint):
    image, mask = save_pair(tmp_path, ~HOLE)
    output = tmp_path / "filled.png"
    options = "--mask-hole=black", "--feather=0", "--raw"
    assert run(image, mask, f"--output={output}", *options) == 0
    photo = picture(*SHAPE)
    expected = migan_jax.load(checkpoint).inpaint(photo, HOLE, feather=0)
    assert np.array_equal(read_pixels(output), expected)
    raw = read_pixels(tmp_path / "filled.png.raw.png")
    assert np.array_equal(raw[HOLE], expected[HOLE])  # nothing was resized
    assert not np.array_equal(raw, expected)


def test_grow(run, tmp_path, checkpoint):
    image, mask = save_pair(tmp_path)
    output = tmp_path / "filled.png"
    assert run(image, mask, f"--output={output}", "--grow=3", "--feather=0") == 0
    photo, model = picture(*SHAPE), migan_jax.load(checkpoint)
    wider = distance_transform_edt(~HOLE) <= 3
    assert np.array_equal(read_pixels(output), model.inpaint(photo, wider, feather=0))
    expected = model.inpaint(photo, HOLE, feather=0, grow=3)
    assert np.array_equal(read_pixels(output), expected)
    assert (read_pixels(output) == photo)[~wider].all()
    assert run(image, mask, f"--output={output}", "--grow=-1") == 2


def test_tiles_and_ensemble(run, tmp_path, checkpoint):
    image, mask = save_pair(tmp_path)
    output = tmp_path / "filled.png"
    options = "--tiles=polyphase", "--ensemble", "--raw"
    assert run(image, mask, f"--output={output}", *options) == 0
    photo, model = picture(*SHAPE), migan_jax.load(checkpoint)
    polyphase, mean = {"tiles": "polyphase"}, {"ensemble": True}
    result = read_pixels(output)
    assert np.array_equal(result, model.inpaint(photo, HOLE, **polyphase, **mean))
    for other in ({}, polyphase, mean):
        assert not np.array_equal(result, model.inpaint(photo, HOLE, **other))
    far = distance_transform_edt(~HOLE) > DEFAULT_FEATHER
    raw = read_pixels(tmp_path / "filled.png.raw.png")
    assert np.array_equal(result[far], photo[far])
    assert raw.shape == photo.shape and not np.array_equal(raw[far], photo[far])
    assert run(image, mask, f"--output={output}", "--tiles=all") == 2
    for name, value in {"tiles": "all", "ensemble": "yes"}.items():
        with pytest.raises(UserError, match=f"{name} .*'{value}'"):
            model.inpaint(photo, HOLE, **{name: value})


def test_heic(run, tmp_path, monkeypatch):
    """The format of iPhones, rotated by its metadata; the output is a PNG."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    rotated = Image.fromarray(np.rot90(picture(*SHAPE)))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "A camera"
    rotated.save(tmp_path / "photo.heic", exif=exif.tobytes(), quality=-1)
    mask = save(tmp_path / "mask.png", HOLE)
    photo = f"--image={tmp_path / 'photo.heic'}"
    assert run(photo, f"--mask={mask}", f"--output={tmp_path / 'out.png'}") == 0
    before, after = (
        read_pixels(tmp_path / "photo.heic"),
        read_pixels(tmp_path / "out.png"),
    )
    assert np.abs(before.astype(int) - picture(*SHAPE)).mean() < 3
    far = distance_transform_edt(~HOLE) > DEFAULT_FEATHER
    assert np.array_equal(before[far], after[far]) and (before != after)[HOLE].any()
    with Image.open(tmp_path / "out.png") as written:
        assert written.getexif()[0x010F] == "A camera"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = run(photo, f"--mask={mask}", f"--output={tmp_path / 'new.png'}")
    assert_error_line(message, "photo.heic", "pillow-heif", "heif")


def test_results_are_not_overwritten_unless_forced(run, tmp_path):
    image, mask = save_pair(tmp_path)
    output = tmp_path / "filled.png"
    output.write_bytes(b"mine")
    assert_error_line(run(image, mask, f"--output={output}"), output, "--force")
    assert output.read_bytes() == b"mine"
    assert run(image, mask, f"--output={output}", "--force") == 0
    assert read_pixels(output).shape == (*SHAPE, 3)


def test_inputs_are_never_overwritten(run, tmp_path):
    image, mask = save_pair(tmp_path)
    for name in ("photo.png", "mask.png"):
        before = (tmp_path / name).read_bytes()
        message = run(image, mask, f"--output={tmp_path / name}", "--force")
        assert_error_line(message, tmp_path / name, "--output")
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("flag", ["--image", "--mask"])
def test_raw_outputs_are_not_overwritten_either(flag, run, tmp_path):
    existing = tmp_path / "filled.png.raw.png"
    paths = dict(argument.split("=") for argument in save_pair(tmp_path))
    shutil.copy(paths[flag], existing)
    paths |= {flag: existing, "--output": tmp_path / "filled.png"}
    arguments = [f"{name}={path}" for name, path in paths.items()]
    before = existing.read_bytes()
    assert_error_line(run(*arguments, "--raw", "--force"), existing, "--output")
    assert existing.read_bytes() == before
    arguments = *save_pair(tmp_path), f"--output={tmp_path / 'filled.png'}"
    assert_error_line(run(*arguments, "--raw"), existing, "--force")
    assert existing.read_bytes() == before and not (tmp_path / "filled.png").exists()


def test_links_are_not_overwritten(run, tmp_path):
    link = tmp_path / "link.png"
    link.symlink_to("nowhere.png")
    assert_error_line(run(*save_pair(tmp_path), f"--output={link}"), link, "--force")
    assert link.is_symlink()


@pytest.mark.parametrize("flag", ["--image", "--mask"])
def test_pipes_are_refused(flag, run, tmp_path):
    """Reading one would block forever."""
    os.mkfifo(tmp_path / "pipe.png")
    arguments = [a for a in save_pair(tmp_path) if not a.startswith(flag)]
    arguments += [f"{flag}={tmp_path / 'pipe.png'}", f"--output={tmp_path / 'x.png'}"]
    assert_error_line(run(*arguments), tmp_path / "pipe.png")


def test_an_output_folder_gets_a_file_of_the_photos_name(run, tmp_path):
    image, mask = save_pair(tmp_path)
    (tmp_path / "out").mkdir()
    assert run(image, mask, f"--output={tmp_path / 'out'}") == 0
    assert list_files(tmp_path / "out") == ["photo.png"]


def test_masks_are_found_in_a_folder_by_name(run, tmp_path):
    image, _ = save_pair(tmp_path)
    save(tmp_path / "masks" / "photo.bmp", HOLE)
    output = tmp_path / "filled.png"
    assert run(image, f"--mask={tmp_path / 'masks'}", f"--output={output}") == 0
    assert output.exists()


def test_without_a_hole_the_file_is_copied(run, tmp_path, caplog):
    _, mask = save_pair(tmp_path, hole_in(SHAPE))
    photo = save(tmp_path / "photo.jpg", picture(*SHAPE))
    output = tmp_path / "same.jpg"
    assert run(f"--image={photo}", mask, f"--output={output}") == 0
    assert output.read_bytes() == photo.read_bytes()
    assert str(tmp_path / "mask.png") in caplog.text
    assert run(f"--image={photo}", mask, f"--output={tmp_path / 'other.png'}") == 0
    assert np.array_equal(read_pixels(tmp_path / "other.png"), read_pixels(photo))


def test_masks_that_look_inverted_get_a_warning(run, tmp_path, caplog):
    image, mask = save_pair(tmp_path, ~HOLE)
    assert run(image, mask, f"--output={tmp_path / 'x.png'}") == 0
    for part in (str(tmp_path / "mask.png"), "98%", "--mask-hole=black"):
        assert part in caplog.text


def test_a_photo_as_its_own_mask_is_filled_where_transparent(run, tmp_path):
    photo = np.dstack([picture(*SHAPE), np.where(HOLE, 0, 255).astype(np.uint8)])
    path, output = save(tmp_path / "photo.png", photo), tmp_path / "filled.png"
    assert run(f"--image={path}", f"--mask={path}", f"--output={output}") == 0
    assert read_photo(output).mode == "RGB"
    far = distance_transform_edt(~HOLE) > DEFAULT_FEATHER
    assert np.array_equal(read_pixels(output)[far], photo[far][:, :3])


def test_alpha_is_kept(run, tmp_path):
    alpha = np.arange(40 * 50).reshape(SHAPE).astype(np.uint8)
    path = save(tmp_path / "photo.png", np.dstack([picture(*SHAPE), alpha]))
    _, mask = save_pair(tmp_path, name="other.png")
    output = tmp_path / "filled.png"
    assert run(f"--image={path}", mask, f"--output={output}") == 0
    assert np.array_equal(read_photo(output).pixels[..., 3], alpha)


def test_masks_fit_the_upright_photo(run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(picture(SHAPE[1], SHAPE[0])).save(path, exif=exif)
    output = tmp_path / "x.jpg"
    upright = save(tmp_path / "upright.png", HOLE)
    stored = save(tmp_path / "stored.png", np.ascontiguousarray(HOLE.T))
    assert run(f"--image={path}", f"--mask={upright}", f"--output={output}") == 0
    assert read_pixels(output).shape[:2] == SHAPE
    message = run(
        f"--image={path}", f"--mask={stored}", f"--output={output}", "--force"
    )
    assert_error_line(message, stored, "40x50", path, "50x40")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"--image": "absent.png"}, ["--image", "absent.png"]),
        ({"--mask": "absent.png"}, ["--mask", "absent.png"]),
        ({"--output": "x.gif"}, ["x.gif", ".bmp"]),
        ({"--output": "x"}, [".bmp"]),
        ({"--image": "text.png"}, ["text.png"]),
        ({"--mask": "text.png"}, ["text.png"]),
        ({"--mask": "small.png"}, ["small.png", "5x4", "photo.png", "50x40"]),
        ({"--mask": "folder"}, ["folder/photo.*"]),
        ({"--checkpoint": "absent.pt"}, ["absent.pt"]),
        ({"--checkpoint": "text.png"}, ["text.png"]),
        ({"--output": "text.png/x.png"}, ["text.png/x.png"]),
    ],
)
def test_errors_name_the_flag_or_file(changes, parts, run, tmp_path):
    save_pair(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("hello")
    save(tmp_path / "small.png", HOLE[:4, :5])
    before = list_files(tmp_path)
    flags = {"--image": "photo.png", "--mask": "mask.png", "--output": "out.png"}
    flags |= changes
    assert_error_line(
        run(*(f"{flag}={tmp_path / x}" for flag, x in flags.items())), *parts
    )
    assert list_files(tmp_path) == before


def test_running_out_of_memory(run, tmp_path, monkeypatch):
    image, mask = save_pair(tmp_path)
    arguments = image, mask, f"--output={tmp_path / 'x.png'}"

    def fail(checkpoint):
        raise MemoryError

    monkeypatch.setattr(migan_jax, "load", fail)
    assert_error_line(run(*arguments), tmp_path / "photo.png", "50x40", "36 kB")
    monkeypatch.setattr(photos, "free_memory", lambda: 0)
    assert_error_line(run(*arguments), tmp_path / "photo.png", "50x40", "36 kB")
    assert list_files(tmp_path) == ["mask.png", "photo.png"]


@pytest.mark.parametrize("value", ["-1", "65"])
def test_feathers_out_of_range(value, run, tmp_path):
    message = run(
        *save_pair(tmp_path), f"--output={tmp_path / 'x.png'}", f"--feather={value}"
    )
    assert_error_line(message, "feather", "0 to 2", value)
