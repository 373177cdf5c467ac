"""Mixed precision: which operations run in the compute dtype.

Networks have a compute dtype (bfloat16 on accelerators); parameters are float32.
Norms, long sums and outputs are at least float32. "At least", because parity tests run
in float64 and must not be cast down.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from migan_jax.ops.partition import on_tpus


def at_least_float32(x: jax.Array) -> jax.Array:
    """Cast half precision to float32; leave float32 and float64 unchanged."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def full_precision(x: jax.Array) -> lax.Precision | None:
    """Return the precision of products of float32, whose factors accelerators round.

    Training on TPUs takes HIGH, three products of bfloat16 instead of six: R1's
    gradient has an error of 7e-4 then, that of bfloat16 is a hundred times larger
    (benchmarks/r1_precision.py). On GPUs, HIGH would be TF32. None for half precision.
    """
    if jnp.finfo(x.dtype).bits < 32:
        return None
    return lax.Precision.HIGH if on_tpus() else lax.Precision.HIGHEST


def broadcast_like(small: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcast to x's shape, then cast to its dtype.

    In this order the gradient of `small` is summed before it is rounded. With
    half-precision activations, gradients of biases, styles and noise strengths stay
    float32.
    """
    return jnp.broadcast_to(small, x.shape).astype(x.dtype)


def compute_dtype(dtype: DTypeLike | None, x: jax.Array) -> jnp.dtype:
    """Return `dtype`, or the dtype of the input if it is None."""
    return jnp.dtype(x.dtype if dtype is None else dtype)
