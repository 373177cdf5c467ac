"""Forms of re-parametrised kernels: collapse, expand, fuse, un-fuse.

All functions take parameter trees (models/layers.py explains the leaf names). In
training, all n kernels get the same gradient g / sqrt(n), so Adam updates them alike
and their scaled sum w = sum(w_j) / sqrt(n) is sufficient. systems/optimizers.py makes
Adam on w follow the same path.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import path_aware_map

from migan_jax.errors import UserError
from migan_jax.ops.conv import join_kernels, normalise_kernel

Tree = Any

# Of the norm of fused kernels, which is 1: bfloat16 files round by up to 2**-8.
UNIT_NORM_TOLERANCE = 4e-3


def collapse(tree: Tree) -> Tree:
    """Join n kernels into one, in parameters or their EMA."""
    return _rename(tree, "kernels", "kernel", join_kernels)


def expand(tree: Tree, count: int) -> Tree:
    """Split one kernel into n equal ones, in parameters or their EMA."""

    def split(kernel: jax.Array) -> jax.Array:
        return jnp.broadcast_to(kernel * count**-0.5, (count, *kernel.shape))

    return _rename(tree, "kernel", "kernels", split)


def fuse(params: Tree) -> Tree:
    """Normalise collapsed kernels once, as inference uses them."""
    return _map_normalised(params, lambda path, kernel: normalise_kernel(kernel))


def unfuse(params: Tree, source: str) -> Tree:
    """Scale fused kernels to the norm of newly initialised ones, sqrt(fan_in).

    The norm does not affect the forward pass, but sets the effective learning rate.
    `source` names the network in messages.
    """
    problems = []

    def scale(path: tuple[str, ...], kernel: jax.Array) -> jax.Array:
        norms = np.sqrt(np.sum(np.square(kernel, dtype=np.float64), axis=(0, 1, 2)))
        worst = norms[np.argmax(np.abs(norms - 1))]
        if not abs(worst - 1) <= UNIT_NORM_TOLERANCE:
            problems.append(f"{'.'.join(path)} has a kernel of norm {worst:.4g}")
        return kernel * float(np.sqrt(np.prod(kernel.shape[:3])))

    trainable = _map_normalised(params, scale)
    if problems:
        more = f" and {len(problems) - 3} more" if problems[3:] else ""
        raise UserError(
            f"{source} cannot be un-fused: fused kernels have norm 1, but "
            f"{'; '.join(problems[:3])}{more}. Training would start from a different "
            f"network. Keep its kernels unchanged with --form=fused."
        )
    return trainable


def _rename(tree: Tree, old: str, new: str, change: Callable[[Any], Any]) -> Tree:
    """Apply `change` to every leaf named `old`, and rename it to `new`."""
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
    """Change all normalised weights: kernels, and those of the from-RGB layers."""

    def visit(path: tuple[str, ...], leaf: Any) -> Any:
        normalised = path[-1] == "kernel" or path[-2:] == ("fromrgb", "weight")
        return change(path, leaf) if normalised else leaf

    return path_aware_map(visit, params)
