"""Automatic choices that depend on the devices: mesh, dtype, processes."""

from types import SimpleNamespace

import jax
import pytest

from migan_jax.config import load_config, smoke
from migan_jax.errors import UserError
from migan_jax.training import devices, mesh, processes
from migan_jax.training.devices import has_bfloat16, idle_accelerator, resolve_dtype
from migan_jax.training.mesh import make_mesh
from migan_jax.training.programs import build_system


def fake_devices(monkeypatch, count, **attributes):
    """Replace the devices by `count` others, which are only counted and ordered."""
    attributes = {"process_index": 0, "platform": "cpu"} | attributes
    fakes = [SimpleNamespace(id=n, **attributes) for n in range(count)]
    monkeypatch.setattr(jax, "devices", lambda: fakes)
    monkeypatch.setattr(mesh, "Mesh", lambda array, *names, **types: array)


@pytest.mark.parametrize(
    "count, batch_size, microbatches, expected",
    [
        (8, 32, 1, (8, 1)),
        (32, 32, 1, (32, 1)),
        (64, 32, 1, (32, 2)),
        (256, 32, 1, (32, 8)),
        (16, 32, 4, (8, 2)),
        (12, 32, 1, (4, 3)),
        (16, 4, 1, (4, 4)),
    ],
)
def test_fewest_devices_that_keep_the_batch_share_an_image(
    count, batch_size, microbatches, expected, monkeypatch
):
    fake_devices(monkeypatch, count)
    batches = {"main": (batch_size, 768)}
    assert make_mesh("auto", batches, microbatches, multiple=4).shape == expected


def test_mesh_fits_the_batches_of_all_stages(monkeypatch):
    fake_devices(monkeypatch, 8)
    batches = {"growing": (12, 8), "main": (6, 16)}
    assert make_mesh("auto", {"main": (12, 8)}, 1, multiple=1).shape == (4, 2)
    assert make_mesh("auto", batches, 1, multiple=1).shape == (2, 4)
    with pytest.raises(UserError, match="batch_size 6 of stage main"):
        make_mesh(2, batches, 1, multiple=1)
    with pytest.raises(
        UserError, match=r"batch_size 12 of stage growing .* groups of 4"
    ):
        make_mesh("auto", batches, 1, multiple=4)


def test_hints_for_a_batch_that_cannot_be_split(monkeypatch):
    fake_devices(monkeypatch, 64)
    with pytest.raises(
        UserError, match=r"64 devices.*multiple of 64.*config\.mesh\.space=2\)"
    ):
        make_mesh(1, {"main": (32, 512)}, 1, multiple=4)
    with pytest.raises(UserError, match="multiple of 64"):
        make_mesh("auto", {"main": (34, 512)}, 1, multiple=4)
    with pytest.raises(UserError, match=r"mesh\.space is 3"):
        make_mesh(3, {"main": (32, 512)}, 1, multiple=4)


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 12, 16, 64, 256])
def test_smoke_runs_on_any_number_of_devices(count, monkeypatch):
    config = load_config("places512", [], True, devices=count)
    fake_devices(monkeypatch, count)
    batches = {"main": (config.batch_size, config.resolution)}
    grid = make_mesh(config.mesh.space, batches, config.microbatches, multiple=4)
    assert grid.size == count
    assert config.batch_size <= max(8, 4 * count)
    smoke(config)
    assert config.total_kimg == pytest.approx(2 * config.batch_size / 1000)


@pytest.mark.parametrize(
    "platform, capability, expected",
    [
        ("cpu", None, False),
        ("tpu", None, True),
        ("gpu", "7.5", False),
        ("gpu", "7.0", False),
        ("gpu", "8.0", True),
        ("gpu", "9.0", True),
        ("gpu", "gfx942", True),
    ],
)
def test_devices_with_bfloat16(platform, capability, expected):
    attributes = {} if capability is None else {"compute_capability": capability}
    assert has_bfloat16(SimpleNamespace(platform=platform, **attributes)) == expected


def test_resumed_runs_keep_their_dtype(monkeypatch):
    gpu = {"platform": "gpu", "compute_capability": "8.0"}
    assert resolve_dtype("auto") == "float32"  # tests run on CPUs
    assert resolve_dtype("bfloat16") == resolve_dtype("auto", "bfloat16")
    fake_devices(monkeypatch, 1, **gpu)
    assert resolve_dtype("auto") == "bfloat16"
    assert resolve_dtype("auto", "float32") == "float32"
    assert resolve_dtype("float32", "bfloat16") == "float32"


def test_networks_use_the_resolved_dtype():
    assert build_system(load_config("places512", [], True), {}).generator.dtype is None


def test_idle_accelerator(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "DEV", tmp_path)
    monkeypatch.setattr(devices, "PCI", tmp_path)
    assert idle_accelerator() is None
    monkeypatch.delenv("JAX_PLATFORMS")
    assert idle_accelerator() is None
    for index, vendor in enumerate(("0x8086", "0x1ae0")):
        assert idle_accelerator() is None  # other vendors have such files too
        (tmp_path / "vfio").mkdir(exist_ok=True)
        (tmp_path / "vfio" / "0").touch()
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "vendor").write_text(f"{vendor}\n")
    assert "a TPU" in idle_accelerator()
    (tmp_path / "nvidia0").touch()
    warning = idle_accelerator()
    assert "an NVIDIA GPU" in warning and "pip install 'jax[cuda12]" in warning
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # explicitly chosen
    assert idle_accelerator() is None


# A TPU host whose distributed runtime cannot be started.


@pytest.fixture
def tpu_host(monkeypatch):
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "on_tpu", lambda: True)

    def fail(*arguments, **more):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)


def test_single_tpu_host_starts(tpu_host, monkeypatch):
    processes.connect(None, None, None, 60)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    processes.connect(None, None, None, 60)


@pytest.mark.parametrize(
    "name, value",
    [
        ("TPU_WORKER_HOSTNAMES", "10.0.0.2,10.0.0.3"),
        ("TPU_PROCESS_ADDRESSES", "a:1,b:1"),
        ("TPU_WORKER_ID", "1"),
        ("MEGASCALE_NUM_SLICES", "2"),
    ],
)
def test_host_of_a_pod_does_not_start_alone(name, value, tpu_host, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--coordinator") as caught:
        processes.connect(None, None, None, 60)
    assert f"{name}={value}" in str(caught.value)


def test_tpus_of_several_processes(tpu_host, monkeypatch):
    """The TPU runtime counts processes that the environment does not describe."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="--coordinator"):
        processes.connect(None, None, None, 60)
