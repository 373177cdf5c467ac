"""Turns of learnable feature imputation against PyTorch's; growth, rates and errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_models_imputation import (
    CHANNELS,
    POINTS,
    SCORING,
    SIDE,
    SMALL,
    draw,
    perturb,
    to_flax,
    to_torch,
)
from variables import random_variables, relative_l2

from migan_jax.config import load_config
from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.data.transforms import sample_keys
from migan_jax.errors import UserError
from migan_jax.losses import gan
from migan_jax.models.imputation import ImputationGenerator, double, halve
from migan_jax.systems import images
from migan_jax.systems.base import Inputs
from migan_jax.systems.imputation import (
    Imputation,
    apply_generator,
    check_settings,
    pack,
)
from migan_jax.systems.optimizers import adam, restart
from migan_jax.training.programs import build_system, make_timeline

GROWTH = {"grows": True, "fades": True, "grown": SIDE, "smallest": SIDE // 2}


class Case(NamedTuple):
    """Options of PyTorch's networks and of ours, and the system's settings."""

    theirs: tuple[dict, dict]
    ours: tuple[dict, dict]
    settings: dict
    side: int = SIDE


def imputed(side):
    # Its kernel gradients take long to compile, of 5x5 estimators especially.
    return Case(
        ({"keypoints": POINTS}, {"keypoints": POINTS, "pose_resolution": side}),
        ({"points": POINTS, "resolution": side},) * 2,
        {"penalty": "one_sided", "pastes": True},
        side,
    )


# At half of the phase, the share of a level that fades in is 0.5.
CASES = {
    "imputed, at 8 pixels": imputed(SIDE // 2),
    "imputed": imputed(SIDE),
    "two-sided, with L1": Case(
        ({"conv": "conv"}, {}),
        ({"imputes": False}, {}),
        {"penalty": "two_sided", "pastes": True, "l1_weight": 2.0},
    ),
    "everywhere, not pasted, fading": Case(
        ({"conv": "conv", "growing": True}, {"residual": False, "growing": True}),
        ({"imputes": False, **GROWTH}, {"shortcuts": False, **GROWTH}),
        {"penalty": "everywhere", "pastes": False, "drift_weight": 1.0},
    ),
}
THEIR_PENALTIES = {
    "one_sided": "clamped",
    "two_sided": "masked",
    "everywhere": "standard",
}


def make(generator, discriminator, **settings):
    optimizers = dict.fromkeys(("generator", "discriminator"), adam(1e-3, 0.0, 0.99))
    defaults = {"phase_kimg": 0.064, "batch_size": 2, "optimizers": optimizers}
    sampler = SAMPLERS["half_box"]
    return Imputation(generator, discriminator, sampler, **defaults | settings)


def make_inputs(batch, key, progress=0.5):
    return Inputs({}, batch, key, jnp.asarray(progress), jnp.zeros(()))


@pytest.mark.torch
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if name == "imputed" else ())
        for name in CASES
    ],
)
def test_turns_equal_pytorchs(name):
    """Losses, and the gradients of all parameters of the trained network."""
    import imputation_torch
    import torch

    case = CASES[name]
    torch.manual_seed(4)
    twins = [
        imputation_torch.Generator(case.side, CHANNELS, z_channels=4, **case.theirs[0]),
        imputation_torch.Discriminator(case.side, CHANNELS, **case.theirs[1]),
    ]
    for twin in twins:
        perturb(twin)
    with torch.no_grad():
        for parameter in twins[1].parameters():
            parameter *= 3  # so that the penalty is not 0
    system = make(
        SMALL.clone(**case.ours[0]), SCORING.clone(**case.ours[1]), **case.settings
    )
    params = {
        role: to_flax(network, twin.state_dict())
        for (role, network), twin in zip(system.networks.items(), twins, strict=True)
    }
    image, mask, _, points = draw(side=case.side)
    batch = {"image": image, "mask": mask, "sample": jnp.arange(2)}
    known = system.generator.points > 0
    batch |= {"points": points} if known else {}
    keys = {
        turn: jax.random.key(seed) for seed, turn in enumerate(("d", "penalty", "g"))
    }
    turns = {
        "d": (system.discriminator_loss, "discriminator"),
        "penalty": (system.penalty_loss, "discriminator"),
        "g": (system.generator_loss, "generator"),
    }

    @jax.jit
    def run(params):
        results = {}
        for turn, (loss, role) in turns.items():
            inputs = make_inputs(batch, keys[turn])

            def of_trained(trained, loss=loss, role=role, inputs=inputs):
                stats = {"generator": {}, "discriminator": {}}
                return loss({**params, role: trained}, stats, inputs)

            results[turn] = jax.value_and_grad(of_trained, has_aux=True)(params[role])
        return results

    results = run(params)

    z = {
        turn: to_torch(system.draw(key, jnp.arange(2), jnp.float64))
        for turn, key in keys.items()
    }
    fractions = sample_keys(keys["penalty"], 1, jnp.arange(2))
    t = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float64))(fractions)
    t = torch.from_numpy(np.array(t)).reshape(2, 1, 1, 1)
    share = 0.5 if system.generator.fades else 1.0
    theirs = imputation_torch.Batch(
        to_torch(image), to_torch(mask), to_torch(points) if known else None, share
    )
    pasting = system.pastes
    form = THEIR_PENALTIES[system.penalty]
    expected = {
        "d": imputation_torch.discriminator_turn(
            *twins, theirs, z["d"], drift_weight=system.drift_weight, pasting=pasting
        ),
        "penalty": imputation_torch.penalty_turn(
            *twins, theirs, z["penalty"], t, form=form, pasting=pasting
        ),
        "g": imputation_torch.generator_turn(*twins, theirs, z["g"], pasting=pasting),
    }
    if system.l1_weight:
        add_l1(expected["g"], twins[0], theirs, z["g"], system.l1_weight)
    for turn, ((loss, _), gradients) in results.items():
        assert float(loss) == pytest.approx(float(expected[turn]["loss"]), rel=1e-9)
        network = system.networks[turns[turn][1]]
        jax.tree.map(
            assert_near, gradients, to_flax(network, expected[turn]["gradients"])
        )
    assert results["penalty"][0][0] > 0
    norm = results["penalty"][0][1][1]["d/gradient_norm"]
    theirs_norm = float(expected["penalty"]["norms"].mean())
    assert float(norm) == pytest.approx(theirs_norm, rel=1e-9)


def assert_near(gradient, expected):
    assert np.isfinite(gradient).all()
    if expected.any():
        assert relative_l2(gradient, expected) < 1e-9
    else:  # such as that of a bias, from the penalty
        assert not np.any(gradient)


def add_l1(turn, generator, batch, z, weight):
    """Add the mean absolute difference in holes to PyTorch's turn of the generator."""
    import imputation_torch

    completed = imputation_torch.complete(generator, batch, z)
    l1 = weight * ((completed - batch.truth).abs() * (1 - batch.mask)).mean()
    turn["loss"] = turn["loss"] + l1.detach()
    for name, gradient in imputation_torch.gradients(l1, generator).items():
        turn["gradients"][name] = turn["gradients"][name] + gradient


# Penalties.


def test_penalty_of_a_linear_critic():
    """Only its gradient in a sample's own hole counts, above a norm of 1."""
    rng = np.random.default_rng(0)
    x, weights = (rng.standard_normal((3, 6, 6, 3)).astype(np.float32) for _ in "xw")
    hole = np.zeros((3, 6, 6, 1), np.float32)
    hole[:, 2:4, 2:5] = 1
    inside = np.sqrt(((weights * hole) ** 2).sum((1, 2, 3)))
    weights *= (np.array([0.5, 3, 1]) / inside)[:, None, None, None]
    weights = np.where(hole, weights, 10).astype(np.float32)

    def norms(weights, hole=hole):
        def critic(x):
            return jnp.sum(x * weights, axis=(1, 2, 3), keepdims=True)

        return gan.gradient_norm(critic, x, hole)

    norm = norms(weights)
    np.testing.assert_allclose(norm, [0.5, 3, 1], rtol=1e-5)
    np.testing.assert_allclose(gan.one_sided_penalty(norm), [0, 2, 0], atol=1e-5)
    np.testing.assert_allclose(gan.two_sided_penalty(norm), [0.25, 4, 0], atol=1e-5)
    outside = np.where(hole, weights, -7)
    np.testing.assert_array_equal(norms(outside), norm)
    other = np.where(np.arange(3)[:, None, None, None] == 1, 2 * weights, weights)
    np.testing.assert_allclose(norms(other), [0.5, 6, 1], rtol=1e-5)
    assert norms(weights, 1.0).min() > 50
    slope = jax.grad(lambda w: jnp.sum(gan.one_sided_penalty(norms(w))))
    assert not np.any(slope(weights * 0)) and np.isfinite(slope(weights)).all()


# Latents.


def test_each_turn_and_sample_has_new_latents():
    system = make(SMALL, SCORING)
    (stage,) = system.stages()
    step, samples = jax.random.key(0), jnp.arange(3)
    streams = [turn.stream for group in stage.turns for turn in group]
    z = np.concatenate(
        [
            system.draw(jax.random.fold_in(step, s), samples, jnp.float32)
            for s in streams
        ]
    )
    assert z.shape == (9, 4, 4, 4) and len(np.unique(z)) == z.size
    key = jax.random.fold_in(step, streams[0])
    # A sample keeps its latents in any microbatch.
    np.testing.assert_array_equal(system.draw(key, samples[1:], jnp.float32), z[1:3])
    assert abs(z.mean()) < 0.2 and abs(z.std() - 1) < 0.2


def test_inpainting_takes_the_mean_latents():
    network = SMALL.clone(grows=True, imputes=False)
    small = network.clone(grown=SIDE // 2)
    variables = random_variables(network)
    params, stats = ({"generator": variables[k]} for k in ("params", "stats"))
    image, mask, z, _ = draw(dtype=np.float32)
    key = jax.random.key(0)
    result = jax.jit(make(network, SCORING).inpaint)(params, stats, image, mask, key)
    output, _ = jax.jit(network.apply)(variables, pack(image, mask), 0 * z)
    expected = images.composite(image, jnp.clip(output, -1, 1), mask)
    np.testing.assert_array_equal(result, expected)
    # A network that has not grown up completes smaller images, and enlarges them.
    result = jax.jit(make(small, SCORING).inpaint)(params, stats, image, mask, key)
    known = halve(mask)
    below = halve(image * mask) / jnp.maximum(known, 0.25)  # of known pixels
    below = pack(below, (known >= 0.5).astype(np.float32))
    output, _ = jax.jit(small.apply)(variables, below, 0 * z)
    expected = images.composite(image, jnp.clip(double(output), -1, 1), mask)
    np.testing.assert_array_equal(result, expected)


# Growth.


def test_stages_of_growth():
    config = load_config("imputation_places256:b", (), False)
    system = build_system(config, {})
    timeline = make_timeline(config, system)
    names, sizes = ["8 pixels"], [256]
    for r, size in {16: 256, 32: 128, 64: 96, 128: 32, 256: 32}.items():
        names += [f"fade-in of {r} pixels", f"{r} pixels"]
        sizes += [size, size]
    assert [span.stage.name for span in timeline.spans] == names
    assert [span.batch_size for span in timeline.spans] == sizes
    for index, span in enumerate(timeline.spans):
        start = 1_200_000 * index
        assert abs(span.first_image - start) <= max(sizes)
        name = span.stage.name
        stage_system = span.stage.system
        for network in stage_system.networks.values():
            assert network.grown == int(name.split()[-2])
            assert network.fades == ("fade-in" in name)
        assert stage_system.batch_size == span.batch_size
    assert timeline.images(timeline.end_step) == pytest.approx(20e6, abs=256)
    # At 128 pixels, too, only the highest resolution has the last batch size.
    stages = build_system(load_config("imputation_fdf128:d", (), False), {}).stages()
    assert [s.batch_size for s in stages] == [256, 256, 256, 128, 128, 96, 96, 32, 32]
    assert stages[-1].until_kimg is None


@pytest.mark.parametrize("name", ["fade-in of 32 pixels", "fade-in of 256 pixels"])
def test_new_levels_fade_in_every_four_steps(name):
    config = load_config("imputation_places256:d", (), False)
    spans = make_timeline(config, build_system(config, {})).spans
    span = next(span for span in spans if span.stage.name == name)
    steps = jnp.arange(span.first_step, span.end_step)
    share = np.asarray(span.stage.system._new_fraction(span.progress(steps)))
    changes = np.flatnonzero(np.diff(share)) + 1
    assert share[0] == 0 and 0.99 < share[-1] <= 1
    assert (np.diff(share) >= 0).all()
    # A stage ends at a whole step, so that it may last a step longer or shorter.
    between = np.diff(changes, prepend=0)
    assert (between == 4).sum() >= len(between) - 1 and abs(between - 4).max() <= 1
    whole = next(s for s in spans if s.stage.name == "256 pixels")
    assert whole.stage.system._new_fraction(jnp.zeros(())) == 1


def test_images_and_masks_of_a_fading_level():
    """Images are mixed with coarser ones, but masks remain binary."""
    system = make(SMALL, SCORING)
    growing = (
        net.clone(**{**GROWTH, "resolution": 2 * SIDE}) for net in (SMALL, SCORING)
    )
    fading = make(*growing, phase_kimg=0.064)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, 2 * SIDE, 2 * SIDE, 3), np.uint8),
        "mask": rng.integers(0, 2, (4, 2 * SIDE, 2 * SIDE, 1), np.uint8),
    }
    key = jax.random.key(0)
    whole = jax.jit(system.prepare)(batch, key, jnp.zeros(()))
    prepare = jax.jit(fading.prepare)
    for progress, share in ((0.0, 0.0), (0.3, 0.25), (1.0, 1.0)):
        prepared = prepare(batch, key, jnp.asarray(progress))
        for name, ours in prepared.items():
            if name == "sample":
                continue
            new = halve(whole[name])
            mixed = (1 - share) * double(halve(new)) + share * new
            if name == "mask":
                assert set(np.unique(ours)) == {0, 1}
                np.testing.assert_array_equal(ours, mixed >= 0.5)
            else:
                np.testing.assert_allclose(ours, mixed, atol=1e-6)


# Optimizers.


def test_recipes_rates_decays_and_averages():
    """Lazy penalties slow down the discriminator's Adam; the EMA's weight halves."""
    for recipe, rate in (
        ("places256", 1.5e-3),
        ("places256:e", 1e-3),
        ("fdf128", 1e-3),
    ):
        config = load_config(f"imputation_{recipe}", (), False)
        assert config.optimizer.ema_halflife_kimg == 10
        system = build_system(config, {})
        ratio = 16 / 17
        for role, factor in (("generator", 1), ("discriminator", ratio)):
            one = {"w": jnp.ones(1)}
            rule = system.optimizers[role]
            updates, state = rule.update(one, rule.init(one), one)
            (adam_state,) = (s for s in state if isinstance(s, optax.ScaleByAdamState))
            np.testing.assert_allclose(updates["w"], -rate * factor, rtol=1e-5)
            np.testing.assert_allclose(adam_state.mu["w"], 1)
            np.testing.assert_allclose(adam_state.nu["w"], 1 - 0.99**factor, rtol=1e-5)
        (stage,) = system.stages()
        assert stage.lazy == (16,)


def test_moments_are_forgotten_in_the_first_step_of_a_fade():
    rule = restart(adam(1e-3, 0.0, 0.99))
    large, small = ({"w": jnp.full(2, value)} for value in (100.0, 1e-3))
    _, old = rule.update(large, rule.init(large), large, kimg=jnp.asarray(1.0))
    first, forgotten = rule.update(small, old, large, kimg=jnp.asarray(0.0))
    later, kept = rule.update(small, old, large, kimg=jnp.asarray(0.032))
    np.testing.assert_allclose(first["w"], -1e-3, rtol=1e-3)  # a first step of Adam
    assert np.abs(later["w"]).max() < 1e-7
    fresh = adam(1e-3, 0.0, 0.99)
    _, expected = fresh.update(small, fresh.init(large), large)
    jax.tree.map(np.testing.assert_array_equal, forgotten, expected)
    assert jax.tree.leaves(kept) != jax.tree.leaves(expected)


def test_only_fades_forget_moments():
    config = load_config("imputation_places256:d", (), False)
    system = build_system(config, {})
    rules = system.optimizers.values()
    for stage in system.stages():
        kept = [o.transformation in rules for o in stage.optimizers.values()]
        assert kept == [not stage.system.generator.fades] * 2


# Settings.


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("imputation.form=both", "imputation.form"),
        ("imputation.penalty=none", "imputation.penalty"),
        ("imputation.generator_pose=heat", "imputation.generator_pose"),
        ("imputation.discriminator_pose=heat", "imputation.discriminator_pose"),
        ("resolution=40", "resolution"),
        ("networks.channel_base=4", "networks.channel_base"),
        ("optimizer.frozen_levels=2", "optimizer.frozen_levels"),
        ("teacher=x.pt", "teacher"),
    ],
)
def test_unsupported_settings(setting, word):
    with pytest.raises(UserError, match=word) as caught:
        check_settings(load_config("imputation_places256", [setting], True))
    assert "\n" not in str(caught.value)


def test_weighted_averages_need_certainties():
    settings = ["imputation.weighted_down=true", "imputation.imputes=false"]
    with pytest.raises(UserError, match=r"imputation\.imputes"):
        check_settings(load_config("imputation_places256", settings, True))


def test_holes_are_ignored_by_networks_in_growth():
    """Also where a small pixel is half hole, half known."""
    generator = ImputationGenerator(
        16, 64, 4, latents=2, grows=True, grown=8, imputes=False
    )
    variables = random_variables(generator)
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    mask = np.ones((1, 16, 16, 1), np.float32)
    mask[:, 5:10, 4:11] = 0
    z = np.zeros((1, 4, 4, 2), np.float32)
    changed = np.where(mask > 0, image, 0.5)
    outputs = [
        np.asarray(apply_generator(generator, variables, x, mask, z)[0])
        for x in (image, changed)
    ]
    np.testing.assert_array_equal(*outputs)
    known = np.where(mask > 0, -image, image)
    other, _ = apply_generator(generator, variables, known, mask, z)
    assert not np.array_equal(other, outputs[0])
    with pytest.raises(ValueError, match="divisible by 4"):
        apply_generator(generator, variables, image[:, :15], mask[:, :15], z)
