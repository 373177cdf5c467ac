"""Hypergradients: how an outer loss changes with the parameters of an inner loss.

(Suin et al., ICCV 2021, Algorithm 1; Franceschi et al. 2017: reverse mode.) The inner
loss of theta has parameters psi, such as loss weights that networks predict. After T
steps of an optimizer on it, the outer loss is L(theta_T). It depends on psi only
through these steps; dL(theta_T) / dpsi is the hypergradient.

Pure functions on pytrees. The steps are not taken back: their result is the new theta.
Memory is that of one step, and T copies of theta and of the optimizer's state; but
XLA keeps the activations of all steps on CPUs, where it ignores `jax.checkpoint`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from migan_jax.systems.base import Metrics

InnerLoss = Callable[[Any, Any], tuple[jax.Array, Metrics]]  # of theta and psi
OuterLoss = Callable[[Any], tuple[jax.Array, Any]]  # of theta: the loss, and any tree
# Gradient, optimizer's state and theta -> theta and the state. The mode `exact`
# differentiates it. Adam then needs eps_root > 0, because the derivative of the root of
# its second moment is infinite at 0, where parameters without a gradient have it.
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Bilevel:
    """An inner problem, and the outer loss of its result.

    Attributes:
      inner_loss: the loss that the steps minimise.
      guided_loss: the part of it that depends on psi, or all of it; only its derivative
        by both theta and psi is used.
      outer_loss: the loss of the last theta.
      step: one step of theta's optimizer.
      steps: their number, T.
      rate: the learning rate of the approximations, which replace `step` by SGD.
    """

    inner_loss: InnerLoss
    guided_loss: InnerLoss
    outer_loss: OuterLoss
    step: Step
    steps: int
    rate: float | jax.Array


class Unrolled(NamedTuple):
    """The state after the inner steps."""

    theta: Any
    opt_state: Any
    metrics: Metrics  # of the last step's inner loss; empty without steps


class Hypergradient(NamedTuple):
    """The hypergradient with what was computed on the way."""

    gradient: Any  # like psi
    after: Unrolled
    value: jax.Array  # the outer loss at the new theta
    aux: Any  # its second output


def unroll(problem: Bilevel, theta: Any, opt_state: Any, psi: Any) -> Unrolled:
    """Take the inner steps."""
    return _unroll(problem, theta, opt_state, psi)[0]


def hypergradient(
    mode: str, problem: Bilevel, theta: Any, opt_state: Any, psi: Any
) -> Hypergradient:
    """Take the inner steps and differentiate the outer loss by psi; see HYPER_MODES."""
    return _MODES[mode](problem, theta, opt_state, psi)


def _exact(problem: Bilevel, theta: Any, opt_state: Any, psi: Any) -> Hypergradient:
    """Differentiate through the steps. One pass gives the new theta, too."""

    def outer(psi: Any) -> tuple[jax.Array, tuple[Unrolled, Any]]:
        after = unroll(problem, theta, opt_state, psi)
        value, aux = problem.outer_loss(after.theta)
        return value, (after, aux)

    (value, (after, aux)), gradient = jax.value_and_grad(outer, has_aux=True)(psi)
    return Hypergradient(gradient, after, value, aux)


def _sgd_virtual(
    problem: Bilevel, theta: Any, opt_state: Any, psi: Any
) -> Hypergradient:
    """Differentiate through steps of SGD; the real ones are taken besides."""

    def sgd(gradient: Any, _: None, theta: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda t, g: t - problem.rate * g, theta, gradient), None

    virtual = _exact(dataclasses.replace(problem, step=sgd), theta, None, psi)
    after = unroll(problem, theta, opt_state, psi)
    value, aux = problem.outer_loss(after.theta)
    return Hypergradient(virtual.gradient, after, value, aux)


def _first_order(
    problem: Bilevel, theta: Any, opt_state: Any, psi: Any
) -> Hypergradient:
    """Differentiate each step as one of SGD, as if it moved only the last theta.

    This omits the Hessian of the inner loss: SGD's error vanishes with the rate.
    """
    after, thetas = _unroll(problem, theta, opt_state, psi)
    outer = jax.value_and_grad(problem.outer_loss, has_aux=True)
    (value, aux), adjoint = outer(after.theta)

    def mixed(theta: Any) -> Any:
        # Two reverse passes: operations with a custom_vjp have no forward mode.
        def gradient(psi: Any) -> Any:
            return jax.grad(problem.guided_loss, has_aux=True)(theta, psi)[0]

        return jax.vjp(gradient, psi)[1](adjoint)[0]

    zeros = jax.tree.map(jnp.zeros_like, psi)
    total = jax.tree.map(lambda *terms: sum(terms), zeros, *map(mixed, thetas))
    gradient = jax.tree.map(lambda g: -problem.rate * g, total)
    return Hypergradient(gradient, after, value, aux)


_MODES = {"exact": _exact, "sgd_virtual": _sgd_virtual, "first_order": _first_order}
HYPER_MODES = tuple(_MODES)


def _unroll(
    problem: Bilevel, theta: Any, opt_state: Any, psi: Any
) -> tuple[Unrolled, list[Any]]:
    """Take the inner steps; also return theta before each of them."""

    @jax.checkpoint  # to keep the activations of one step at a time
    def step(theta: Any, opt_state: Any) -> tuple[Any, Any, Metrics]:
        # Only by theta: psi would shrink the loss instead of guiding theta.
        gradient, metrics = jax.grad(problem.inner_loss, has_aux=True)(theta, psi)
        return *problem.step(gradient, opt_state, theta), metrics

    thetas, metrics = [], {}
    # No `scan`: XLA's convolutions on CPUs are 15 times as slow inside of loops.
    for _ in range(problem.steps):
        thetas.append(theta)
        theta, opt_state, metrics = step(theta, opt_state)
    return Unrolled(theta, opt_state, metrics), thetas
