"""Processes that hang, that have other devices, or that found unusable images."""

import types

import jax
import pytest

from migan_jax.data.rejects import Rejects
from migan_jax.data.sources import FileSource
from migan_jax.errors import UserError
from migan_jax.training import devices as devices_of
from migan_jax.training import processes
from migan_jax.training.heartbeat import Watch
from migan_jax.training.profiler import Profile, profiled_steps

NOW = [0.0]


def look(watch, seconds, *news):
    NOW[0] += seconds
    return watch.look({f"heartbeat/{i}": text for i, text in enumerate(news)})


def test_a_process_that_is_behind_is_named():
    watch = Watch(10, lambda: NOW[0])
    loading, step = "3|b|loading step 7", "4|a|in step 7"
    assert look(watch, 0, step, loading, step) is None
    assert look(watch, 9, step, loading, step) is None
    assert look(watch, 0.5, "5|a|loading", "5|b|loading", "5|c|loading") is None
    assert look(watch, 9, "6|a|in step 8", "5|b|loading", "6|c|in step 8") is None
    sentence = look(watch, 2, "6|a|in step 8", "5|b|loading", "6|c|in step 8")
    assert "process 1 on b has been loading" in sentence


def test_processes_that_hang_together():
    watch = Watch(10, lambda: NOW[0])
    assert look(watch, 0, "4|a|in step 7", "4|b|in step 7") is None
    assert "All processes" in look(watch, 10, "4|a|in step 7", "4|b|in step 7")
    assert Watch(10).look({}) is None  # none has started


def devices(*counts):
    return [
        types.SimpleNamespace(process_index=process, device_kind="TPU v5 lite")
        for process, count in enumerate(counts)
        for _ in range(count)
    ]


def test_processes_with_other_devices(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: devices(4, 4, 4))
    devices_of.check_devices()
    monkeypatch.setattr(jax, "devices", lambda: devices(4, 4, 1))
    with pytest.raises(UserError, match="process 2 has 1"):
        devices_of.check_devices()


def test_no_device(monkeypatch):
    def fail():
        raise RuntimeError("Unknown backend cud")

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cud")
    with pytest.raises(UserError, match=r"JAX_PLATFORMS=cud.*Unknown backend"):
        devices_of.check_devices()


def test_unusable_images_of_all_processes(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    source, report = FileSource(tmp_path / "photos"), tmp_path / "rejected.json"
    ours = Rejects(source, 1.0, report)
    ours.add("a.png", "it is empty", 1)
    found = processes.gather_json(ours.reasons, "rejected")
    assert found == [{"a.png": "it is empty"}]
    ours.merge([*found, {"ü.png": 'it is "cut"'}])
    assert Rejects(source, 1.0, report).reasons == {
        "a.png": "it is empty",
        "ü.png": 'it is "cut"',
    }


@pytest.mark.parametrize("setting", ["10", "15:10", "10:10", "a:b", "-1:4"])
def test_wrong_steps_to_trace(setting):
    with pytest.raises(UserError, match="10:15"):
        profiled_steps(setting)


def test_steps_are_traced(tmp_path):
    with Profile("2:4", tmp_path) as profile:
        for step in range(6):
            profile.before(step, jax.numpy.zeros(()))
            assert profile._is_open == (step in (2, 3))
    assert len([*tmp_path.rglob("*.xplane.pb")]) == 1
    with Profile(None, tmp_path / "none") as profile:
        profile.before(0, None)
    assert not (tmp_path / "none").exists()
