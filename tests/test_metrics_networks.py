"""Inception features and LPIPS against the packages behind published metrics."""

import hashlib
import re

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
import peers
from variables import relative_l2

from migan_jax.errors import UserError
from migan_jax.metrics.evaluator import FeatureNetworks, replicate, shard_over_devices
from migan_jax.metrics.inception import inception_features
from migan_jax.metrics.lpips import lpips
from migan_jax.weights import feature_networks
from migan_jax.weights.feature_networks import (
    FILES,
    find,
    load_inception,
    load_perceptual,
)

pytestmark = pytest.mark.torch
torch = peers.torch


def make_images(count, size, seed=0):
    """Return smooth images with some noise, like photos."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 4, 4, 3))
    smooth = np.kron(coarse, np.ones((1, size // 4, size // 4, 1)))
    noisy = 255 * smooth + rng.normal(0, 20, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [64, pytest.param(320, marks=pytest.mark.full)])
def test_inception_features_equal_pytorch_fid(size, tmp_path):
    whole, inner = peers.make_inception()
    path = tmp_path / "inception.pth"
    torch.save(inner.state_dict(), path)
    photos = make_images(2, size)
    with torch.no_grad():
        theirs = whole(peers.to_torch(photos))[0][:, :, 0, 0].numpy()
    ours = inception_features(load_inception(path), photos)
    assert theirs.std() > 0.01
    assert relative_l2(ours, theirs) <= 1e-5
    assert relative_l2(ours[0], theirs[1]) > 1e-3


def save_lpips(name, folder):
    """Return the package's LPIPS, and files of its network and its weights."""
    network, whole = peers.make_lpips(name)
    paths = folder / "network.pth", folder / "weights.pth"
    torch.save(network.state_dict(), paths[0])
    linear = {k: v for k, v in whole.state_dict().items() if k.startswith("lin")}
    torch.save(linear, paths[1])
    return whole, *paths


@pytest.mark.full
def test_eight_devices_equal_one(monkeypatch, tmp_path):
    """Also for a number of images that eight does not divide."""
    _, inner = peers.make_inception()
    path = tmp_path / "inception.pth"
    torch.save(inner.state_dict(), path)
    _, *paths = save_lpips("alex", tmp_path)
    perceptual = load_perceptual("alex", *paths)
    truths, results = make_images(11, 64), make_images(11, 64, seed=1)
    holes = np.ones((11, 64, 64), bool)

    def evaluate():
        inception, alex = replicate((load_inception(path), perceptual))
        networks = FeatureNetworks(inception, {"alex": alex})
        assert len(shard_over_devices(truths).devices()) == jax.local_device_count()
        return networks.features(truths), networks.compare(truths, results, holes)

    on_eight = evaluate()
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:1])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    on_one = evaluate()
    assert len(on_one[0]) == 11
    assert relative_l2(on_eight[0], on_one[0]) < 1e-5
    for name, values in on_one[1].items():
        np.testing.assert_allclose(on_eight[1][name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["alex", pytest.param("vgg", marks=pytest.mark.full)])
def test_lpips_equals_the_package(name, tmp_path):
    whole, *paths = save_lpips(name, tmp_path)
    truths, results = make_images(3, 64), make_images(3, 64, seed=1)
    results[2] = truths[2]
    with torch.no_grad():
        both = [2 * peers.to_torch(x) - 1 for x in (truths, results)]
        theirs = whole(*both).numpy().ravel()
    ours = np.asarray(lpips(name, *load_perceptual(name, *paths), truths, results))
    assert theirs[2] == 0 and ours[2] < 1e-12 and theirs.max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_files_are_found_under_any_name(monkeypatch, tmp_path):
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    file = FILES["inception"]._replace(size=len(content), sha256=digest)
    monkeypatch.setitem(FILES, "inception", file)
    monkeypatch.setenv(feature_networks.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(feature_networks.Path, "home", lambda: tmp_path / "home")
    with pytest.raises(UserError, match=re.escape(file.name)) as error:
        find("inception")
    assert str(tmp_path) in str(error.value) and digest in str(error.value)
    (tmp_path / "another").write_bytes(b"WEIGHTS")
    right = tmp_path / "right"
    right.write_bytes(content)
    assert find("inception") == right
    right.unlink()
    (tmp_path / file.name).write_bytes(b"WEIGHTS")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / file.name))):
        find("inception")


def test_the_lpips_package_has_the_published_files(monkeypatch):
    folder = peers.lpips.__path__[0] + "/weights/v0.1"
    monkeypatch.setenv(feature_networks.FOLDER_VARIABLE, folder)
    for name in ("alex", "vgg"):
        assert find(f"{name}_lpips").name == f"{name}.pth"


def test_a_file_of_another_network(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="Conv2d_1a_3x3"):
        load_inception(path)
