"""Eight CPU devices, and no silent broadcasting between arrays of different rank."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


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
