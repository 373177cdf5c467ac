"""The verb inpaint's --samples and --seed: several completions of a photo."""

import numpy as np
import pytest
from pictures import hole_in, picture
from scipy.ndimage import distance_transform_edt
from test_inpaint import HOLE, SHAPE, list_files, read_pixels, run, save, save_pair
from test_inpaint_folders import counts, make_arguments
from test_weights_names import NETWORKS, plausible_tensors
from verbs import assert_error_line

import migan_jax
from migan_jax.geometry.fill import DEFAULT_FEATHER
from migan_jax.weights.tensor_files import write_tensors

__all__ = ["run"]  # a fixture


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network with latents, for `run`."""
    path = tmp_path_factory.mktemp("checkpoint") / "x.safetensors"
    write_tensors(path, plausible_tensors(NETWORKS["comodgan"]))
    return path


@pytest.fixture
def folders(tmp_path):
    for index, name in enumerate(("a.png", "b.png")):
        save(tmp_path / "photos" / name, picture(*SHAPE, seed=index))
        save(tmp_path / "masks" / name, HOLE)
    return tmp_path


def test_samples_differ_in_the_hole_only(run, tmp_path, capsys):
    pair, out = save_pair(tmp_path), tmp_path / "out"
    assert run(*pair, f"--output={out / 'usual.png'}") == 0
    assert run(*pair, f"--output={out / 'second.png'}", "--seed=1") == 0
    capsys.readouterr()
    assert run(*pair, f"--output={out / 'x.png'}", "--samples=3") == 0
    names = [f"x-{number}.png" for number in (1, 2, 3)]
    assert list_files(out) == ["second.png", "usual.png", *names]
    wrote = capsys.readouterr().out.splitlines()
    assert wrote == [f"wrote {out / name}" for name in names]
    first, second, third = results = [read_pixels(out / name) for name in names]
    assert np.array_equal(first, read_pixels(out / "usual.png"))
    assert np.array_equal(second, read_pixels(out / "second.png"))
    far = distance_transform_edt(~HOLE) > DEFAULT_FEATHER
    for result in results:
        assert np.array_equal(result[far], picture(*SHAPE)[far])
    for one, other in ((first, second), (first, third), (second, third)):
        assert (one != other)[HOLE].any()


def test_samples_with_other_options(run, tmp_path, checkpoint):
    options = "--tiles=polyphase", "--ensemble", "--raw", "--seed=4", "--samples=2"
    (tmp_path / "out").mkdir()
    assert run(*save_pair(tmp_path), f"--output={tmp_path / 'out'}", *options) == 0
    names = ["photo-1.png", "photo-2.png"]
    raw = [f"{name}.raw.png" for name in names]
    assert list_files(tmp_path / "out") == sorted(names + raw)
    model, same = migan_jax.load(checkpoint), {"tiles": "polyphase", "ensemble": True}
    for seed, name in enumerate(names, 4):
        expected = model.inpaint(picture(*SHAPE), HOLE, seed=seed, **same)
        assert np.array_equal(read_pixels(tmp_path / "out" / name), expected)
    assert not np.array_equal(*(read_pixels(tmp_path / "out" / name) for name in raw))


def test_no_sample_overwrites_a_file(run, tmp_path):
    output = f"--output={tmp_path / 'x.png'}"
    photo, raw = tmp_path / "x-2.png", tmp_path / "x-3.png.raw.png"
    pair = save_pair(tmp_path, name=photo.name)
    assert_error_line(run(*pair, output, "--samples=2", "--force"), photo, "input")
    pair = save_pair(tmp_path)
    assert_error_line(run(*pair, output, "--samples=2"), photo, "--force")
    photo.rename(raw)
    assert_error_line(run(*pair, output, "--samples=3", "--raw"), raw, "--force")
    assert list_files(tmp_path) == ["mask.png", "photo.png", raw.name]


def test_samples_of_folders_never_overwrite_photos(run, folders):
    photos = folders / "photos"
    save(photos / "a-2.png", picture(*SHAPE))
    save(photos / "photos" / "a.png", picture(*SHAPE))
    save(folders / "mask.png", HOLE)
    arguments = f"--image={photos}", f"--mask={folders / 'mask.png'}"
    before = {name: (photos / name).read_bytes() for name in list_files(photos)}
    options = f"--output={folders}", "--samples=2", "--force"
    assert_error_line(run(*arguments, *options), ": 1.")
    assert {name: (photos / name).read_bytes() for name in list_files(photos)} == before


def test_missing_samples_of_a_batch_are_added(run, folders, capsys, caplog):
    save(folders / "masks" / "b.png", hole_in(SHAPE))  # none: b.png is copied
    arguments = *make_arguments(folders), "--samples=2"
    assert run(*arguments) == 0
    out = folders / "out"
    expected = {name: (out / name).read_bytes() for name in list_files(out)}
    assert [*expected] == ["a-1.png", "a-2.png", "b-1.png", "b-2.png"]
    photo = (folders / "photos" / "b.png").read_bytes()
    assert expected["b-1.png"] == expected["b-2.png"] == photo
    assert len(caplog.records) == 1 and "b.png" in caplog.text
    (out / "a-2.png").unlink()
    mine = save(out / "a-1.png", picture(9, 9)).read_bytes()
    capsys.readouterr()
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert counts(printed) == [1, 1, 0] and "a-1.png" not in printed
    assert (out / "a-1.png").read_bytes() == mine
    assert (out / "a-2.png").read_bytes() == expected["a-2.png"]
    assert run(*arguments, "--force") == 0
    assert {name: (out / name).read_bytes() for name in list_files(out)} == expected


@pytest.mark.parametrize("option", ["--samples=2", "--seed=1"])
def test_families_without_latents_refuse(option, run, folders):
    path = folders / "migan.safetensors"
    write_tensors(path, plausible_tensors(NETWORKS["migan_fused"]))
    message = run(*make_arguments(folders), f"--checkpoint={path}", option)
    assert_error_line(message, path, "MI-GAN", "--samples", "--seed", "latents")
    assert not (folders / "out").exists()


@pytest.mark.parametrize("option", ["--samples=0", "--samples=1001", "--seed=-1"])
def test_numbers_out_of_range(option, run, tmp_path):
    assert run(*save_pair(tmp_path), f"--output={tmp_path / 'x.png'}", option) == 2
