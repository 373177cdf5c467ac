"""The first and last steps of stages, and the images seen by then."""

import optax
import pytest

from migan_jax.systems.base import Optimizer, Stage, Turn
from migan_jax.training.timeline import Timeline

OPTIMIZERS = {"a": Optimizer(("a",), optax.sgd(1))}
TURNS = ((Turn("a", None, ("a",), stream=1),),)


def stage(name="main", until=None, **batch):
    return Stage(name, TURNS, OPTIMIZERS, until, **batch)


def timeline(*stages, total_kimg=0.1, batch_size=10):
    return Timeline(stages, batch_size=batch_size, resolution=64, total_kimg=total_kimg)


def test_stages_with_their_own_batch_sizes():
    run = timeline(
        stage("small", 0.04, batch_size=20, resolution=8),
        stage("larger", 0.06, batch_size=5),
        stage(),
    )
    small, larger, main = run.spans
    assert [(s.first_step, s.end_step) for s in run.spans] == [(0, 2), (2, 6), (6, 10)]
    assert [(s.batch_size, s.resolution) for s in run.spans] == [
        (20, 8),
        (5, 64),
        (10, 64),
    ]
    images = [0, 20, 40, 45, 50, 55, 60, 70, 80, 90]
    assert [run.images(step) for step in range(10)] == images
    assert run.end_step == 10
    assert [run.at(step) for step in (0, 1, 2, 5, 6, 9, 10)] == [
        *[small] * 2,
        *[larger] * 2,
        *[main] * 3,
    ]
    assert (larger.progress(3), larger.kimg(3)) == (0.25, 0.005)


@pytest.mark.parametrize(
    ("stages", "total_kimg", "expected"),
    [
        ([stage()], 1e-6, [("main", 1)]),  # at least one step
        ([stage("first", 1.0), stage()], 0.03, [("first", 3)]),
        ([stage("first", 0.001), stage()], 0.03, [("main", 3)]),
        (
            [stage("first", 0.02), stage("second", 0.03)],
            0.1,
            [("first", 2), ("second", 3)],
        ),
        ([stage("first", 1.0), stage()], 1e-6, [("main", 1)]),
    ],
)
def test_last_steps(stages, total_kimg, expected):
    run = timeline(*stages, total_kimg=total_kimg)
    assert [(span.stage.name, span.end_step) for span in run.spans] == expected


def test_longer_runs_do_not_change_stages_that_end():
    short, long = (timeline(stage("fade", 0.08), total_kimg=t) for t in (0.04, 0.08))
    assert (short.end_step, long.end_step) == (4, 8)
    assert short.at(2).progress(2) == long.at(2).progress(2) == 0.25
