"""Every phase of the game against PyTorch: losses and gradients, in float64.

Parameters and gradients are compared under the released names.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from games import Game  # noqa: E402
from parity import relative_l2  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(params=["migan", "comodgan"])
def game(request, float64):
    return Game(request.param)


def agree(twin, ours, gradient, theirs):
    parameters = dict(twin.named_parameters())
    expected = torch.autograd.grad(
        theirs, list(parameters.values()), materialize_grads=True
    )
    assert relative_l2(ours, theirs.detach().numpy()) <= 1e-9
    assert gradient.keys() == parameters.keys()
    for name, value in zip(parameters, expected, strict=True):
        if np.any(value.numpy()):
            assert relative_l2(gradient[name], value.numpy()) <= 1e-9, name
        else:
            assert not np.any(gradient[name]), name


def phase(game, player):
    settled = game.stats, game.frozen, game.batch, game.drawn
    return game.value_and_gradient(
        player, lambda params: game.system.loss_of(player, params, *settled)
    )


def test_generator_step(game):
    value, metrics, gradient = phase(game, "generator")
    agree(game.generator, value, gradient, game.their_generator_loss())
    extra = "g/distillation" if game.family == "migan" else "g/l1"
    assert value == pytest.approx(metrics["g/adversarial"] + metrics[extra])
    assert metrics[extra] > 0.01


@pytest.mark.slow
def test_discriminator_step(game):
    value, metrics, gradient = phase(game, "discriminator")
    agree(game.judge, value, gradient, game.their_discriminator_loss())
    assert metrics["d/adversarial"] == value


def test_lazy_penalty(game):
    value, metrics, gradient = game.value_and_gradient(
        "discriminator",
        lambda params: game.system.penalty(params, game.stats, game.batch),
    )
    agree(game.judge, value, gradient, game.their_penalty())
    assert value == pytest.approx(160 * metrics["d/r1"])
