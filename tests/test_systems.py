"""Systems: prepared batches, random inputs, completions, PSNR."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import random_variables

from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.models import comodgan, migan
from migan_jax.models.discriminators import CoModGANDiscriminator, MIGANDiscriminator
from migan_jax.systems.base import Inputs
from migan_jax.systems.comodgan import CoModGAN
from migan_jax.systems.images import composite, hole_psnr, prepare
from migan_jax.systems.migan import MIGAN

NARROW = {"resolution": 8, "channel_base": 64, "channel_max": 8}
CODES = {"z_dim": 6, "w_dim": 5, "encoder_dim": 7}
TEACHER = comodgan.CoModGANGenerator(**NARROW, **CODES)
SAMPLER, KEY = SAMPLERS["box"], jax.random.key(0)

STUDENT = MIGAN(
    migan.MIGANGenerator(**NARROW),
    MIGANDiscriminator(**NARROW),
    SAMPLER,
    optimizers={},
    teacher=TEACHER,
)
CO_MOD_GAN = CoModGAN(TEACHER, CoModGANDiscriminator(**NARROW), SAMPLER, optimizers={})
DRAWS = {
    "migan": STUDENT.noise,
    "migan's teacher": STUDENT.teacher_inputs,
    "comodgan": CO_MOD_GAN.draw,
}


prepared = jax.jit(functools.partial(prepare, sampler=SAMPLER))


def images(count=4):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


def test_prepare_normalises_flips_and_draws_masks():
    image = images(64)
    batch = prepared({"image": image}, KEY)
    expected = image / 127.5 - 1
    same = np.isclose(batch["image"], expected, atol=1e-6).all((1, 2, 3))
    flipped = np.isclose(batch["image"][:, :, ::-1], expected, atol=1e-6).all((1, 2, 3))
    assert (same ^ flipped).all() and 16 < same.sum() < 48
    assert batch["mask"].shape == (64, 8, 8, 1)
    assert set(np.unique(batch["mask"])) == {0, 1}
    again = prepared({"image": image}, jax.random.key(1))
    assert not np.array_equal(batch["mask"], again["mask"])


def test_given_masks_are_flipped_with_their_images():
    image = images(16)
    mask = (image[..., :1] > 127).astype(np.uint8)
    batch = prepared({"image": image, "mask": mask}, KEY)
    assert np.array_equal(batch["mask"][..., 0] == 1, batch["image"][..., 0] > 0)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_do_not_depend_on_the_rest_of_the_batch(name):
    draw = jax.jit(DRAWS[name])
    samples, some = jnp.arange(8), jnp.array([1, 3, 4, 7])
    whole, part = draw(KEY, samples), draw(KEY, some)
    other = draw(jax.random.key(1), samples)
    leaves = [jax.tree.leaves(draws) for draws in (whole, part, other)]
    differ = 0
    for full, part, changed in zip(*leaves, strict=True):
        full, part, changed = map(_as_numpy, (full, part, changed))
        assert np.array_equal(full[np.asarray(some)], part)
        differ += not np.array_equal(full, changed)
    assert differ >= len(leaves[0]) - 1  # mixing indices may be equal


def _as_numpy(array):
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if is_key else array)


def test_half_of_the_styles_are_mixed():
    _, index = jax.jit(CO_MOD_GAN.draw)(KEY, jnp.arange(400))["mixing"]
    mixed = np.asarray(index) < TEACHER.num_ws
    assert abs(mixed.mean() - 0.5) < 0.1
    assert index.min() == 1


def test_inpaint_keeps_known_pixels():
    variables = random_variables(STUDENT.generator)
    params, stats = ({"generator": variables[part]} for part in ("params", "stats"))
    batch = prepared({"image": images()}, KEY)
    result = STUDENT.inpaint(params, stats, batch["image"], batch["mask"], KEY)
    known = np.broadcast_to(batch["mask"] == 1, result.shape)
    assert np.array_equal(result[known], batch["image"][known])
    assert np.abs(result).max() < 1 + 1e-6
    half = composite(jnp.ones(4), jnp.zeros(4), jnp.array([1.0, 1, 0, 0]))
    assert half.tolist() == [1, 1, 0, 0]


def test_hole_psnr_ignores_known_pixels():
    image = jnp.zeros((1, 4, 4, 3))
    mask = jnp.ones((1, 4, 4, 1)).at[:, 0].set(0)
    completion = image + 0.2 * (1 - mask) + 5 * mask
    assert hole_psnr(image, completion, mask) == pytest.approx(20, abs=1e-4)


def test_hole_psnr_excludes_images_without_a_hole():
    image = jnp.zeros((3, 4, 4, 3))
    hole = jnp.zeros((1, 4, 4, 1))
    mask = jnp.concatenate([hole, hole, hole + 1])
    error = jnp.array([0.2, 0.02, 9])[:, None, None, None]
    assert hole_psnr(image, image + error, mask) == pytest.approx(30, abs=1e-3)
    assert hole_psnr(image, image, mask) == pytest.approx(100, abs=1e-3)


def test_reused_completions_do_not_change_gradients():
    """Each network's gradient is that of its own loss at the same parameters."""
    system = dataclasses.replace(STUDENT, teacher=None)
    variables = {
        name: random_variables(network) for name, network in system.networks.items()
    }
    params = {name: tree["params"] for name, tree in variables.items()}
    stats = {"generator": variables["generator"]["stats"], "discriminator": {}}
    batch = prepare({"image": images()}, KEY, SAMPLER)
    inputs = Inputs({}, batch, KEY, progress=0.0, kimg=0.0)

    def gradient(loss, trained):
        def value(trained):
            return loss({**params, **trained}, stats, inputs)[0]

        return jax.grad(value)(trained)

    @jax.jit
    def gradients(params):
        separate = {}
        for name in system.networks:
            loss = getattr(system, f"{name}_loss")
            separate |= gradient(loss, {name: params[name]})
        return gradient(system.joint_loss, params), separate

    for ours, theirs in zip(*map(jax.tree.leaves, gradients(params)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
