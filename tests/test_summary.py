"""The verb `summary`: its figures, its picture, and what it says of mistakes."""

import re
import subprocess
import sys

import pytest
from PIL import Image
from verbs import one_sentence, run_here

from migan_jax import summary
from migan_jax.families import FAMILIES, all_kinds
from migan_jax.models.migan import Generator


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "migan_jax.summary", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


MODULES = {kind.name: kind.module for kind in all_kinds()}


@pytest.mark.parametrize("resolution", [256, 512])
@pytest.mark.parametrize("family", ["migan", "comodgan"])
def test_total_closes_to_the_papers_within_a_percent(family, resolution):
    text = "\n".join(summary.describe(MODULES[family](resolution)))
    published = FAMILIES[family].published[resolution].multiply_adds
    counted = float(re.search(r"as the papers count +([\d.]+) G", text).group(1))
    assert abs(counted / published - 1) < 0.01
    parts = [float(value) for value in re.findall(r" ([\d.]+) G\n", text)]
    assert abs(sum(parts) - counted) < 0.005


@pytest.mark.parametrize(
    ("family", "shrinks"), [("migan", "9.0x"), ("migan_discriminator", "4.8x")]
)
def test_trainable_state_of_collapsed_kernels(family, shrinks):
    text = "\n".join(summary.describe(MODULES[family](256)))
    assert f"stored as one: {shrinks} fewer" in text


def test_parameters_with_filter_taps():
    text = "\n".join(summary.describe(Generator(512)))
    assert "5,893,158" in text
    assert "5,973,366" in text


def test_blocks_come_in_the_order_of_the_forward_pass():
    blocks = list(summary.parameters_of(Generator(16, 256, 24)))
    assert blocks == [
        *("encoder b16", "encoder b8", "encoder b4"),
        *("synthesis b4", "synthesis b8", "synthesis b16"),
    ]


def test_picture_of_a_forward_pass(tmp_path):
    path = tmp_path / "new" / "forward.png"
    done = run("--family=migan", "--resolution=16", f"--picture={path}")
    assert done.returncode == 0, done.stderr
    assert "random" in done.stdout
    with Image.open(path) as picture:
        # input, output, completion and the levels 4, 8, 16: two rows of four, labels
        # above them and gaps of two pixels between.
        assert picture.size == (4 * 258 - 2, 2 * (256 + 16 + 2) - 2)
        assert len(picture.getcolors(maxcolors=1 << 20)) > 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--resolution=100"], "power of two"),
        (["--resolution=65536"], "more than 4096"),
        (["--checkpoint=nowhere.pt", "--resolution=512"], "has its own"),
        (["--checkpoint=nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["--family=migan_discriminator", "--picture=x.png"], "cannot inpaint"),
        (["--family=migan", "--picture=x.jpeg"], "ends in .png"),
        (["--family=mi-gan"], "there is no mi-gan (did you mean migan?)"),
        (["--config=places512", "--resolution=256"], "a recipe has its own"),
        (["--config=place512"], "did you mean places512?"),
    ],
)
def test_mistakes_get_one_sentence(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_sentence(run_here(monkeypatch, summary, *arguments), sentence)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["places512", "comodgan_places256"])
def test_a_recipes_networks_are_shown_in_its_sizes(recipe, monkeypatch, capsys):
    assert run_here(monkeypatch, summary, f"--config={recipe}") == 0
    shown = capsys.readouterr().out
    system, size = ("migan", 512) if recipe == "places512" else ("comodgan", 256)
    assert f"{system}, {size} px" in shown
    assert f"{system}_discriminator, {size} px" in shown
