"""Which checkpoints are kept, and what is never saved."""

import dataclasses
import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from migan_jax.errors import UserError
from migan_jax.models import migan
from migan_jax.training.checkpoint import Checkpoints, Score, read_networks, summarise
from migan_jax.training.step import TrainState

NETWORK = migan.Generator(8, 64, 8)
PSNR = Score("hole_psnr", more_is_better=True)


def state_at(step, devices=1, value=1.0):
    """A small state on so many devices, everywhere the same."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    weights = {"a": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3) * value}}
    state = TrainState(
        step=np.int32(step),
        params={
            "generator": weights,
            "discriminator": {"bias": np.ones(4, np.float32)},
        },
        stats={"generator": {"noise": np.ones(3, np.float32)}, "discriminator": {}},
        opt_state={"generator": (np.zeros(2, np.float32), (), np.int32(step))},
        ema={"generator": jax.tree.map(lambda x: x + 1, weights)},
    )
    return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def shapes_of(state):
    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(shape, state)


def same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_the_newest_and_the_best_are_kept(tmp_path):
    figures = {1: 5.0, 2: 9.0, 3: 7.0, 4: 6.0, 5: None}
    with Checkpoints(tmp_path, keep_last=2, keep_best=1, score=PSNR) as checkpoints:
        for step, value in figures.items():
            told = None if value is None else {"hole_psnr": value, "kid": 10 - value}
            checkpoints.save(state_at(step), NETWORK, {}, told)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
    with Checkpoints(tmp_path, keep_last=1, keep_best=1, score=PSNR) as checkpoints:
        checkpoints.save(state_at(6), NETWORK, {}, {"hole_psnr": 1.0, "l1": 0.5})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 6]


def test_the_best_may_be_the_least_and_another_figure_than_before(tmp_path):
    with Checkpoints(tmp_path, keep_last=4, keep_best=0, score=PSNR) as checkpoints:
        for step, kid in {1: 0.3, 2: 0.1, 3: 0.2}.items():
            checkpoints.save(
                state_at(step), NETWORK, {}, {"hole_psnr": 5.0, "kid": kid}
            )
        checkpoints.save(state_at(4), NETWORK, {}, {"hole_psnr": 5.0})
    kid = Score("kid", more_is_better=False)
    with Checkpoints(tmp_path, keep_last=1, keep_best=1, score=kid) as checkpoints:
        checkpoints.save(state_at(5), NETWORK, {}, {"kid": 0.4})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5]
        assert checkpoints.best() == (2, -0.1)


@pytest.mark.parametrize("before, after", [(1, 1), (1, 8), (8, 2)])
def test_what_is_saved_comes_back_on_other_devices(before, after, tmp_path):
    state, noted = state_at(7, before), {"sums": [0.1, 1e-300], "name": "x"}
    with Checkpoints(tmp_path, 1, 0, PSNR) as checkpoints:
        assert checkpoints.newest_run() is checkpoints.restore(shapes_of(state)) is None
        checkpoints.save(state, NETWORK, noted, None)
    like = shapes_of(state_at(0, after, value=0))
    with Checkpoints(tmp_path, 1, 0, PSNR) as checkpoints:
        saved = checkpoints.restore(like)
        assert checkpoints.newest_run().items() >= noted.items()
    assert saved.run == noted
    same(saved.state, state)
    assert len(saved.state.params["discriminator"]["bias"].devices()) == after
    same(read_networks(tmp_path), state.params)


def test_what_is_not_finite_is_not_saved(tmp_path, caplog):
    state = state_at(2)
    moments = (jnp.full(2, jnp.inf), (), jnp.int32(0))
    broken = dataclasses.replace(state, opt_state={"generator": moments})
    with Checkpoints(tmp_path, 1, 0, PSNR) as checkpoints:
        checkpoints.save(state_at(1), NETWORK, {}, None)
        checkpoints.save(broken, NETWORK, {}, None)
        checkpoints.wait()
        assert checkpoints.steps() == [1]
    assert "step 2: not saved, its weights are not finite" in caplog.text


def test_a_full_disk_is_seen_before(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with Checkpoints(tmp_path, 1, 0, PSNR) as checkpoints:
        checkpoints.save(state_at(1), NETWORK, {}, None)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 0, 9))
        with pytest.raises(
            UserError, match=r"and 9 bytes are free.*step 1 is complete"
        ):
            checkpoints.save(state_at(2), NETWORK, {}, None)
        assert checkpoints.steps() == [1]


def test_the_checksum_sees_every_change():
    base, _ = summarise(state_at(1))
    same(base, summarise(state_at(1, devices=8))[0])
    swapped = state_at(1)
    kernel = swapped.params["generator"]["a"]["kernel"][::-1]
    params = {**swapped.params, "generator": {"a": {"kernel": kernel}}}
    other, finite = summarise(dataclasses.replace(swapped, params=params))
    assert finite and (np.asarray(base) != np.asarray(other)).sum() == 1
