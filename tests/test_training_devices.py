"""What a run does by itself with the devices that there are."""

from types import SimpleNamespace

import jax
import pytest

from migan_jax.config import load_config, smoke
from migan_jax.errors import UserError
from migan_jax.training import devices, mesh, processes
from migan_jax.training.devices import has_bfloat16, idle_accelerator, resolved_dtype
from migan_jax.training.mesh import make_mesh
from migan_jax.training.setup import build_system


def pretend(monkeypatch, count, **more):
    """So many devices; they are only counted and ordered."""
    many = [SimpleNamespace(process_index=0, id=n, **more) for n in range(count)]
    monkeypatch.setattr(jax, "devices", lambda: many)
    monkeypatch.setattr(mesh, "Mesh", lambda array, *names, **types: array)


@pytest.mark.parametrize(
    "count, batch_size, parts, expected",
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
def test_images_are_shared_by_as_many_as_keep_the_batch(
    count, batch_size, parts, expected, monkeypatch
):
    pretend(monkeypatch, count)
    made = make_mesh("auto", {"main": (batch_size, 768)}, parts, multiple=4)
    assert made.shape == expected


def test_a_mesh_is_for_the_batches_of_all_stages(monkeypatch):
    pretend(monkeypatch, 8)
    batches = {"growing": (12, 8), "main": (6, 16)}
    assert make_mesh("auto", {"main": (12, 8)}, 1, multiple=1).shape == (4, 2)
    assert make_mesh("auto", batches, 1, multiple=1).shape == (2, 4)
    with pytest.raises(UserError, match="batch_size 6 of stage main cannot be split"):
        make_mesh(2, batches, 1, multiple=1)
    with pytest.raises(
        UserError, match=r"batch_size 12 of stage growing .* groups of 4"
    ):
        make_mesh("auto", batches, 1, multiple=4)


def test_a_batch_that_cannot_be_split_says_what_would_keep_it(monkeypatch):
    pretend(monkeypatch, 64)
    with pytest.raises(
        UserError, match=r"64 devices.*config\.mesh\.space=2\).*multiple of 64"
    ):
        make_mesh(1, {"main": (32, 512)}, 1, multiple=4)
    with pytest.raises(UserError, match="make it a multiple of 64"):
        make_mesh("auto", {"main": (34, 512)}, 1, multiple=4)
    with pytest.raises(UserError, match=r"mesh\.space is 3, but must divide"):
        make_mesh(3, {"main": (32, 512)}, 1, multiple=4)


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8, 12, 16, 64, 256])
def test_smoke_is_for_any_number_of_devices(count, monkeypatch):
    config = load_config("places512", [], True, devices=count)
    pretend(monkeypatch, count)
    batches = {"main": (config.batch_size, config.resolution)}
    made = make_mesh(config.mesh.space, batches, config.parts, multiple=4)
    assert made.size == count
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
    more = {} if capability is None else {"compute_capability": capability}
    assert has_bfloat16(SimpleNamespace(platform=platform, **more)) == expected


def test_a_dtype_is_chosen_once(monkeypatch):
    gpu = {"platform": "gpu", "compute_capability": "8.0"}
    assert resolved_dtype("auto") == "float32"  # tests run on CPUs
    assert resolved_dtype("bfloat16") == resolved_dtype("auto", "bfloat16")
    pretend(monkeypatch, 1, **gpu)
    assert resolved_dtype("auto") == "bfloat16"
    assert resolved_dtype("auto", "float32") == "float32"  # of a run that came here
    assert resolved_dtype("float32", "bfloat16") == "float32"


def test_networks_compute_in_what_devices_have():
    assert build_system(load_config("places512", [], True), {}).generator.dtype is None


def test_an_accelerator_that_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "DEV", tmp_path)
    monkeypatch.setattr(devices, "PCI", tmp_path)
    assert idle_accelerator() is None
    monkeypatch.delenv("JAX_PLATFORMS")
    assert idle_accelerator() is None
    for number, maker in enumerate(("0x8086", "0x1ae0")):
        assert idle_accelerator() is None  # other devices are there like this, too
        (tmp_path / "vfio").mkdir(exist_ok=True)
        (tmp_path / "vfio" / "0").touch()
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vendor").write_text(f"{maker}\n")
    assert "a TPU, but JAX runs on the CPU" in idle_accelerator()
    (tmp_path / "nvidia0").touch()
    sentence = idle_accelerator()
    assert "an NVIDIA GPU" in sentence and "pip install 'jax[cuda12]" in sentence
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # it was asked for
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


def test_a_tpu_host_alone_starts(tpu_host, monkeypatch):
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
def test_a_host_of_a_pod_does_not_go_on_alone(name, value, tpu_host, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--coordinator, --processes") as caught:
        processes.connect(None, None, None, 60)
    assert f"{name}={value}" in str(caught.value)


def test_tpus_that_others_use_too(tpu_host, monkeypatch):
    """Nothing in the environment tells of them."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="cannot be connected"):
        processes.connect(None, None, None, 60)
