"""An iteration is the same on any devices and in any parts, gradients included.

Adam would hide a wrong scale, so the optimisers here keep what they are given.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from variables import random_variables

from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.models import comodgan, discriminators, migan
from migan_jax.systems.comodgan import CoModGAN
from migan_jax.systems.images import prepare
from migan_jax.systems.migan import MIGAN
from migan_jax.training.step import init_state, make_step, split_batch
from migan_jax.training.timeline import Timeline

SIZE, BATCH, RATE = 32, 8, 1e-4  # 32 rows are split, and one level is distilled
TOLERANCE = 1e-9
NARROW = {"resolution": SIZE, "channel_base": 128, "channel_max": 4}
TEACHER = comodgan.Generator(**NARROW, z_dim=4, w_dim=4, encoder_dim=4)
BOX = SAMPLERS["box"]
# These programs run once, and take minutes to optimise.
NOT_OPTIMISED = {"xla_backend_optimization_level": 0}


class Exact:
    """Computes in float64: the dtype of the pictures is that of everything."""

    def prepare(self, batch, key, progress):
        prepared = super().prepare(batch, key, progress)
        for name in ("image", "mask"):
            prepared[name] = prepared[name].astype(jnp.float64)
        return prepared


class ExactMIGAN(Exact, MIGAN):
    pass


class ExactCoModGAN(Exact, CoModGAN):
    pass


def recording():
    """Gradient descent whose state is the gradients of the last two turns."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"last": zeros, "before": zeros}

    def update(gradient, seen, params=None):
        step = jax.tree.map(lambda leaf: -RATE * leaf, gradient)
        return step, {"last": gradient, "before": seen["last"]}

    return optax.GradientTransformation(init, update)


OPTIMIZERS = dict.fromkeys(("generator", "discriminator"), recording())
STUDENT = ExactMIGAN(
    migan.Generator(**NARROW),
    discriminators.MIGANDiscriminator(**NARROW),
    BOX,
    OPTIMIZERS,
)
SYSTEMS = {
    "migan": STUDENT,
    "distilled": dataclasses.replace(STUDENT, teacher=TEACHER),
    "comodgan": ExactCoModGAN(
        TEACHER,
        discriminators.CoModGANDiscriminator(**NARROW),
        BOX,
        OPTIMIZERS,
        l1_weight=2.0,
    ),
}


def first_state(system):
    """Random weights of float64, noise strengths included."""
    shapes = jax.eval_shape(lambda: init_state(system, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def fill(leaf):
        if np.issubdtype(leaf.dtype, np.integer):
            return np.zeros(leaf.shape, leaf.dtype)
        return rng.standard_normal(leaf.shape)

    return jax.tree.map(fill, shapes)


def frozen_of(system):
    if system is not SYSTEMS["distilled"]:
        return {}
    return {"teacher": random_variables(TEACHER, seed=1, dtype=np.float64)}


def mesh_of(devices, space):
    grid = np.array(jax.devices()[:devices]).reshape(-1, space)
    return Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto, AxisType.Auto))


def put_pictures(mesh, own_masks):
    """A batch as it is loaded, split."""
    rng = np.random.default_rng(2)
    batch = {"image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)}
    if own_masks:
        batch["mask"] = rng.integers(0, 2, (BATCH, SIZE, SIZE, 1), np.uint8)
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data", "space")))


def iteration(system, devices, space, parts=1):
    """Gradients of G, D and R1, stats, metrics and programs, on so many devices."""
    mesh = mesh_of(devices, space)
    whole = NamedSharding(mesh, PartitionSpec())
    # One draws its masks, the other has its own.
    batch = put_pictures(mesh, own_masks=isinstance(system, CoModGAN))
    state, frozen = jax.device_put((first_state(system), frozen_of(system)), whole)
    rest = frozen, batch, jax.random.key(3)
    after, metrics, texts = state, {}, []
    span = Timeline(
        system.stages(), batch_size=BATCH, resolution=SIZE, total_kimg=1
    ).at(0)
    for every in (1, *span.stage.lazy):
        step = make_step(
            system,
            span,
            ema_halflife_kimg=BATCH / 1000,
            microbatches=parts,
            every=every,
        )
        with jax.set_mesh(mesh):
            lowered = jax.jit(step, out_shardings=whole).lower(after, *rest)
            program = lowered.compile(NOT_OPTIMISED)
        after, told = program(after, *rest)
        metrics |= told
        texts.append(program.as_text())
    gradients = {
        "generator": after.opt_state["generator"]["last"],
        "discriminator": after.opt_state["discriminator"]["before"],
        "r1": after.opt_state["discriminator"]["last"],
    }
    results = jax.tree.map(np.asarray, (gradients, after.stats, metrics))
    return *results, "\n".join(texts)


def agree(actual, expected, tolerance):
    for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        # Some gradients are zero but for rounding.
        atol = max(tolerance * np.abs(theirs).max(), 1e-15)
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=tolerance)


@functools.cache
def on_one_device(name):
    """What every case of a system is compared with."""
    gradients, stats, metrics, _ = iteration(SYSTEMS[name], 1, 1)
    for gradient in gradients.values():
        moved = [np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient)]
        assert sum(moved) > 0.8 * len(moved)  # no last bias has a part in R1
    return gradients, stats, metrics


# In CI a small family's iteration is that of one device (test_families.py), and so are
# the gradients of these networks (test_models_sharding.py).
@pytest.mark.full
@pytest.mark.parametrize("space", [1, 2])
@pytest.mark.parametrize("name", SYSTEMS)
def test_devices_change_nothing(name, space, float64):
    """Eight devices: as many samples, or four samples in two halves."""
    expected = on_one_device(name)
    *ours, program = iteration(SYSTEMS[name], 8, space)
    agree(ours, expected, TOLERANCE)
    # A device computes features of its own samples and rows, for which it fetches
    # rows from neighbours. Only a CPU's depthwise kernels, MI-GAN's, get their
    # gradient from the whole batch.
    own = rf"f64\[{BATCH * space // 8},{SIZE // space},{SIZE},4\]"
    assert len(re.findall(own, program)) > 100
    if name == "comodgan":
        assert not re.search(rf"f64\[{BATCH},{SIZE},{SIZE},", program)
    assert ("collective-permute" in program) == (space > 1)


@pytest.mark.full
@pytest.mark.parametrize("name", SYSTEMS)
def test_parts_change_nothing(name, float64):
    expected = on_one_device(name)
    # The squares of all styles of a batch have a share in an epsilon of Co-Mod-GAN.
    tolerance = 1e-6 if name == "comodgan" else TOLERANCE
    *ours, _ = iteration(SYSTEMS[name], 1, 1, parts=2)
    if name == "comodgan":  # its average style is then that of the last part
        for stats in (ours[1], expected[1]):
            assert np.isfinite(stats["generator"]["mapping"].pop("w_avg")).all()
    agree(ours, expected, tolerance)
    if name != "comodgan":
        before = first_state(SYSTEMS[name]).stats
        for stats in (expected[1], ours[1]):
            jax.tree.map(np.testing.assert_array_equal, stats, before)


def same_draws(ours, theirs):
    if np.issubdtype(theirs.dtype, np.floating):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_devices_draw_what_one_does():
    """Flips, masks, noise, latents, dropout; normal ones up to rounding."""

    def everything(devices, space):
        mesh = mesh_of(devices, space)

        def draw(batch, key):
            prepared = prepare(batch, key, BOX)
            drawn = SYSTEMS["comodgan"].draw(key, prepared["sample"])
            drawn["dropout_keys"] = jax.random.key_data(drawn["dropout_keys"])
            return prepared, drawn

        with jax.set_mesh(mesh):
            return jax.jit(draw)(put_pictures(mesh, own_masks=False), jax.random.key(5))

    expected = everything(1, 1)
    for devices, space in ((8, 1), (8, 2)):
        ours = everything(devices, space)
        image = ours[0]["image"]
        part = BATCH * space // devices, SIZE // space, SIZE, 3
        assert {shard.data.shape for shard in image.addressable_shards} == {part}
        jax.tree.map(same_draws, ours, expected)


def test_parts_hold_whole_groups():
    samples = np.arange(24)
    batch = {
        "sample": samples,
        "image": np.zeros((24, 2, 2, 3)) + samples[:, None, None, None],
    }
    parts = split_batch(batch, 3, multiple=4)
    assert parts["sample"].shape == (3, 8)
    assert sorted(np.asarray(parts["sample"]).ravel()) == samples.tolist()
    for part, image in zip(parts["sample"], parts["image"], strict=True):
        assert np.array_equal(image[:, 0, 0, 0], part)
        # What belongs together in 24 (modulo 6) does so in 8 (modulo 2).
        for row in range(2):
            assert len({int(sample) % 6 for sample in part[row::2]}) == 1
    assert split_batch(batch, 6, multiple=2)["sample"].shape == (6, 4)
    assert split_batch(batch, 8, multiple=1)["sample"].shape == (8, 3)
    # Of 24 samples in groups of four, eight in two groups, two in one.
    for samples, count in ((24, 5), (24, 4), (8, 4), (2, 4)):
        images = {"image": np.zeros((samples, 1, 1, 1))}
        with pytest.raises(ValueError, match=f"{samples} samples are not {count} "):
            split_batch(images, count, multiple=4)


def test_parts_stay_split():
    """Each device has its share of every part, or it would wait in turns."""
    mesh = mesh_of(8, 2)
    batch = {"image": put_pictures(mesh, own_masks=False)["image"]}
    with jax.set_mesh(mesh):
        image = jax.jit(lambda batch: split_batch(batch, 2, 4))(batch)["image"]
    shapes = {shard.data.shape for shard in image.addressable_shards}
    assert shapes == {(2, BATCH // 8, SIZE // 2, SIZE, 3)}
