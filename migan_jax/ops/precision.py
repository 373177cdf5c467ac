"""Mixed precision: what runs in the compute dtype and what never does.

Networks take a compute dtype (bfloat16 on accelerators), parameters stay float32.
Norms, sums over many terms and everything shown or compared stay at least float32;
"at least", because the parity tests run in float64 and must not be cast down.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def at_least_float32(x: jax.Array) -> jax.Array:
    """Widen half precision to float32; leave float32 and float64 as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def full_precision(x: jax.Array) -> lax.Precision | None:
    """Float32 products in float32: accelerators would take shorter formats."""
    half = jnp.finfo(x.dtype).bits < 32
    return None if half else lax.Precision.HIGHEST


def spread_like(small: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcast to x's shape, then cast to its dtype.

    In this order the gradient is summed before it is rounded: of a bias, a style or a
    noise strength under half-precision activations it stays float32.
    """
    return jnp.broadcast_to(small, x.shape).astype(x.dtype)


def compute_dtype(dtype: DTypeLike | None, x: jax.Array) -> jnp.dtype:
    """The dtype a layer computes in: the one asked for, or that of its input."""
    return jnp.dtype(x.dtype if dtype is None else dtype)
