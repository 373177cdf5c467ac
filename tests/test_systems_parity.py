"""Losses and gradients of every turn against PyTorch, under the released names.

In float64 tensor by tensor, in float32 as one vector.
"""

import numpy as np
import pytest

pytest.importorskip("torch")

from parity import relative_l2
from twin_systems import TwinSystems

pytestmark = pytest.mark.torch


# test_training_step.py compares whole iterations of MI-GAN.
@pytest.fixture(params=[pytest.param("migan", marks=pytest.mark.full), "comodgan"])
def gan(request, float64):
    return TwinSystems(request.param)


def agree(gan, turn):
    """Compare loss and gradients; return our loss and metrics."""
    ours, metrics, gradient = gan.ours_in(turn)
    theirs, expected = gan.theirs_in(turn)
    assert relative_l2(ours, theirs) <= 1e-9
    assert gradient.keys() == expected.keys()
    for name, value in expected.items():
        if np.any(value):
            assert relative_l2(gradient[name], value) <= 1e-9, name
        else:
            assert not np.any(gradient[name]), name
    return ours, metrics


def test_generator_step(gan):
    value, metrics = agree(gan, "generator")
    terms = ["g/adversarial", "g/l1"]
    terms += ["g/distillation"] * (gan.family == "migan")
    assert value == pytest.approx(sum(metrics[name] for name in terms))
    assert min(metrics[name] for name in terms) > 0.01


@pytest.mark.slow
def test_discriminator_step(gan):
    value, metrics = agree(gan, "discriminator")
    assert metrics["d/adversarial"] == value


@pytest.mark.slow
def test_lazy_penalty(gan):
    value, metrics = agree(gan, "penalty")
    assert value == pytest.approx(160 * metrics["d/r1"])


@pytest.mark.full
@pytest.mark.parametrize("turn", ["generator", "discriminator", "penalty"])
@pytest.mark.parametrize("family", ["migan", "comodgan"])
def test_float32(family, turn):
    """Compare the median of three batches.

    Rounding may move a value across a leaky ReLU's kink, where the gradient jumps. That
    is not an error, and rare in two of three batches.
    """
    gan = TwinSystems(family, np.float32)
    distances = []
    for seed in range(3):
        gan.draw_batch(seed)
        _, _, gradient = gan.ours_in(turn)
        _, expected = gan.theirs_in(turn)
        ours = np.concatenate([np.ravel(gradient[name]) for name in expected])
        theirs = np.concatenate([np.ravel(value) for value in expected.values()])
        assert ours.dtype == np.float32
        distances.append(relative_l2(ours, theirs))
    assert np.median(distances) <= 1e-5
