"""Convolutions with spectral normalisation (Miyato et al. 2018)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from migan_jax.models.costs import Cost, num_elements
from migan_jax.models.layers import add_bias
from migan_jax.ops.conv import conv_dense
from migan_jax.ops.precision import at_least_float32, full_precision

NORM_EPSILON = 1e-12  # of norms


class SpectralConv(nn.Module):
    """A convolution whose weight is divided by its largest singular value.

    One power iteration in each pass refines the estimate of its left singular vector,
    `u`. If the collection `stats` is mutable, the pass updates it. The right one, `v`,
    is computed from `u`; it is kept because checkpoints have it.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        bound = 1 / math.sqrt(math.prod(shape[:3]))
        weight = at_least_float32(self.param("weight", _uniform, shape, bound))
        bias = None
        if self.use_bias:
            bias = self.param("bias", _uniform, (self.features,), bound)
        # A matrix [O, I * kh * kw], the order of `v` in checkpoints.
        matrix = weight.transpose(3, 2, 0, 1).reshape(self.features, -1)
        u, v = (
            self.variable("stats", name, self._random_unit_vector, length)
            for name, length in zip("uv", matrix.shape, strict=True)
        )
        new_u, new_v = power_iteration(matrix, u.value)
        if self.is_mutable_collection("stats") and not self.is_initializing():
            u.value, v.value = new_u, new_v
        precision = full_precision(matrix)
        product = jnp.matmul(matrix, new_v, precision=precision)
        sigma = jnp.matmul(new_u, product, precision=precision)
        y = conv_dense(x, weight / sigma, self.stride, padding=self.padding)
        return y if bias is None else add_bias(y, bias)

    def _random_unit_vector(self, length: int) -> jax.Array:
        vector = jax.random.normal(self.make_rng("params"), (length,), jnp.float32)
        return vector / jnp.linalg.norm(vector)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        return Cost(self.size**2 * x.shape[-1] * num_elements(out))


def power_iteration(matrix: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the singular vectors u and v after one iteration, as constants."""
    matrix = jax.lax.stop_gradient(matrix)
    precision = full_precision(matrix)
    v = _normalise(jnp.matmul(u, matrix, precision=precision))
    return _normalise(jnp.matmul(matrix, v, precision=precision)), v


def _normalise(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), NORM_EPSILON)


def _uniform(key: jax.Array, shape: tuple[int, ...], bound: float) -> jax.Array:
    """Initialise from U(-bound, bound), PyTorch's default for convolutions."""
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
