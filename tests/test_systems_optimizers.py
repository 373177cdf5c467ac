"""Optimizers. Training with collapsed kernels equals training with n kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from variables import random_variables

from migan_jax.config import load_config
from migan_jax.models.discriminators import MIGANDiscriminator
from migan_jax.models.layers import Reparam
from migan_jax.models.migan import MIGANGenerator
from migan_jax.systems.optimizers import adam, lazy_adam
from migan_jax.training.programs import build_system
from migan_jax.weights.kernel_forms import collapse, expand, fuse, unfuse

NARROW = {"resolution": 8, "channel_base": 64, "channel_max": 8}
KERNELS = 4
EXPANDED, COLLAPSED = (Reparam(form, KERNELS) for form in ("expanded", "collapsed"))
DECAY = 0.99


def images(seed, batch, channels):
    shape = (batch, 8, 8, channels)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def largest_difference(tree, other):
    """The largest relative difference of a leaf; two zero leaves are equal."""
    relative = jax.tree.map(
        lambda a, b: jnp.linalg.norm(a - b) / (jnp.linalg.norm(b) + 1e-30), tree, other
    )
    return max(float(value) for value in jax.tree.leaves(relative))


@dataclasses.dataclass(frozen=True)
class Trainee:
    """One network with its optimizer."""

    network: object
    optimizer: optax.GradientTransformation

    @classmethod
    def make(cls, kind, reparam):
        network = kind(**NARROW, reparam=reparam)
        return cls(network, adam(3e-3, 0.0, 0.99, reparam=reparam))

    def start(self, params):
        return params, self.optimizer.init(params), params

    def update(self, state, gradient):
        params, opt_state, ema = state
        updates, opt_state = self.optimizer.update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: e + (1 - DECAY) * (p - e), ema, params)
        return params, opt_state, ema


def find_adam_state(opt_state):
    return next(s for s in opt_state if isinstance(s, optax.ScaleByAdamState))


def moments_of_one_kernel(tree, tolerance):
    """Take the moments of one of n kernels, which are all the same."""
    if not isinstance(tree, dict):
        return tree
    taken = {k: moments_of_one_kernel(v, tolerance) for k, v in tree.items()}
    if "kernels" in taken:
        first, *others = taken.pop("kernels")
        assert all(largest_difference(other, first) <= tolerance for other in others)
        taken["kernel"] = first
    return taken


def assert_same_training(expanded, collapsed, tolerance):
    """The n-kernel state, collapsed, is the state of the collapsed network."""
    for theirs, ours in ((expanded[0], collapsed[0]), (expanded[2], collapsed[2])):
        assert largest_difference(collapse(theirs), ours) <= tolerance
    theirs, ours = (find_adam_state(state[1]) for state in (expanded, collapsed))
    for name in ("mu", "nu"):
        moments = moments_of_one_kernel(getattr(theirs, name), tolerance)
        assert largest_difference(moments, getattr(ours, name)) <= tolerance


@pytest.mark.slow
def test_collapsed_equals_expanded_over_many_steps(float64):
    """A small generator on a fixed regression target."""
    x, target = images(0, 4, 4), images(1, 4, 3)

    def train(reparam, params, stats):
        trainee = Trainee.make(MIGANGenerator, reparam)

        def loss(params):
            variables = {"params": params, "stats": stats}
            return jnp.mean((trainee.network.apply(variables, x)[0] - target) ** 2)

        def step(state, _):
            value, gradient = jax.value_and_grad(loss)(state[0])
            return trainee.update(state, gradient), value

        return jax.jit(lambda s: jax.lax.scan(step, s, length=60))(
            trainee.start(params)
        )

    network = MIGANGenerator(**NARROW, reparam=EXPANDED)
    variables = random_variables(network, 2, np.float64)
    params, stats = variables["params"], variables["stats"]
    expanded, losses = train(EXPANDED, params, stats)
    collapsed, same_losses = train(COLLAPSED, collapse(params), stats)
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(losses, same_losses, rtol=1e-9)
    assert_same_training(expanded, collapsed, 1e-9)


@pytest.mark.full
def test_collapsed_equals_expanded_in_adversarial_training(float64):
    """Three rounds of generator step, discriminator step and R1 step."""
    x, real = images(0, 4, 4), images(1, 4, 4)

    def train(reparam, states, stats):
        generator = Trainee.make(MIGANGenerator, reparam)
        discriminator = Trainee.make(MIGANDiscriminator, reparam)

        def logits(d_params, image):
            return discriminator.network.apply({"params": d_params}, image)

        def fake(g_params):
            variables = {"params": g_params, "stats": stats}
            return jnp.concatenate(
                [x[..., :1], generator.network.apply(variables, x)[0]], axis=-1
            )

        def g_loss(g_params, d_params):
            return jnp.mean(jax.nn.softplus(-logits(d_params, fake(g_params))))

        def d_loss(d_params, g_params):
            fake_loss = jax.nn.softplus(logits(d_params, fake(g_params)))
            return jnp.mean(fake_loss + jax.nn.softplus(-logits(d_params, real)))

        def r1(d_params):
            gradient = jax.grad(lambda image: jnp.sum(logits(d_params, image)))(real)
            return 5 * jnp.mean(jnp.sum(gradient**2, axis=(1, 2, 3)))

        @jax.jit
        def step(g, d):
            g = generator.update(g, jax.grad(g_loss)(g[0], d[0]))
            d = discriminator.update(d, jax.grad(d_loss)(d[0], g[0]))
            d = discriminator.update(d, jax.grad(r1)(d[0]))
            return g, d

        g, d = generator.start(states[0]), discriminator.start(states[1])
        for _ in range(3):
            g, d = step(g, d)
        return g, d

    generator = MIGANGenerator(**NARROW, reparam=EXPANDED)
    discriminator = MIGANDiscriminator(**NARROW, reparam=EXPANDED)
    variables = random_variables(generator, 2, np.float64)
    d_variables = random_variables(discriminator, 3, np.float64)
    states = variables["params"], d_variables["params"]
    expanded = train(EXPANDED, states, variables["stats"])
    collapsed = train(COLLAPSED, [collapse(s) for s in states], variables["stats"])
    for theirs, ours in zip(expanded, collapsed, strict=True):
        assert_same_training(theirs, ours, 1e-9)


def test_expanding_and_collapsing_parameters_are_inverse():
    network = MIGANGenerator(**NARROW, reparam=COLLAPSED)
    params = random_variables(network)["params"]
    assert largest_difference(collapse(expand(params, KERNELS)), params) <= 1e-6


def kernel_norms(tree):
    """Norms of the re-parametrised kernels, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): float(np.linalg.norm(leaf))
        for path, leaf in leaves
        if path[-1].key == "kernel"
    }


def relative_first_updates(params):
    """Adam's first step relative to each kernel; any gradient gives its size."""
    rng = np.random.default_rng(5)
    gradient = jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32), params)
    optimizer = adam(1e-3, 0.0, 0.99, reparam=COLLAPSED)
    updates, _ = optimizer.update(gradient, optimizer.init(params))
    sizes = kernel_norms(params)
    return {path: size / sizes[path] for path, size in kernel_norms(updates).items()}


def test_first_update_after_unfusing_is_as_from_initialisation():
    network = MIGANGenerator(16, 512, 32, reparam=COLLAPSED)
    fresh, other = (random_variables(network, seed)["params"] for seed in (0, 1))
    fused = fuse(other)
    expected = relative_first_updates(fresh)
    unfused = relative_first_updates(unfuse(fused, "other"))
    still_fused = relative_first_updates(fused)
    for path, size in expected.items():
        # The n-kernel reference's learning rate is 1e-3.
        assert size == pytest.approx(1e-3 * KERNELS**0.5, rel=0.2), path
        assert unfused[path] == pytest.approx(size, rel=0.2), path
        assert still_fused[path] > 2 * size, path


@pytest.mark.parametrize("count, frozen", [(1, {"b16"}), (2, {"b16", "b8"})])
def test_frozen_levels_get_no_update(count, frozen):
    """`optimizer.frozen_levels` freezes that many of the highest resolutions."""

    def build_optimizer(*settings):
        config = load_config("scenes64", ["resolution=16", *settings], tiny=False)
        system = build_system(config, {})
        return system, system.optimizers["discriminator"]

    system, optimizer = build_optimizer(f"optimizer.frozen_levels={count}")
    params = {"discriminator": random_variables(system.discriminator)["params"]}
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    for level, tree in updates["discriminator"].items():
        updated = [bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(tree)]
        assert not any(updated) if level in frozen else all(updated)
    assert updates["discriminator"].keys() == {"b4", "b8", "b16"}
    _, free = build_optimizer()  # same state: a run can resume with other levels
    structures = (jax.tree.structure(o.init(params)) for o in (optimizer, free))
    assert len(set(structures)) == 1


def test_lazy_adam_compensates_for_penalty_steps():
    """17 steps of it have the learning rate and decays of 16 other steps."""
    params = {"weight": jnp.ones(3)}
    gradient = {"weight": jnp.array([1.0, -2.0, 0.5])}
    lazy = lazy_adam(1e-2, 0.5, 0.9, 16)
    plain = adam(1e-2 * 16 / 17, 0.5 ** (16 / 17), 0.9 ** (16 / 17))
    scheduled = lazy_adam(lambda kimg: 1e-2 * kimg, 0.5, 0.9, 16)
    updated = []
    for optimizer, kwargs in ((lazy, {}), (plain, {}), (scheduled, {"kimg": 1.0})):
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(gradient, state, params, **kwargs)
        updated.append(updates["weight"])
    np.testing.assert_allclose(updated[0], updated[1], rtol=1e-6)
    np.testing.assert_allclose(updated[2], updated[1], rtol=1e-6)


def test_each_network_has_its_learning_rate():
    settings = [
        "optimizer.learning_rate=0.1",
        "optimizer.discriminator_learning_rate=0.4",
    ]
    rates = {}
    for count in (1, 2):
        config = load_config("scenes64", settings[:count], tiny=True)
        for name, optimizer in build_system(config, {}).optimizers.items():
            params = {name: {"weight": jnp.ones(1)}}
            updates, _ = optimizer.update(params, optimizer.init(params), params)
            rates[count, name] = -float(updates[name]["weight"][0])
    assert (
        rates[1, "generator"]
        == rates[2, "generator"]
        == pytest.approx(0.1 * 4 / 5, rel=1e-4)
    )
    assert rates[1, "discriminator"] == pytest.approx(0.1 * 16 / 17, rel=1e-4)
    assert rates[2, "discriminator"] == pytest.approx(0.4 * 16 / 17, rel=1e-4)
