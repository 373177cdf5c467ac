"""Eight CPU devices, no feature weights, no silent broadcasting between ranks.

Programs are hardly optimised: of small ones, compiling takes longer than running.
"""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MIGAN_JAX_FEATURES"] = "none"  # those that this machine may have
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def optimised():
    """For tests whose programs run for longer than they take to compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def float64():
    """Arrays of this test may be float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def skip_without_torch(request):
    """PyTorch is an extra: tests that need it are marked."""
    if request.node.get_closest_marker("torch"):
        pytest.importorskip("torch")


@pytest.fixture
def torch():
    """PyTorch, where it is installed."""
    return pytest.importorskip("torch")


@pytest.fixture
def photos(tmp_path):
    """A folder of twelve pictures."""
    from photo_folders import photo_folder

    return photo_folder(tmp_path / "photos")


@pytest.fixture
def masks(tmp_path, photos):
    """A folder with a mask for each of them."""
    from photo_folders import mask_folder

    return mask_folder(tmp_path / "masks", photos)


@pytest.fixture(autouse=True)
def no_runs_left():
    """Trainers that a test has started end with it, also where it fails."""
    yield
    if "runs" in sys.modules:
        sys.modules["runs"].end_started()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder of compiled programs that all processes of all tests share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the workers have in common
    return folder / "compiled"
