"""Every phase of the game against PyTorch: losses and gradients.

In float64 tensor by tensor, in float32 as one long vector.

Parameters and gradients are compared under the released names.
"""

import numpy as np
import pytest

pytest.importorskip("torch")

from games import Game
from parity import relative_l2

pytestmark = pytest.mark.torch


# Whole iterations of MI-GAN's are PyTorch's, too (test_training_step.py).
@pytest.fixture(params=[pytest.param("migan", marks=pytest.mark.full), "comodgan"])
def game(request, float64):
    return Game(request.param)


def agree(game, turn):
    """Loss by loss and tensor by tensor; returns our loss and metrics."""
    ours, metrics, gradient = game.ours_in(turn)
    theirs, expected = game.theirs_in(turn)
    assert relative_l2(ours, theirs) <= 1e-9
    assert gradient.keys() == expected.keys()
    for name, value in expected.items():
        if np.any(value):
            assert relative_l2(gradient[name], value) <= 1e-9, name
        else:
            assert not np.any(gradient[name]), name
    return ours, metrics


def test_generator_step(game):
    value, metrics = agree(game, "generator")
    terms = ["g/adversarial", "g/l1"]
    terms += ["g/distillation"] * (game.family == "migan")
    assert value == pytest.approx(sum(metrics[name] for name in terms))
    assert min(metrics[name] for name in terms) > 0.01


@pytest.mark.slow
def test_discriminator_step(game):
    value, metrics = agree(game, "discriminator")
    assert metrics["d/adversarial"] == value


@pytest.mark.slow
def test_lazy_penalty(game):
    value, metrics = agree(game, "penalty")
    assert value == pytest.approx(160 * metrics["d/r1"])


@pytest.mark.full
@pytest.mark.parametrize(
    "turn",
    [
        "generator",
        "discriminator",
        "penalty",
    ],
)
@pytest.mark.parametrize("family", ["migan", "comodgan"])
def test_float32(family, turn):
    """The middle one of three batches.

    Rounding may put a value on the other side of a leaky ReLU's bend, where the
    gradient jumps: that is no error, and rarely happens in two batches of three.
    """
    game = Game(family, np.float32)
    distances = []
    for seed in range(3):
        game.draw_batch(seed)
        _, _, gradient = game.ours_in(turn)
        _, expected = game.theirs_in(turn)
        ours = np.concatenate([np.ravel(gradient[name]) for name in expected])
        theirs = np.concatenate([np.ravel(value) for value in expected.values()])
        assert ours.dtype == np.float32
        distances.append(relative_l2(ours, theirs))
    assert np.median(distances) <= 1e-5
