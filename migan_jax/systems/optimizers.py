"""Adam for networks whose n re-parametrisation kernels are stored as one.

Each of n kernels would get the gradient g / sqrt(n) of the collapsed kernel
w = sum(w_j) / sqrt(n), and its update moves w by sqrt(n) times as much. So the gradient
is divided and the update multiplied by sqrt(n), for those kernels only: the same path
as with all n of them, at an n-th of the memory (Adam's moments are those of each w_j).
Gradients are cleaned of NaN and infinity on the way, as each of the n would be.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from migan_jax.models.layers import Reparam

LARGEST_GRADIENT = 1e5  # what an infinite one becomes


def adam(
    learning_rate: float | optax.Schedule,
    b1: float,
    b2: float,
    eps: float = 1e-8,
    reparam: Reparam | None = None,
) -> optax.GradientTransformation:
    """Adam as the reference's n-kernel network runs it, whatever form is stored."""
    collapsed = reparam is not None and reparam.form == "collapsed"
    spread = math.sqrt(reparam.kernels) if collapsed else 1.0
    return optax.chain(
        _scale_kernels(1 / spread),
        optax.stateless(lambda updates, _: jax.tree.map(_finite, updates)),
        optax.scale_by_adam(b1, b2, eps),
        _scale_kernels(spread),
        scale_by_learning_rate(learning_rate),
    )


def lazy_adam(
    learning_rate: float | optax.Schedule,
    b1: float,
    b2: float,
    interval: int,
    reparam: Reparam | None = None,
) -> optax.GradientTransformation:
    """Adam for a network whose penalty takes every `interval`-th step besides.

    It then takes (interval + 1) / interval as many steps, which learning rate and decay
    make up for (StyleGAN2, appendix B).
    """
    share = interval / (interval + 1)

    def shared(kimg: jax.Array) -> jax.Array:
        return learning_rate(kimg) * share

    rate = shared if callable(learning_rate) else learning_rate * share
    return adam(rate, b1**share, b2**share, reparam=reparam)


def scale_by_learning_rate(
    learning_rate: float | optax.Schedule,
) -> optax.GradientTransformation:
    """As optax's, but a schedule is one of thousands of images since the stage began.

    So it keeps no count, which other batches, penalties and stages would confuse.
    """
    if not callable(learning_rate):
        return optax.scale_by_learning_rate(learning_rate)

    def update(
        updates: Any, state: Any, params: Any = None, *, kimg: jax.Array, **others: Any
    ) -> tuple[Any, Any]:
        rate = learning_rate(kimg)
        return jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def without_levels(
    optimizer: optax.GradientTransformation, levels: Sequence[str]
) -> optax.GradientTransformation:
    """The same, but networks' parts of these names stay as they are.

    Those next to the picture know what edges and textures look like, of any pictures
    (FreezeD, Mo et al. 2020).
    """

    def still(path: Any, update: jax.Array) -> jax.Array:
        return jnp.zeros_like(update) if path[1].key in levels else update

    optimizer = optax.with_extra_args_support(optimizer)

    def update(
        gradient: Any, state: Any, params: Any = None, **others: Any
    ) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params, **others)
        return jax.tree_util.tree_map_with_path(still, updates), state

    # Of the same state, so that a run can go on with other levels.
    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _finite(gradient: jax.Array) -> jax.Array:
    """As the reference cleans up: no NaN, no infinity."""
    return jnp.nan_to_num(gradient, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT)


def _scale_kernels(factor: float) -> optax.GradientTransformation:
    """Scale the updates of re-parametrised kernels, stored as `kernel`."""

    def scale(path: Any, update: jax.Array) -> jax.Array:
        return update * factor if path[-1].key == "kernel" else update

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)
    )
