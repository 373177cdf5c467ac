"""Which checkpoints are kept, restored and set aside."""

import collections
import dataclasses
import json
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs
from damages import damaged_copies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from migan_jax.errors import UserError
from migan_jax.families import all_kinds
from migan_jax.models import migan
from migan_jax.systems.base import TrainState
from migan_jax.training.checkpoint import Checkpoints, Score, summarise
from migan_jax.weights.workdir import read_trained, steps_in

EXPORTED = {"generator": migan.MIGANGenerator(8, 64, 8)}, all_kinds()
PSNR = Score("hole_psnr", more_is_better=True)


def state_at(step, devices=1, value=1.0):
    """Return a small state, replicated on some devices."""
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
    metrics = {1: 5.0, 2: 9.0, 3: 7.0, 4: 6.0, 5: None}
    with Checkpoints(tmp_path, keep_last=2, keep_best=1, score=PSNR) as checkpoints:
        for step, value in metrics.items():
            told = None if value is None else {"hole_psnr": value, "kid": 10 - value}
            checkpoints.save(state_at(step), *EXPORTED, {}, told)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
    with Checkpoints(tmp_path, keep_last=1, keep_best=1, score=PSNR) as checkpoints:
        checkpoints.save(state_at(6), *EXPORTED, {}, {"hole_psnr": 1.0, "l1": 0.5})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 6]


def test_best_by_a_metric_that_is_better_when_smaller(tmp_path):
    with Checkpoints(tmp_path, keep_last=4, keep_best=0, score=PSNR) as checkpoints:
        for step, kid in {1: 0.3, 2: 0.1, 3: 0.2}.items():
            checkpoints.save(
                state_at(step), *EXPORTED, {}, {"hole_psnr": 5.0, "kid": kid}
            )
        checkpoints.save(state_at(4), *EXPORTED, {}, {"hole_psnr": 5.0})
    kid = Score("kid", more_is_better=False)
    with Checkpoints(tmp_path, keep_last=1, keep_best=1, score=kid) as checkpoints:
        checkpoints.save(state_at(5), *EXPORTED, {}, {"kid": 0.4})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5]
        assert checkpoints.best() == (2, -0.1)


@pytest.mark.parametrize("before, after", [(1, 1), (1, 8), (8, 2)])
def test_a_state_is_restored_on_other_devices(before, after, tmp_path):
    state, noted = state_at(7, before), {"sums": [0.1, 1e-300], "name": "x"}
    with Checkpoints(tmp_path, 1, 0, PSNR) as checkpoints:
        assert checkpoints.newest_run() is checkpoints.restore(shapes_of(state)) is None
        checkpoints.save(state, *EXPORTED, noted, None)
    like = shapes_of(state_at(0, after, value=0))
    with Checkpoints(tmp_path, 1, 0, PSNR) as checkpoints:
        saved = checkpoints.restore(like)
        assert checkpoints.newest_run().items() >= noted.items()
    assert saved.run == noted
    same(saved.state, state)
    assert len(saved.state.params["discriminator"]["bias"].devices()) == after
    same(read_trained(tmp_path)["params"], state.params)


def test_nonfinite_states_are_not_saved(tmp_path, caplog):
    state = state_at(2)
    moments = (jnp.full(2, jnp.inf), (), jnp.int32(0))
    broken = dataclasses.replace(state, opt_state={"generator": moments})
    with Checkpoints(tmp_path, 1, 0, PSNR) as checkpoints:
        checkpoints.save(state_at(1), *EXPORTED, {}, None)
        checkpoints.save(broken, *EXPORTED, {}, None)
        checkpoints.wait()
        assert checkpoints.steps() == [1]
    assert "step 2 " in caplog.text and "not finite" in caplog.text


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Make a workdir with steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("workdirs") / "run"
    with Checkpoints(workdir, 2, 1, PSNR) as checkpoints:
        for step in (1, 2):
            metrics = {"hole_psnr": float(step)}
            checkpoints.save(state_at(step), *EXPORTED, {"step": step}, metrics)
    return workdir


def check_damaged(two_steps, folder, capfd, every):
    """Check that after each damage the newest undamaged step is restored."""
    like, resumed = shapes_of(state_at(0, value=0)), collections.Counter()
    for _, _, workdir in damaged_copies(two_steps, folder, every):
        with Checkpoints(workdir, 2, 1, PSNR) as checkpoints:
            step = checkpoints.newest_run()["step"]
            saved = checkpoints.restore(like)
            assert saved.run["step"] == step
            same(saved.state, state_at(step))
            aside = list((workdir / "checkpoints").glob("2.damaged-*"))
            assert len(aside) == (step == 1)
            assert checkpoints.steps() == [1, 2][:step]
            checkpoints.save(state_at(3), *EXPORTED, {}, {"hole_psnr": 0.0})
        resumed[step] += 1
    _, printed = capfd.readouterr()
    assert "Traceback" not in printed and "Error" not in printed
    return resumed


def test_some_damages_of_files(two_steps, tmp_path, capfd):
    resumed = check_damaged(two_steps, tmp_path / "run", capfd, every=61)
    assert resumed[1] >= 3 and resumed[2] >= 3


@pytest.mark.full
def test_every_damage_of_every_file(two_steps, tmp_path, capfd):
    resumed = check_damaged(two_steps, tmp_path / "run", capfd, every=1)
    assert resumed[1] > 200 and resumed[2] > 200


def test_all_steps_may_be_damaged(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    for step in ("1", "2"):
        (tmp_path / "run" / "checkpoints" / step / "run" / "metadata").unlink()
    with pytest.raises(UserError, match="checkpoints"):
        Checkpoints(tmp_path / "run", 2, 1, PSNR)
    assert steps_in(tmp_path / "run" / "checkpoints") == [1, 2]


def test_checkpoints_may_be_on_another_disk(two_steps, tmp_path):
    """Other files there are left alone."""
    shutil.copytree(two_steps, tmp_path / "run")
    with tempfile.TemporaryDirectory(dir=other_disk(tmp_path)) as elsewhere:
        checkpoints = tmp_path / "run" / "checkpoints"
        shutil.move(checkpoints, Path(elsewhere) / "moved")
        checkpoints.symlink_to(Path(elsewhere) / "moved")
        (tmp_path / "run" / "damaged").write_text("mine")
        (checkpoints / "2" / "run" / "metadata").write_text("[1]")
        with Checkpoints(tmp_path / "run", 2, 1, PSNR) as found:
            assert found.steps() == [1]


def other_disk(path):
    """Return a folder to which nothing can be renamed, if there is one, else `path`."""
    memory = Path("/dev/shm")
    return (
        memory
        if memory.is_dir() and memory.stat().st_dev != path.stat().st_dev
        else path
    )


@pytest.mark.parametrize("folder", ["params", "run"])
def test_a_step_without_a_manifest_is_of_an_earlier_version(
    folder, two_steps, tmp_path
):
    """It is damaged only if other steps have one."""
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(two_steps / "checkpoints", checkpoints)
    (checkpoints / "2" / "manifest.json").unlink()
    with Checkpoints(tmp_path / "run", 2, 1, PSNR) as found:
        assert found.steps() == [1]
    shutil.copytree(two_steps / "checkpoints" / "2", checkpoints / "2")
    for step in "12":
        (checkpoints / step / "manifest.json").unlink()
    with Checkpoints(tmp_path / "run", 2, 1, PSNR) as found:
        assert found.restore(shapes_of(state_at(0))).run["step"] == 2
    shutil.rmtree(checkpoints / "2" / folder)
    with Checkpoints(tmp_path / "run", 2, 1, PSNR) as found:
        like = shapes_of(state_at(0))
        if folder == "run":
            assert found.restore(like).run["step"] == 1
        else:
            with pytest.raises(UserError, match="checkpoints/2 "):
                found.restore(like)


def test_unreadable_metrics_are_ignored(two_steps, tmp_path):
    """A run can resume without them."""
    shutil.copytree(two_steps, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "1" / "metrics" / "metrics").write_text("")
    with Checkpoints(tmp_path / "run", 1, 1, PSNR) as checkpoints:
        assert checkpoints.best() == (2, 2.0)


def test_a_full_disk_is_noticed_before_saving(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with Checkpoints(tmp_path, 1, 0, PSNR) as checkpoints:
        checkpoints.save(state_at(1), *EXPORTED, {}, None)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 0, 9))
        with pytest.raises(UserError, match=r"9 bytes.*step 1"):
            checkpoints.save(state_at(2), *EXPORTED, {}, None)
        assert checkpoints.steps() == [1]


def test_the_checksum_sees_every_change():
    base, _ = summarise(state_at(1))
    same(base, summarise(state_at(1, devices=8))[0])
    swapped = state_at(1)
    kernel = swapped.params["generator"]["a"]["kernel"][::-1]
    params = {**swapped.params, "generator": {"a": {"kernel": kernel}}}
    other, finite = summarise(dataclasses.replace(swapped, params=params))
    assert finite and (np.asarray(base) != np.asarray(other)).sum() == 1


def test_a_run_without_an_ema_exports_its_parameters(tmp_path):
    state = dataclasses.replace(state_at(3), ema={})
    with Checkpoints(tmp_path, 1, 0, PSNR) as checkpoints:
        checkpoints.save(state, *EXPORTED, {}, None)
    with Checkpoints(tmp_path, 1, 0, PSNR) as checkpoints:
        same(checkpoints.restore(shapes_of(state)).state, state)
    exported = runs.read_checkpoint(tmp_path)["exported"]["generator"]
    same(exported["params"], state.params["generator"])


def test_a_run_of_a_version_with_one_network_is_restored(two_steps, tmp_path):
    """Its exported weights were stored without a role."""
    shutil.copytree(two_steps, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "2"
    (description,) = json.loads((step / "network" / "metadata").read_text()).values()
    (step / "network" / "metadata").write_text(json.dumps(description))
    exported = runs.read_checkpoint(tmp_path / "run", 2)["exported"]["generator"]
    shutil.rmtree(step / "exported")
    with ocp.StandardCheckpointer() as writer:
        writer.save(step / "exported", exported)
    for sealed in (tmp_path / "run" / "checkpoints").glob("*/manifest.json"):
        sealed.unlink()
    with Checkpoints(tmp_path / "run", 2, 1, PSNR) as checkpoints:
        same(checkpoints.restore(shapes_of(state_at(0))).state, state_at(2))
