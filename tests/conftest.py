"""Eight CPU devices, no feature weights, no implicit rank promotion.

Programs are hardly optimised: compiling small ones takes longer than running them.
"""

import functools
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MIGAN_JAX_FEATURES"] = "none"  # ignore those of this machine
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

# For torch_gan.py; last, since benchmarks/onnx.py would hide the library.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def optimised():
    """Optimise programs that take longer to run than to compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def float64():
    """Allow float64 arrays."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def skip_without_torch(request):
    """Skip tests marked `torch` if PyTorch, an extra, is not installed."""
    if request.node.get_closest_marker("torch"):
        pytest.importorskip("torch")


@pytest.fixture
def torch():
    """PyTorch, if it is installed."""
    return pytest.importorskip("torch")


@pytest.fixture
def photos(tmp_path):
    """Make a folder of twelve pictures."""
    from photo_folders import photo_folder

    return photo_folder(tmp_path / "photos")


@pytest.fixture
def masks(tmp_path, photos):
    """Make a folder with a mask for each of them."""
    from photo_folders import mask_folder

    return mask_folder(tmp_path / "masks", photos)


@pytest.fixture(autouse=True)
def end_trainers():
    """End trainers that a test has started, also if it fails."""
    yield
    if "runs" in sys.modules:
        sys.modules["runs"].end_started()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Make a cache of compiled programs, shared by the processes of all tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # shared by the workers
    return folder / "compiled"


@pytest.fixture
def one_device(cache, monkeypatch, request):
    """Use one device, and share compiled programs between runs in this process."""
    import runs

    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *kind: first)
    for name, value in runs.cache_settings(cache).items():
        request.addfinalizer(
            functools.partial(jax.config.update, name, getattr(jax.config, name))
        )
        jax.config.update(name, value)
