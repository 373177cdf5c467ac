"""The verb `summary`: its numbers, picture and error messages."""

import re
import subprocess
import sys

import pytest
from PIL import Image
from verbs import assert_error_line, run_here

from migan_jax import summary
from migan_jax.families import FAMILIES, all_kinds
from migan_jax.models.migan import MIGANGenerator


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
def test_total_is_within_a_percent_of_the_papers(family, resolution):
    text = "\n".join(summary.describe(MODULES[family](resolution)))
    published = FAMILIES[family].published(MODULES[family](resolution)).multiply_adds
    counted = float(re.search(r"as the papers count +([\d.]+) G", text).group(1))
    assert abs(counted / published - 1) < 0.01
    terms = [float(value) for value in re.findall(r" ([\d.]+) G\n", text)]
    assert abs(sum(terms) - counted) < 0.005


@pytest.mark.parametrize(
    ("family", "ratio"), [("migan", "9.0x"), ("migan_discriminator", "4.8x")]
)
def test_trainable_state_of_collapsed_kernels(family, ratio):
    text = "\n".join(summary.describe(MODULES[family](256)))
    assert ratio in text


def test_parameters_with_filter_taps():
    text = "\n".join(summary.describe(MIGANGenerator(512)))
    assert "5,893,158" in text
    assert "5,973,366" in text


def test_blocks_are_in_the_order_of_the_forward_pass():
    blocks = list(summary.count_parameters(MIGANGenerator(16, 256, 24)))
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
        # Input, output, completion and levels 4, 8, 16: two rows of four, with labels
        # above and gaps of two pixels.
        assert picture.size == (4 * 258 - 2, 2 * (256 + 16 + 2) - 2)
        assert len(picture.getcolors(maxcolors=1 << 20)) > 100


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--resolution=100"], ["--resolution", "100"]),
        (["--resolution=65536"], ["--resolution", "65536", "4096"]),
        (
            ["--checkpoint=nowhere.pt", "--resolution=512"],
            ["--resolution", "checkpoint"],
        ),
        (["--checkpoint=nowhere.pt"], ["nowhere.pt"]),
        (
            ["--family=migan_discriminator", "--picture=x.png"],
            ["--picture", "discriminator"],
        ),
        (["--family=migan", "--picture=x.jpeg"], ["--picture=x.jpeg", ".png"]),
        (["--family=mi-gan"], ["--family", "mi-gan", "migan?"]),
        (["--config=places512", "--resolution=256"], ["--resolution", "recipe"]),
        (["--config=place512"], ["place512", "places512?"]),
    ],
)
def test_mistakes_are_reported(arguments, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_error_line(run_here(monkeypatch, summary, *arguments), *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["places512", "comodgan_places256"])
def test_networks_of_a_recipe(recipe, monkeypatch, capsys):
    assert run_here(monkeypatch, summary, f"--config={recipe}") == 0
    shown = capsys.readouterr().out
    system, size = ("migan", 512) if recipe == "places512" else ("comodgan", 256)
    assert f"{system}, {size} px" in shown
    assert f"{system}_discriminator, {size} px" in shown
