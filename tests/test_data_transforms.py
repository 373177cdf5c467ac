"""Random keys and flips, per sample and independent of the devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from migan_jax.data.mask_samplers import SAMPLERS, masks_on_device
from migan_jax.data.transforms import flip, sample_keys

SEED = jax.random.key(0)


def test_keys_depend_on_step_and_position():
    whole = jax.random.key_data(sample_keys(SEED, 5, jnp.arange(8)))
    assert len(np.unique(whole, axis=0)) == 8
    smaller = jax.random.key_data(sample_keys(SEED, 5, jnp.arange(4)))
    assert np.array_equal(whole[:4], smaller)
    assert not np.array_equal(
        whole, jax.random.key_data(sample_keys(SEED, 6, jnp.arange(8)))
    )


def test_flips_are_even_and_joint():
    keys = sample_keys(SEED, 0, jnp.arange(4000))
    image = jnp.tile(jnp.arange(6.0).reshape(1, 1, 3, 2), (4000, 1, 1, 1))
    mask = image[..., :1] / 2  # columns 0, 1, 2
    new_image, new_mask = flip(keys, image, mask)
    flipped = np.asarray(new_mask[:, 0, 0, 0] == 2)
    assert np.array_equal(new_image[flipped], image[flipped][:, :, ::-1])
    assert np.array_equal(new_image[~flipped], image[~flipped])
    assert np.array_equal(new_mask[flipped], mask[flipped][:, :, ::-1])
    # Within four standard deviations of a half.
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_masks_and_flips_are_the_same_on_any_number_of_devices():
    def draw(step, image):
        keys = sample_keys(SEED, step, jnp.arange(len(image)))
        (flipped,) = flip(keys, image)
        return flipped, masks_on_device(SAMPLERS["box"], keys, 32)

    image = np.random.default_rng(0).random((8, 4, 4, 3), np.float32)
    alone = jax.jit(draw)(3, image)
    mesh = Mesh(np.array(jax.devices()[:8]), "data")
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    split = jax.jit(draw, out_shardings=sharding)(3, jax.device_put(image, sharding))
    for one, other in zip(alone, split, strict=True):
        assert other.sharding.num_devices == 8
        assert np.array_equal(one, other)
