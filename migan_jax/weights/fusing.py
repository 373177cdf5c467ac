"""Forms of re-parametrised kernels: collapse, expand, fuse, un-fuse.

All work on parameter trees of the re-parametrised networks (models/layers.py says what
the leaf names mean). In training, n kernels get equal gradients g / sqrt(n) for ever,
so Adam moves them alike and their scaled sum w = sum(w_j) / sqrt(n) is all there is to
know; systems/optimizers.py makes Adam on w follow the same path.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from migan_jax.errors import UserError
from migan_jax.ops.conv import join_kernels, normalise_kernel

Tree = Any

# How far from 1 a fused kernel's norm may be: bfloat16 files round by up to 2**-8.
UNIT_NORM_TOLERANCE = 4e-3


def collapse(tree: Tree) -> Tree:
    """n kernels -> one, for parameters and for their EMA."""
    return _rename(tree, "kernels", "kernel", join_kernels)


def expand(tree: Tree, count: int) -> Tree:
    """One kernel -> n that stand for it, all equal; for parameters and their EMA."""

    def split(kernel: jax.Array) -> jax.Array:
        return jnp.broadcast_to(kernel * count**-0.5, (count, *kernel.shape))

    return _rename(tree, "kernel", "kernels", split)


def collapse_adam(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
    """Adam's moments of n kernels -> those of one.

    The moments kept for a collapsed kernel are those of each of its n kernels, which
    are equal (systems/optimizers.py scales the gradient accordingly).
    """

    def first(moment: jax.Array) -> jax.Array:
        return moment[0]

    return _map_moments(state, lambda tree: _rename(tree, "kernels", "kernel", first))


def expand_adam(state: optax.ScaleByAdamState, count: int) -> optax.ScaleByAdamState:
    """Adam's moments of one kernel -> those of the n kernels that it stands for."""

    def repeat(moment: jax.Array) -> jax.Array:
        return jnp.broadcast_to(moment, (count, *moment.shape))

    return _map_moments(state, lambda tree: _rename(tree, "kernel", "kernels", repeat))


def fuse(params: Tree) -> Tree:
    """Collapsed kernels -> normalised ones, which are used as they are."""
    return _map_normalised(params, lambda path, kernel: normalise_kernel(kernel))


def unfuse(params: Tree, source: str) -> Tree:
    """Fused kernels -> trainable ones of the same function, sized as at the start.

    A fresh kernel has norm sqrt(fan_in). The size does not change the forward pass but
    is what the learning rate is relative to. `source` names the network in messages.
    """
    misfits = []

    def scale(path: tuple[str, ...], kernel: jax.Array) -> jax.Array:
        norms = np.sqrt(np.sum(np.square(kernel, dtype=np.float64), axis=(0, 1, 2)))
        worst = norms[np.argmax(np.abs(norms - 1))]
        if not abs(worst - 1) <= UNIT_NORM_TOLERANCE:
            misfits.append(f"{'.'.join(path)} has a kernel of norm {worst:.4g}")
        return kernel * float(np.sqrt(np.prod(kernel.shape[:3])))

    trainable = _map_normalised(params, scale)
    if misfits:
        more = f" and {len(misfits) - 3} more" if misfits[3:] else ""
        raise UserError(
            f"{source} cannot be trained on, its kernels are not fused ones, which all "
            f"have norm 1: {'; '.join(misfits[:3])}{more}. Training would start from "
            f"another network than this one; keep it as it is with --form=fused."
        )
    return trainable


def _rename(tree: Tree, old: str, new: str, change: Callable[[Any], Any]) -> Tree:
    """Replace every leaf called `old` by `change` of it, called `new`."""
    if not isinstance(tree, dict):
        return tree
    return {
        new if key == old else key: (
            change(value) if key == old else _rename(value, old, new, change)
        )
        for key, value in tree.items()
    }


def _map_normalised(
    params: Tree, change: Callable[[tuple[str, ...], Any], Any]
) -> Tree:
    """Change every weight that is normalised: kernels, and the generator's input's."""

    def visit(path: Any, leaf: Any) -> Any:
        keys = tuple(part.key for part in path)
        normalised = keys[-1] == "kernel" or keys[-2:] == ("fromrgb", "weight")
        return change(keys, leaf) if normalised else leaf

    return jax.tree_util.tree_map_with_path(visit, params)


def _map_moments(
    state: optax.ScaleByAdamState, change: Callable[[Tree], Tree]
) -> optax.ScaleByAdamState:
    return state._replace(mu=change(state.mu), nu=change(state.nu))
