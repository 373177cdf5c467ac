"""Adam for networks that store n re-parametrisation kernels as one.

The collapsed kernel is w = sum(w_j) / sqrt(n). If g is its gradient, each w_j gets
g / sqrt(n), and equal updates of all w_j move w by sqrt(n) times the update. So for
these kernels the gradient is divided and the update multiplied by sqrt(n). Training is
the same as with n kernels, at 1/n of the memory; Adam's moments are those of each w_j.
NaN and infinite gradients are replaced in between, as they would be for each w_j.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from migan_jax.models.layers import Reparam

MAX_GRADIENT = 1e5  # replaces an infinite one


def adam(
    learning_rate: float | optax.Schedule,
    b1: float,
    b2: float,
    eps: float = 1e-8,
    reparam: Reparam | None = None,
    eps_root: float = 0.0,
) -> optax.GradientTransformation:
    """Make Adam that trains any stored form like the reference's n kernels.

    Differentiating through its steps needs `eps_root` > 0 (systems/hypergradient.py).
    """
    collapsed = reparam is not None and reparam.form == "collapsed"
    scale = math.sqrt(reparam.kernels) if collapsed else 1.0
    return optax.chain(
        _scale_kernels(1 / scale),
        optax.stateless(lambda updates, _: jax.tree.map(_replace_nonfinite, updates)),
        optax.scale_by_adam(b1, b2, eps, eps_root),
        _scale_kernels(scale),
        scale_by_learning_rate(learning_rate),
    )


def lazy_adam(
    learning_rate: float | optax.Schedule,
    b1: float,
    b2: float,
    interval: int,
    reparam: Reparam | None = None,
    eps_root: float = 0.0,
) -> optax.GradientTransformation:
    """Make Adam for a network with an extra penalty step every `interval` steps.

    Learning rate and decays compensate for the (interval + 1) / interval times as many
    steps (StyleGAN2, appendix B).
    """
    ratio = interval / (interval + 1)

    def scaled_rate(kimg: jax.Array) -> jax.Array:
        return learning_rate(kimg) * ratio

    rate = scaled_rate if callable(learning_rate) else learning_rate * ratio
    return adam(rate, b1**ratio, b2**ratio, reparam=reparam, eps_root=eps_root)


def scale_by_learning_rate(
    learning_rate: float | optax.Schedule,
) -> optax.GradientTransformation:
    """Like optax's, but a schedule is a function of kimg since the stage began.

    So it needs no step count, which batch sizes, penalty steps and stages would affect.
    """
    if not callable(learning_rate):
        return optax.scale_by_learning_rate(learning_rate)

    def update(
        updates: Any, state: Any, params: Any = None, *, kimg: jax.Array, **kwargs: Any
    ) -> tuple[Any, Any]:
        rate = learning_rate(kimg)
        return jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def restart(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Forget the state in the first step of a stage, for layers that it adds.

    Their second moments would be 0 after many steps, which makes Adam's first steps
    tenfold. A lazy turn of the first step forgets it again.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update(
        gradient: Any, state: Any, params: Any = None, *, kimg: jax.Array, **kwargs: Any
    ) -> tuple[Any, Any]:
        initial = optimizer.init(params)
        state = jax.tree.map(lambda a, b: jnp.where(kimg == 0, a, b), initial, state)
        return optimizer.update(gradient, state, params, kimg=kimg, **kwargs)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def freeze_levels(
    optimizer: optax.GradientTransformation, levels: Sequence[str]
) -> optax.GradientTransformation:
    """Freeze the levels of these names (FreezeD, Mo et al. 2020).

    The highest resolutions detect edges and textures, which differ little between data
    sets.
    """

    def freeze(path: Any, update: jax.Array) -> jax.Array:
        return jnp.zeros_like(update) if path[1].key in levels else update

    optimizer = optax.with_extra_args_support(optimizer)

    def update(
        gradient: Any, state: Any, params: Any = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params, **kwargs)
        return jax.tree_util.tree_map_with_path(freeze, updates), state

    # The state is the same, so that a run can resume with other levels.
    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _replace_nonfinite(gradient: jax.Array) -> jax.Array:
    """Replace NaN and infinity, as the reference does."""
    return jnp.nan_to_num(gradient, posinf=MAX_GRADIENT, neginf=-MAX_GRADIENT)


def _scale_kernels(factor: float) -> optax.GradientTransformation:
    """Scale the updates of re-parametrised kernels (the parameters named `kernel`)."""

    def scale(path: Any, update: jax.Array) -> jax.Array:
        return update * factor if path[-1].key == "kernel" else update

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)
    )
