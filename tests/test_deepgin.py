"""DeepGIN's checkpoints in use: the authors' file format, the API and the verbs."""

import jax
import numpy as np
import pytest
from PIL import Image
from test_models_deepgin import make, scaled
from variables import random_variables
from verbs import assert_error_line, run_here

import migan_jax
from migan_jax import convert, evaluate, export, inpaint, summary, train
from migan_jax.config import load_config
from migan_jax.errors import UserError
from migan_jax.families import save_checkpoint, to_tensors
from migan_jax.models.deepgin import DeepGINDiscriminator
from migan_jax.training.pretrained import read_pretrained
from migan_jax.training.programs import build_system
from migan_jax.training.step import init_state
from migan_jax.weights.checkpoint import Checkpoint
from migan_jax.weights.tensor_files import read_tensors

SIZE = 32
KEY = jax.random.key(0)


def make_checkpoint(variant="full"):
    network, variables = make(variant, np.float32)
    return Checkpoint(network, variables["params"], {})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Random weights for 32 pixels, since files count as 256."""
    path = tmp_path_factory.mktemp("deepgin") / "run"
    save_checkpoint(make_checkpoint(), path, "training")
    return path


@pytest.fixture(scope="module")
def model(workdir):
    return migan_jax.load(workdir)


def draw_photo(size, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    hole = np.zeros(size, np.bool_)
    hole[8:20, 10:24] = True
    return image, hole


@pytest.mark.torch
def test_the_authors_old_format_converts_both_ways(monkeypatch, tmp_path):
    """PyTorch 1.5's, which is no zip; tensors and names are unchanged."""
    import torch

    discriminator = DeepGINDiscriminator(channels=4)
    variables = random_variables(discriminator)
    for name, checkpoint in (
        ("latest_net_G", make_checkpoint()),
        (
            "latest_net_D",
            Checkpoint(discriminator, variables["params"], variables["stats"]),
        ),
    ):
        tensors = to_tensors(checkpoint)
        file, folder, back = (tmp_path / f"{name}{end}" for end in (".pth", "", ".pt"))
        state = {key: torch.from_numpy(array) for key, array in tensors.items()}
        torch.save(state, file, _use_new_zipfile_serialization=False)
        assert file.read_bytes()[:2] != b"PK"
        assert run_here(monkeypatch, convert, file, folder) == 0
        assert run_here(monkeypatch, convert, folder, back) == 0
        loaded = read_tensors(back)
        assert loaded.keys() == tensors.keys()
        for key, array in tensors.items():
            np.testing.assert_array_equal(loaded[key], array)


def test_complete_returns_the_stages(model):
    image, hole = draw_photo((SIZE, 48))
    image = image[None].astype(np.float32) / 255
    known = 1 - hole[None, ..., None].astype(np.float32)
    result, stages = model.complete(image, known, stages=True)
    assert {name: x.shape for name, x in stages.items()} == {
        "coarse": (1, SIZE, 48, 3),
        "lr": (1, SIZE // 4, 12, 3),
        "refined": (1, SIZE, 48, 3),
    }
    np.testing.assert_array_equal(result * known, image * known)
    assert 0 <= result.min() and result.max() <= 1
    # What the hole holds does not matter.
    other = image * known + 0.3 * (1 - known)
    np.testing.assert_array_equal(model.complete(other, known), result)
    # In the family's own packing: white holes in [0, 1], and 1 in the hole.
    x = np.concatenate([image * known + 1 - known, 1 - known], axis=-1)
    output = np.clip(model.forward(x), 0, 1) * (1 - known) + image * known
    np.testing.assert_allclose(output, result, atol=1e-5)


def test_complete_refuses_sizes_in_one_sentence(model):
    with pytest.raises(ValueError, match="16") as caught:
        model.complete(np.zeros((1, 24, 32, 3)), np.ones((1, 24, 32, 1)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [[], ["--tiles=polyphase", "--ensemble"]])
def test_inpaint(options, workdir, monkeypatch, tmp_path):
    image, hole = draw_photo((50, 70))
    Image.fromarray(image).save(tmp_path / "photo.png")
    Image.fromarray(hole).save(tmp_path / "mask.png")
    status = run_here(
        monkeypatch,
        inpaint,
        f"--checkpoint={workdir}",
        *(f"--{name}={tmp_path / name}.png" for name in ("mask",)),
        f"--image={tmp_path / 'photo.png'}",
        f"--output={tmp_path / 'filled.png'}",
        "--feather=0",
        *options,
    )
    assert status == 0
    with Image.open(tmp_path / "filled.png") as filled:
        pixels = np.asarray(filled)
    np.testing.assert_array_equal(pixels[~hole], image[~hole])
    assert (pixels[hole] != image[hole]).any()


def test_evaluate_and_summary(workdir, monkeypatch, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(2):
        Image.fromarray(draw_photo((SIZE, SIZE), index)[0]).save(
            images / f"{index}.png"
        )
    arguments = f"--images={images}", f"--output={tmp_path / 'out'}"
    status = run_here(monkeypatch, evaluate, f"--checkpoint={workdir}", *arguments)
    assert status == 0
    assert "hole_psnr" in (tmp_path / "out" / "result.json").read_text()
    capsys.readouterr()
    assert run_here(monkeypatch, summary, "--family=deepgin") == 0
    text = capsys.readouterr().out
    assert "42,930,186" in text and "42.930 M" in text
    assert run_here(monkeypatch, summary, "--config=deepgin_celebahq256:std") == 0
    assert "40,849,990" in capsys.readouterr().out


def test_other_files_are_refused(workdir, monkeypatch, tmp_path):
    discriminator = DeepGINDiscriminator(channels=4)
    variables = scaled(random_variables(discriminator))
    checkpoint = Checkpoint(discriminator, variables["params"], variables["stats"])
    save_checkpoint(checkpoint, tmp_path / "D.safetensors", "training")
    image, hole = draw_photo((SIZE, SIZE))
    for name, array in (("image", image), ("mask", hole)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    files = [f"--{name}={tmp_path / name}.png" for name in ("image", "mask", "output")]
    message = run_here(
        monkeypatch, inpaint, f"--checkpoint={tmp_path / 'D.safetensors'}", *files
    )
    assert_error_line(message, "discriminator")
    # A run of another family.
    message = run_here(
        monkeypatch,
        train,
        "--config=scenes64",
        "--smoke",
        f"--workdir={tmp_path / 'run'}",
        f"--init-from={workdir}",
    )
    assert_error_line(message, workdir, "deepgin")
    message = run_here(monkeypatch, summary, "--family=deepgin", "--resolution=8")
    assert_error_line(message, "--resolution", 16)


@pytest.mark.torch
def test_what_has_no_twin_is_neither_exported_nor_checked(
    workdir, monkeypatch, tmp_path
):
    output = tmp_path / "out.onnx"
    arguments = f"--checkpoint={workdir}", "--kind=network", f"--output={output}"
    assert_error_line(run_here(monkeypatch, export, *arguments), "MI-GAN")
    message = run_here(monkeypatch, convert, workdir, tmp_path / "x.pt", "--check")
    assert_error_line(message, "DeepGINGenerator")
    assert not list(tmp_path.iterdir())


def test_training_starts_from_files_of_the_same_row_only(tmp_path):
    config = load_config("deepgin_celebahq256", ["deepgin.channels=8"], tiny=False)
    shapes = {}
    for row in ("std_mssa", "dil_mssa"):
        config.deepgin.variant = row
        system = build_system(config, {})
        shapes[row] = system, jax.eval_shape(lambda s=system: init_state(s, KEY))
    path = tmp_path / "G.safetensors"
    save_checkpoint(make_checkpoint("dil_mssa"), path, "fused")
    loaded = read_pretrained(path, *shapes["dil_mssa"])
    assert loaded.params.keys() == {"generator"}
    with pytest.raises(UserError, match="branch1"):
        read_pretrained(path, *shapes["std_mssa"])


def test_a_missing_vgg_stops_a_run_before_it_computes(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "jit", None)
    message = run_here(
        monkeypatch,
        train,
        "--config=deepgin_celebahq256",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.source=scenes",
        "--config.data.held_out=0",
    )
    assert_error_line(message, "vgg19", "https://")
