"""A step has the same result on any devices and with any microbatches.

Gradients are compared, as recorded by the optimisers: Adam would hide a wrong scale.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forms import use_accelerator_forms, use_tpu_forms
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from variables import random_variables

from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.models import comodgan, discriminators, migan
from migan_jax.systems.comodgan import CoModGAN
from migan_jax.systems.images import prepare
from migan_jax.systems.migan import MIGAN
from migan_jax.training.step import init_state, make_step, split_batch
from migan_jax.training.timeline import Timeline

SIZE, BATCH, RATE = 32, 8, 1e-4  # 32 rows are split, and one level distilled
TOLERANCE = 1e-9
NARROW = {"resolution": SIZE, "channel_base": 128, "channel_max": 4}
TEACHER = comodgan.CoModGANGenerator(**NARROW, z_dim=4, w_dim=4, encoder_dim=4)
BOX = SAMPLERS["box"]
# These programs run once, and take minutes to optimise.
UNOPTIMISED = {"xla_backend_optimization_level": 0}


class Exact:
    """Compute in float64: everything takes its dtype from the images."""

    def prepare(self, batch, key, progress):
        prepared = super().prepare(batch, key, progress)
        for name in ("image", "mask"):
            prepared[name] = prepared[name].astype(jnp.float64)
        return prepared


class ExactMIGAN(Exact, MIGAN):
    pass


class ExactCoModGAN(Exact, CoModGAN):
    pass


def recording_sgd():
    """Make an SGD whose state is the gradients of the last two turns."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"last": zeros, "before": zeros}

    def update(gradient, recorded, params=None):
        step = jax.tree.map(lambda leaf: -RATE * leaf, gradient)
        return step, {"last": gradient, "before": recorded["last"]}

    return optax.GradientTransformation(init, update)


OPTIMIZERS = dict.fromkeys(("generator", "discriminator"), recording_sgd())
STUDENT = ExactMIGAN(
    migan.MIGANGenerator(**NARROW),
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


def random_state(system):
    """Make a state of random float64 weights, noise strengths included."""
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


def put_batch(mesh, with_masks):
    """Put a batch on the mesh, as it is loaded."""
    rng = np.random.default_rng(2)
    batch = {"image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)}
    if with_masks:
        batch["mask"] = rng.integers(0, 2, (BATCH, SIZE, SIZE, 1), np.uint8)
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data", "space")))


def run_step(system, devices, space, microbatches=1):
    """Return gradients of G, D and R1, stats, metrics and programs of a step."""
    mesh = mesh_of(devices, space)
    replicated = NamedSharding(mesh, PartitionSpec())
    # MI-GAN draws masks, Co-Mod-GAN loads them: both ways are tested.
    batch = put_batch(mesh, with_masks=isinstance(system, CoModGAN))
    variables = random_state(system), frozen_of(system)
    state, frozen = jax.device_put(variables, replicated)
    inputs = frozen, batch, jax.random.key(3)
    after, metrics, texts = state, {}, []
    span = Timeline(
        system.stages(), batch_size=BATCH, resolution=SIZE, total_kimg=1
    ).at(0)
    for every in (1, *span.stage.lazy):
        step = make_step(
            system,
            span,
            ema_halflife_kimg=BATCH / 1000,
            microbatches=microbatches,
            every=every,
        )
        with jax.set_mesh(mesh):
            lowered = jax.jit(step, out_shardings=replicated).lower(after, *inputs)
            program = lowered.compile(UNOPTIMISED)
        after, new_metrics = program(after, *inputs)
        metrics |= new_metrics
        texts.append(program.as_text())
    gradients = {
        "generator": after.opt_state["generator"]["last"],
        "discriminator": after.opt_state["discriminator"]["before"],
        "r1": after.opt_state["discriminator"]["last"],
    }
    results = jax.tree.map(np.asarray, (gradients, after.stats, metrics))
    return *results, "\n".join(texts)


def assert_close(actual, expected, tolerance):
    for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        # Some gradients are zero up to rounding.
        atol = max(tolerance * np.abs(theirs).max(), 1e-15)
        np.testing.assert_allclose(ours, theirs, atol=atol, rtol=tolerance)


@functools.cache
def run_on_one_device(name):
    """Return the reference results of a system."""
    gradients, stats, metrics, _ = run_step(SYSTEMS[name], 1, 1)
    for gradient in gradients.values():
        nonzero = [np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient)]
        assert sum(nonzero) > 0.8 * len(nonzero)  # R1 has no gradient for last biases
    return gradients, stats, metrics


# CI compares a small family's step (test_families.py) and the gradients of these
# networks (test_models_sharding.py) with those of one device.
@pytest.mark.full
@pytest.mark.parametrize("forms", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("space", [1, 2])
@pytest.mark.parametrize("name", SYSTEMS)
def test_devices_do_not_change_the_result(name, space, forms, float64, monkeypatch):
    """Eight devices hold a sample each, or half of one of four samples."""
    expected = run_on_one_device(name)
    if forms == "tpu":
        use_tpu_forms(monkeypatch)
    elif forms == "gpu":
        use_accelerator_forms(monkeypatch)
    *ours, program = run_step(SYSTEMS[name], 8, space)
    assert_close(ours, expected, TOLERANCE)
    # A device computes features of its samples and rows, and fetches rows from
    # neighbours. Only the gradient of depthwise kernels (MI-GAN) on CPUs uses the
    # whole batch.
    samples, rows = BATCH * space // 8, SIZE // space
    if forms == "tpu":  # strips make a batch of eight
        samples, rows = 8, rows * samples // 8
    local = rf"f64\[{samples},{rows},{SIZE},4\]"
    assert len(re.findall(local, program)) > 100
    if name == "comodgan" or forms != "cpu":
        assert not re.search(rf"f64\[{BATCH},{SIZE},{SIZE},", program)
    assert ("collective-permute" in program) == (space > 1)


@pytest.mark.full
@pytest.mark.parametrize("name", SYSTEMS)
def test_microbatches_do_not_change_the_result(name, float64):
    expected = run_on_one_device(name)
    # Co-Mod-GAN normalises styles over the batch, so an epsilon's effect depends on it.
    tolerance = 1e-6 if name == "comodgan" else TOLERANCE
    *ours, _ = run_step(SYSTEMS[name], 1, 1, microbatches=2)
    if name == "comodgan":  # its average style is that of the last microbatch
        for stats in (ours[1], expected[1]):
            assert np.isfinite(stats["generator"]["mapping"].pop("w_avg")).all()
    assert_close(ours, expected, tolerance)
    if name != "comodgan":
        before = random_state(SYSTEMS[name]).stats
        for stats in (expected[1], ours[1]):
            jax.tree.map(np.testing.assert_array_equal, stats, before)


def assert_same_draws(ours, theirs):
    if np.issubdtype(theirs.dtype, np.floating):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_devices_do_not_change_random_draws():
    """Flips, masks, noise, latents, dropout; normal draws up to rounding."""

    def draw_all(devices, space):
        mesh = mesh_of(devices, space)

        def draw(batch, key):
            prepared = prepare(batch, key, BOX)
            drawn = SYSTEMS["comodgan"].draw(key, prepared["sample"])
            drawn["dropout_keys"] = jax.random.key_data(drawn["dropout_keys"])
            return prepared, drawn

        with jax.set_mesh(mesh):
            return jax.jit(draw)(put_batch(mesh, with_masks=False), jax.random.key(5))

    expected = draw_all(1, 1)
    for devices, space in ((8, 1), (8, 2)):
        ours = draw_all(devices, space)
        image = ours[0]["image"]
        local = BATCH * space // devices, SIZE // space, SIZE, 3
        assert {shard.data.shape for shard in image.addressable_shards} == {local}
        jax.tree.map(assert_same_draws, ours, expected)


def test_microbatches_hold_whole_groups():
    samples = np.arange(24)
    batch = {
        "sample": samples,
        "image": np.zeros((24, 2, 2, 3)) + samples[:, None, None, None],
    }
    split = split_batch(batch, 3, multiple=4)
    assert split["sample"].shape == (3, 8)
    assert sorted(np.asarray(split["sample"]).ravel()) == samples.tolist()
    for microbatch, image in zip(split["sample"], split["image"], strict=True):
        assert np.array_equal(image[:, 0, 0, 0], microbatch)
        # The groups of 24 samples (modulo 6) are groups of 8 (modulo 2).
        for group in range(2):
            assert len({int(sample) % 6 for sample in microbatch[group::2]}) == 1
    assert split_batch(batch, 6, multiple=2)["sample"].shape == (6, 4)
    assert split_batch(batch, 8, multiple=1)["sample"].shape == (8, 3)
    # 24 samples in six groups, 8 samples in two groups, 2 samples in one.
    for samples, count in ((24, 5), (24, 4), (8, 4), (2, 4)):
        images = {"image": np.zeros((samples, 1, 1, 1))}
        with pytest.raises(ValueError, match=f"{samples} samples"):
            split_batch(images, count, multiple=4)


def test_microbatches_stay_split():
    """Each device has a fraction of every microbatch, or devices would take turns."""
    mesh = mesh_of(8, 2)
    batch = {"image": put_batch(mesh, with_masks=False)["image"]}
    with jax.set_mesh(mesh):
        image = jax.jit(lambda batch: split_batch(batch, 2, 4))(batch)["image"]
    shapes = {shard.data.shape for shard in image.addressable_shards}
    assert shapes == {(2, BATCH // 8, SIZE // 2, SIZE, 3)}
