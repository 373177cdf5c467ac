"""Hypergradients against known values, finite differences and passes by hand."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from migan_jax.systems.hypergradient import HYPER_MODES, Bilevel, hypergradient
from migan_jax.systems.optimizers import adam

GOLDEN = Path(__file__).parent / "golden" / "hypergradient.npz"
RATE = 0.1
SGD = optax.sgd(RATE)
ADAM = adam(RATE, 0.9, 0.999, eps_root=1e-12)
OPTIMIZERS = {
    "sgd": SGD,
    "sgd_mom0.9": optax.sgd(RATE, 0.9),
    "adam_warm": ADAM,
}
EACH = pytest.mark.parametrize("name", OPTIMIZERS)
EACH_MODE = pytest.mark.parametrize("mode", HYPER_MODES)
compute = jax.jit(hypergradient, static_argnums=(0, 1))


@pytest.fixture(autouse=True)
def exact_numbers(float64):
    """Use float64."""


def steps_of(optimizer):
    def step(gradient, opt_state, theta):
        updates, opt_state = optimizer.update(gradient, opt_state, theta)
        return optax.apply_updates(theta, updates), opt_state

    return step


def warm(state, count, mu, nu):
    """Replace Adam's state in the state of a chain."""

    def replace(s):
        if not isinstance(s, optax.ScaleByAdamState):
            return s
        return s._replace(count=np.int32(count), mu=mu, nu=nu)

    return tuple(replace(s) for s in state)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {key.removeprefix("rhg/"): arrays[key] for key in arrays}


def golden_problem(golden, optimizer, weight=1.0, steps=2, rate=RATE):
    """The squared error of tanh(A theta), and weights and targets of theta from psi."""

    def outer(theta):
        error = jnp.tanh(golden["A"] @ theta["w"]) - golden["y"]
        return jnp.mean(error**2), {}

    def guided(theta, psi):
        features = golden["B"] @ psi
        squares = (theta["w"] - jnp.sin(features)) ** 2
        return weight * jnp.sum(jax.nn.softmax(features) * squares), {}

    def inner(theta, psi):
        task, guide = outer(theta)[0], guided(theta, psi)[0]
        return task + guide, {"task": task, "guide": guide}

    problem = Bilevel(inner, guided, outer, steps_of(optimizer), steps, rate)
    theta, psi = {"w": golden["theta0"]}, golden["psi0"]
    state = optimizer.init(theta)
    moments = ({"w": golden[f"adam_{name}0"]} for name in "mv")
    return problem, theta, warm(state, golden["adam_t0"], *moments), psi


@EACH
def test_golden_values(golden, name):
    result = compute("exact", *golden_problem(golden, OPTIMIZERS[name]))
    assert result.value == pytest.approx(golden[f"{name}/loss"], rel=1e-12)
    close = {"rtol": 1e-12, "atol": 1e-15}
    theta = result.after.theta["w"]
    np.testing.assert_allclose(theta, golden[f"{name}/theta_T"], **close)
    np.testing.assert_allclose(result.gradient, golden[f"{name}/hypergrad"], **close)


@jax.custom_vjp
def squash(x):
    """Like some of our operations, without a forward mode."""
    return jnp.tanh(x)


squash.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


def make_batch(size):
    return np.random.default_rng(1).standard_normal((2, size, 3))


@functools.cache  # and so are the compiled programs of its functions
def small_problem(optimizer):
    return regression(optimizer, make_batch(8))


def regression(optimizer, batch, steps=3):
    """Two layers with weighted errors; a closed gate makes some gradients 0."""
    x, y = batch
    rng = np.random.default_rng(0)
    theta = {
        "first": rng.standard_normal((3, 4)),
        "last": rng.standard_normal((4, 3)),
        "gated": np.ones((1, 3)),
    }
    psi = {"weights": rng.standard_normal(3), "decay": np.zeros(())}

    def error(theta):
        gate = 0.0
        return squash(x @ theta["first"]) @ theta["last"] + gate * theta["gated"] - y

    def inner(theta, psi):
        weights = jax.nn.softplus(psi["weights"])[None]
        loss = jnp.mean(weights * error(theta) ** 2)
        loss += jnp.exp(psi["decay"]) * jnp.mean(jnp.cos(theta["first"]))
        return loss, {"inner": loss}

    def outer(theta):
        value = jnp.mean(jnp.abs(error(theta)) ** 3)
        return value, {"outer": value}

    state = optimizer.init(theta)
    # Warm moments, except of what has no gradient.
    used = {k: float(k != "gated") for k in theta}
    mu = jax.tree.map(lambda t, u: 0.01 * u * np.cos(9 * t), theta, used)
    nu = jax.tree.map(lambda t, u: u * (0.1 + 0.05 * np.sin(9 * t)), theta, used)
    problem = Bilevel(inner, inner, outer, steps_of(optimizer), steps, RATE)
    return problem, theta, warm(state, 5, mu, nu), psi


def reverse_hypergradient(problem, theta, opt_state, psi):
    """Reverse-HG of Franceschi et al.: pull back through one step at a time."""

    @jax.jit
    def step(theta, opt_state, psi):
        gradient = jax.grad(lambda t: problem.inner_loss(t, psi)[0])(theta)
        return problem.step(gradient, opt_state, theta)

    @jax.jit
    def pull(theta, opt_state, psi, cotangents):
        return jax.vjp(step, theta, opt_state, psi)[1](cotangents)

    states = [(theta, opt_state)]
    for _ in range(problem.steps):
        states.append(step(*states[-1], psi))
    adjoint, _ = jax.jit(jax.grad(problem.outer_loss, has_aux=True))(states[-1][0])
    cotangents = adjoint, jax.tree.map(zero_cotangent, states[-1][1])
    total = jax.tree.map(np.zeros_like, psi)
    for state in states[-2::-1]:
        *cotangents, of_psi = pull(*state, psi, tuple(cotangents))
        total = jax.tree.map(np.add, total, of_psi)
    return total


def zero_cotangent(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


def assert_close(tree, other, rtol=1e-10):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14),
        tree,
        other,
    )


@EACH
def test_exact_equals_a_reverse_pass_and_finite_differences(name):
    problem, theta, state, psi = small_problem(OPTIMIZERS[name])
    gradient = compute("exact", problem, theta, state, psi).gradient
    assert_close(gradient, reverse_hypergradient(problem, theta, state, psi), 1e-9)
    gradient, _ = jax.flatten_util.ravel_pytree(gradient)
    flat, unravel = jax.flatten_util.ravel_pytree(psi)

    def outer(flat):
        return compute("exact", problem, theta, state, unravel(flat)).value

    flat, h = np.asarray(flat), 1e-5
    differences = [
        (outer(flat + e) - outer(flat - e)) / (2 * h) for e in h * np.eye(len(flat))
    ]
    assert np.abs(gradient).min() > 1e-6
    np.testing.assert_allclose(gradient, differences, rtol=1e-6)


@EACH_MODE
def test_the_steps_are_the_optimizers(mode):
    """Each mode returns the state after plain steps, and the outer loss there."""
    problem, theta, state, psi = small_problem(ADAM)
    result = compute(mode, problem, theta, state, psi)

    @jax.jit
    def step(theta, state):
        gradient, metrics = jax.grad(problem.inner_loss, has_aux=True)(theta, psi)
        return *problem.step(gradient, state, theta), metrics

    for _ in range(problem.steps):
        theta, state, metrics = step(theta, state)
    assert_close(tuple(result.after), (theta, state, metrics), 1e-12)
    assert_close((result.value, result.aux), jax.jit(problem.outer_loss)(theta), 1e-12)


@EACH_MODE
def test_no_steps_and_no_guidance_give_zero(golden, mode):
    problem, *args = golden_problem(golden, SGD, steps=0)
    result = compute(mode, problem, *args)
    assert not np.any(result.gradient)
    assert_close(tuple(result.after), (*args[:2], {}))
    unguided = compute(mode, *golden_problem(golden, SGD, weight=0.0))
    assert not np.any(unguided.gradient)


def test_virtual_steps_are_of_sgd():
    virtual = compute("sgd_virtual", *small_problem(ADAM))
    exact = compute("exact", *small_problem(SGD))
    assert_close(virtual.gradient, exact.gradient)


def test_first_order_is_exact_for_small_rates(golden):
    """Its error is proportional to the rate; the guided part alone is enough."""

    @jax.jit
    def gradients(rate):
        problem, *args = golden_problem(golden, optax.sgd(rate), rate=rate)
        whole = dataclasses.replace(problem, guided_loss=problem.inner_loss)
        modes = (("exact", problem), ("first_order", problem), ("first_order", whole))
        return [hypergradient(mode, p, *args).gradient for mode, p in modes]

    errors = []
    for rate in (1e-3, 1e-4):
        exact, first, of_whole = gradients(rate)
        assert_close(of_whole, first)
        errors.append(np.abs(first / exact - 1).max())
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


def test_adam_needs_eps_root_where_gradients_are_zero():
    """With it, hypergradients of the same problem are those of a reverse pass."""
    result = compute("exact", *small_problem(adam(RATE, 0.9, 0.999)))
    assert not np.all(np.isfinite(result.gradient["weights"]))


def test_sharded_batches():
    batch = make_batch(8)
    sharded = jax.jit(lambda batch: hypergradient("exact", *regression(SGD, batch)))
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec(None, "data"))
    result = sharded(jax.device_put(batch, split))
    assert_close(result, compute("exact", *small_problem(SGD)), 1e-9)
