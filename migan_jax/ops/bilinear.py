"""Bilinear operations: convolutions, as functions of their input and their kernel.

With y = A(x, w), its transpose in x, T(dy, w), and its kernel gradient B(x, dy):
  A  dx -> T(dy, w)    dw  -> B(x, dy)
  T  ddy -> A(v, w)    dw  -> B(v, dy)      for a gradient v of T's result
  B  dx -> T(dy, u)    ddy -> A(x, u)       for a gradient u of B's result
They need only each other, so any derivative runs in the forms that we choose for these
three. Inputs may be half precision while kernels are float32: the kernel is cast to the
input's dtype, but its gradient is summed and returned in float32. (A plain cast would
round it, and data-parallel training would all-reduce it in half precision.)
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from migan_jax.ops.partition import Strips, current_strips

# Of feature maps that are strips or, if None, images.
Operation = Callable[[Strips | None, jax.Array, jax.Array], jax.Array]


class Bilinear(NamedTuple):
    """A, T and B of the module's docstring; differentiable to any order."""

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    transpose: Callable[[jax.Array, jax.Array], jax.Array]
    kernel_gradient: Callable[[jax.Array, jax.Array], jax.Array]


def bilinear(
    apply: Operation, transpose: Operation, kernel_gradient: Operation
) -> Bilinear:
    """Define the derivatives of three operations by each other.

    The first two get kernels in the dtype of their input; `kernel_gradient` returns at
    least float32. Derivatives are of the strips that the operation was used in, since
    JAX computes them outside of its block.
    """
    operation = partial(jax.custom_vjp, nondiff_argnums=(0,))
    a = operation(lambda strips, x, w: apply(strips, x, w.astype(x.dtype)))
    t = operation(lambda strips, dy, w: transpose(strips, dy, w.astype(dy.dtype)))
    b = operation(kernel_gradient)

    def gradient(strips, x, dy, w):
        return b(strips, x, dy).astype(w.dtype)

    def save(function):
        return lambda strips, *arrays: (function(strips, *arrays), arrays)

    def backward_a(strips, saved, dy):
        x, w = saved
        return t(strips, dy, w), gradient(strips, x, dy, w)

    def backward_t(strips, saved, v):
        dy, w = saved
        return a(strips, v, w), gradient(strips, v, dy, w)

    def backward_b(strips, saved, u):
        x, dy = saved
        return t(strips, dy, u), a(strips, x, u)

    a.defvjp(save(a), backward_a)
    t.defvjp(save(t), backward_t)
    b.defvjp(save(b), backward_b)
    return Bilinear(
        *(lambda x, y, f=function: f(current_strips(), x, y) for function in (a, t, b))
    )
