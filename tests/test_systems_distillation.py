"""Guided training: what gets gradients, the real system's hypergradient, stages."""

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from migan_jax.config import load_config
from migan_jax.errors import UserError
from migan_jax.families import family_named
from migan_jax.models.distillation import Attention, GuidedFeatures
from migan_jax.systems import guidance
from migan_jax.systems.base import Inputs, Optimizer, TrainState, init_networks
from migan_jax.systems.hypergradient import hypergradient
from migan_jax.training.programs import build_system, make_timeline

SIDE = 16
OPTIMIZERS = {
    "sgd": optax.sgd(1e-4),  # higher rates diverge: guidance has large weights
    "momentum": optax.sgd(1e-4, momentum=0.9),
    "adam": optax.adam(1e-2, b2=0.99, eps_root=1e-12),
}


def make(row="net8", *settings):
    config = load_config(
        f"distillation_scenes64:{row}",
        (
            *(f"resolution={SIDE}", "distillation.channels=2"),
            *("distillation.style=0", "distillation.meta_every=1", *settings),
        ),
        tiny=True,
    )
    return config, build_system(config, {})


def cast(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)


@functools.cache
def setting(row="net8"):
    """A system with random meta networks, its variables, and a batch; float64."""
    _, system = make(row)
    params, stats = jax.jit(system.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = cast(params)
    for name in ("meta", "generator"):
        params[name] = jax.tree.map(
            lambda x: x + 0.03 * rng.standard_normal(x.shape), params[name]
        )
    image = rng.uniform(-1, 1, (2, SIDE, SIDE, 3))
    mask = np.ones((2, SIDE, SIDE, 1))
    mask[:, 4:12, 2:10] = 0
    batch = {"image": jnp.asarray(image), "mask": jnp.asarray(mask)}
    batch["sample"] = jnp.arange(2)
    zero = jnp.zeros(())
    return system, params, stats, Inputs({}, batch, jax.random.key(0), zero, zero)


def problem_of(monkeypatch, system, params, stats, inputs, optimizer, mode="exact"):
    """Return the turn's bilevel problem as a function of psi, and its arguments."""
    captured = {}

    def capture(mode, problem, *start):
        captured["problem"], captured["start"] = problem, start
        return hypergradient(mode, problem, *start)

    monkeypatch.setattr(guidance, "hypergradient", capture)
    rule = OPTIMIZERS[optimizer]
    networks = [n for n in ("generator", "projections") if n in params]
    optimizers = {
        "generator": Optimizer(tuple(networks), rule),
        "meta": Optimizer(("meta",), optax.sgd(1.0)),
    }
    theta = {name: params[name] for name in optimizers["generator"].networks}
    state = TrainState(
        jnp.zeros((), jnp.int32),
        params,
        stats,
        {
            "generator": rule.init(theta),
            "meta": optax.sgd(1.0).init({"meta": params["meta"]}),
        },
        {},
    )
    turn = next(s.turns[0][0] for s in system.stages() if s.name == "main")
    inputs = inputs._replace(batch=jax.tree.map(lambda x: x[None], inputs.batch))
    after, _ = turn.update(turn, optimizers, state, inputs)
    return captured, after


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("row", "optimizer"),
    [
        ("net1", "adam"),
        *(pytest.param("net8", n, marks=pytest.mark.full) for n in OPTIMIZERS),
    ],
)
def test_hypergradient_of_the_system(row, optimizer, monkeypatch):
    """It equals finite differences and an explicit reverse pass over single steps."""
    system, params, stats, inputs = setting(row)

    def compute(psi):
        changed = {**params, "meta": psi}
        captured, after = problem_of(
            monkeypatch, system, changed, stats, inputs, optimizer
        )
        problem, (theta, opt_state, _) = captured["problem"], captured["start"]
        # The outer optimizer is SGD with rate 1.
        gradient = jax.tree.map(lambda a, b: a - b, psi, after.params["meta"])

        def step(theta, opt_state, psi):
            inner = jax.grad(lambda t: problem.inner_loss(t, psi)[0])(theta)
            return problem.step(inner, opt_state, theta)

        thetas = [(theta, opt_state)]
        for _ in range(problem.steps):
            thetas.append(step(*thetas[-1], psi))
        value, adjoint = jax.value_and_grad(lambda t: problem.outer_loss(t)[0])(
            thetas[-1][0]
        )
        zeros = jax.tree.map(
            lambda x: (
                jnp.zeros_like(x)
                if jnp.issubdtype(x.dtype, jnp.floating)
                else np.zeros(x.shape, jax.dtypes.float0)
            ),
            thetas[-1][1],
        )
        adjoints, reverse = (adjoint, zeros), None
        for before in thetas[-2::-1]:
            _, pull = jax.vjp(step, *before, psi)
            *adjoints, share = pull(tuple(adjoints))
            reverse = (
                share
                if reverse is None
                else jax.tree.map(lambda a, b: a + b, reverse, share)
            )
        return value, gradient, reverse

    psi = params["meta"]
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape)), psi)
    run = jax.jit(compute)
    _, gradient, reverse = run(psi)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    assert size > 1e-9
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9 * size),
        gradient,
        reverse,
    )

    def value_at(h):
        return run(jax.tree.map(lambda x, d: x + h * d, psi, direction))[0]

    # Adam's first steps are nearly those of signs. Those of SGD change the outer loss
    # so little that rounding counts.
    h = 1e-7 if optimizer == "adam" else 1e-4
    finite = (value_at(h) - value_at(-h)) / (2 * h)
    products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
    slope = float(sum(jax.tree.leaves(products)))
    assert slope == pytest.approx(float(finite), rel=1e-3)


@pytest.mark.full
@pytest.mark.usefixtures("float64")
def test_first_order_approaches_exact(monkeypatch):
    """Its error is proportional to the rate of SGD."""
    system, params, stats, inputs = setting()

    @jax.jit
    def gradients(rate):
        captured, _ = problem_of(monkeypatch, system, params, stats, inputs, "sgd")

        def step(gradient, opt_state, theta):
            theta = jax.tree.map(lambda t, g: t - rate * g, theta, gradient)
            return theta, opt_state

        problem = dataclasses.replace(captured["problem"], step=step, rate=rate)
        start = captured["start"]
        return [
            jax.flatten_util.ravel_pytree(
                hypergradient(mode, problem, *start).gradient
            )[0]
            for mode in ("exact", "first_order")
        ]

    errors = []
    for rate in (1e-6, 1e-7):
        exact, first = gradients(rate)
        errors.append(jnp.abs(first - exact).max() / jnp.abs(exact).max())
    assert errors[1] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_gradients_of_guidance():
    """The student gets one; the teacher and the unguided terms' psi get none."""
    system, params, stats, inputs = setting()

    @functools.partial(jax.jit, static_argnums=1)
    def gradients(params, part):
        def loss(params):
            terms = system.terms(params, stats, inputs)(params, stats)
            return sum(getattr(terms, part).values())

        return jax.grad(loss)(params)

    def learning(part):
        return {
            name
            for name, tree in gradients(params, part).items()
            if any(leaf.any() for leaf in jax.tree.leaves(tree))
        }

    assert learning("guided") == {"generator", "projections", "meta"}
    assert learning("own") == {"generator"}


def draw_features(seed, side=SIDE):
    rng = np.random.default_rng(seed)
    widths = (4, 8, 8)

    def draw(level, channels):
        return jnp.asarray(
            rng.standard_normal((2, side >> level, side >> level, channels))
        )

    encoder = tuple(draw(i, c) for i, c in enumerate(widths, 1))
    attention = tuple(
        Attention(draw(i, c), draw(i, c // 2), draw(i, c // 2))
        for i, c in enumerate(widths, 1)
    )
    return GuidedFeatures(encoder, attention)


@pytest.mark.usefixtures("float64")
def test_terms_of_guidance():
    system, params, _, inputs = setting()
    meta = {"meta": system.guide.meta}
    initial, _ = jax.jit(lambda key: init_networks(meta, key))(jax.random.key(0))
    params = {**params, **cast(initial)}
    hole = 1 - inputs.batch["mask"]
    student, teacher = draw_features(0), draw_features(1)
    terms = jax.jit(lambda s, t: system.guide.terms(params, hole, s, t))

    same = terms(teacher, teacher)
    assert same["cross"] == same["attention"] == 0 < same["deeper"]
    different = terms(student, teacher)
    assert min(map(float, different.values())) > 0

    # At most a level's pixels that no hole touches.
    def outside(x):
        factor = SIDE // x.shape[1]
        any_hole = hole.reshape(2, x.shape[1], factor, x.shape[2], factor).max((2, 4))
        return x + 5 * (1 - any_hole)[..., None]

    moved = student._replace(encoder=tuple(map(outside, student.encoder)))
    assert terms(moved, teacher)["cross"] == pytest.approx(float(different["cross"]))

    # Deeper features are constants, as targets and for their weights.
    def deeper(student):
        return system.guide.terms(params, hole, student, teacher)["deeper"]

    gradient = jax.jit(jax.grad(deeper))(student).encoder
    assert gradient[0].any() and gradient[1].any() and not gradient[2].any()


@pytest.mark.full
@pytest.mark.usefixtures("float64")
def test_without_weight_there_is_no_hypergradient(monkeypatch):
    system, params, stats, inputs = setting("net1")
    guide = dataclasses.replace(system.guide, weight=0.0)
    system = dataclasses.replace(system, guide=guide)
    inputs = inputs._replace(batch=jax.tree.map(lambda x: x[:1], inputs.batch))

    def run(params):
        rule = optax.sgd(0.1)
        optimizers = {
            "generator": Optimizer(("generator",), rule),
            "meta": Optimizer(("meta",), rule),
        }
        state = TrainState(
            jnp.zeros((), jnp.int32),
            params,
            stats,
            {
                name: rule.init({n: params[n] for n in one.networks})
                for name, one in optimizers.items()
            },
            {},
        )
        turn = system.stages()[-1].turns[0][0]
        batch = jax.tree.map(lambda x: x[None], inputs.batch)
        return turn.update(turn, optimizers, state, inputs._replace(batch=batch))

    state, metrics = jax.jit(run)(params)
    assert metrics["meta/hypergradient"] == 0
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()),
        state.params["generator"],
        params["generator"],
    )
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("row", "networks", "stages"),
    [
        ("baseline", set(), ["main"]),
        ("net5", set(), ["main"]),
        ("net1", {"auxiliary", "meta"}, ["pre-training", "constant", "main"]),
        ("net2", {"meta", "projections"}, ["constant", "main"]),
        (
            "net8",
            {"auxiliary", "meta", "projections"},
            ["pre-training", "constant", "main"],
        ),
    ],
)
def test_networks_and_stages_of_rows(row, networks, stages):
    config, system = make(row, "distillation.meta_delay_kimg=0.01", "total_kimg=1")
    assert system.networks.keys() == {"generator"} | networks
    names = [span.stage.name.split()[0] for span in make_timeline(config, system).spans]
    assert names == stages
    final = build_system(load_config("distillation_places256", (), tiny=True), {})
    assert "discriminator" in final.networks


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("resolution=20", "divisible by 8"),
        ("distillation.confidence_size=99", "confidence_size"),
        ("distillation.kernel_size=4", "odd"),
        ("distillation.pooled_keys=3", "pooled_keys"),
        ("distillation.attention=false", "attention_transfer needs"),
        ("distillation.initial=x", "initial"),
        ("microbatches=2", "microbatches"),
        ("losses.l1=1", "losses.l1"),
    ],
)
def test_unsupported_settings(setting, named):
    config = load_config("distillation_scenes64", (setting,), tiny=True)
    with pytest.raises(UserError, match=named):
        family_named(config.system).check_settings(config)
