"""Layers that several networks share.

Layers compute in the dtype of their input; parameters are created in float32.
Parameter names carry meaning for the converters, the optimiser and the EMA:
  kernel   a re-parametrised kernel, stored as one array; in the fused form the same
           name holds the normalised kernel, which is used as it is
  kernels  the same written out as n kernels, [n, kh, kw, I, O]
  weight   any other weight
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from migan_jax.models.costs import (
    Cost,
    activation_cost,
    pixels_of,
    size_of,
    upsampling_cost,
)
from migan_jax.models.noise import LayerNoise, tile_noise
from migan_jax.ops.activation import lrelu_agc
from migan_jax.ops.conv import (
    conv,
    conv_depthwise,
    conv_pointwise,
    join_kernels,
    normalise_kernel,
)
from migan_jax.ops.partition import split_images
from migan_jax.ops.precision import at_least_float32, spread_like
from migan_jax.ops.resample import downsample2x, fir_filter, upsample2x

Resampling = Literal["up", "down"] | None


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Every weight starts as N(0, 1); normalisation or scaling does the rest."""
    return jax.random.normal(key, shape, jnp.float32)


def constant(value: float) -> Callable[..., jax.Array]:
    """Initialiser of biases and strengths."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Reparam:
    """How re-parametrised convolutions store their kernels (MI-GAN, section 3.2).

    The method draws `kernels` kernels per layer, sums them, scales the sum by
    1 / sqrt(kernels) and normalises it per output channel. Under Adam only the sum
    matters, so "collapsed" stores just that; "expanded" stores all of them, as the
    reference does in training; "fused" stores the normalised result of either, as the
    released networks do.
    """

    form: Literal["collapsed", "expanded", "fused"] = "collapsed"
    kernels: int = 9

    def kernel(self, layer: nn.Module, shape: tuple[int, int, int, int]) -> jax.Array:
        """Declare the layer's kernel parameter and return what it convolves with."""
        if self.form == "expanded":
            kernels = layer.param("kernels", normal, (self.kernels, *shape))
            return normalise_kernel(join_kernels(kernels))
        if self.form == "collapsed":
            return normalise_kernel(layer.param("kernel", normal, shape))
        return layer.param("kernel", _normalised, shape)


def _normalised(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return normalise_kernel(normal(key, shape))


class DepthwiseConv(nn.Module):
    """3x3 depthwise convolution with bias."""

    reparam: Reparam

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        y = conv_depthwise(x, self.reparam.kernel(self, (3, 3, 1, c)))
        return add_bias(y, self.param("bias", constant(0), (c,)))

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        return Cost(9 * size_of(out))


class PointwiseConv(nn.Module):
    """1x1 convolution; down-sampling filters before it, up-sampling after it."""

    features: int
    reparam: Reparam
    use_bias: bool = False
    resample: Resampling = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.resample == "down":
            x = downsample2x(x)
        shape = (1, 1, x.shape[-1], self.features)
        y = conv_pointwise(x, self.reparam.kernel(self, shape))
        if self.use_bias:
            y = add_bias(y, self.param("bias", constant(0), (self.features,)))
        return upsample2x(y) if self.resample == "up" else y

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        convolved, resampling = pixels_of(x), Cost()
        if self.resample == "down":
            convolved //= 4
            resampling = Cost(filter=16 * convolved * x.shape[-1])
        if self.resample == "up":
            # The reference stuffs zeros by multiplying repeated pixels with a mask.
            mask = Cost(elementwise=size_of(out))
            resampling = upsampling_cost(size_of(out)) + mask
        return Cost(convolved * x.shape[-1] * self.features) + resampling


class NoiseInjection(nn.Module):
    """Add one channel of noise to all, times a learned strength (initially zero)."""

    resolution: int

    @nn.compact
    def __call__(self, x: jax.Array, noise: LayerNoise) -> jax.Array:
        strength = self.param("strength", constant(0), ())
        shape = (self.resolution, self.resolution)
        if self.is_initializing():
            key = self.make_rng("params")
            self.variable("stats", "noise", normal, key, shape)
        if isinstance(noise, str):
            if noise == "none":
                return x
            stored = self.get_variable("stats", "noise")
            noise = tile_noise(stored, *x.shape[1:3])[None, :, :, None]
        return x + spread_like(strength * noise, x)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        # Times the strength, one channel; the sum, all of them.
        return Cost(elementwise=pixels_of(out) + size_of(out))


class SeparableConv(nn.Module):
    """Depthwise 3x3 and pointwise 1x1, each activated (MI-GAN, section 3.1).

    `noise_resolution` is the nominal resolution of the noise added before the second
    activation, or None for a layer without noise.
    """

    features: int
    reparam: Reparam
    resample: Resampling = None
    noise_resolution: int | None = None
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, noise: LayerNoise = "none") -> jax.Array:
        x = lrelu_agc(DepthwiseConv(self.reparam, name="depthwise")(x), self.gain)
        x = PointwiseConv(
            self.features, self.reparam, resample=self.resample, name="pointwise"
        )(x)
        if self.noise_resolution is not None:
            x = NoiseInjection(self.noise_resolution, name="noise")(x, noise)
        return lrelu_agc(x, self.gain)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        x, *_ = args
        return activation_cost(x) + activation_cost(out)


class NormalisedConv(nn.Module):
    """1x1 convolution of the generator's input: one weight, normalised unless fused."""

    features: int
    fused: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, 1, x.shape[-1], self.features)
        weight = self.param("weight", normal, shape)
        y = conv_pointwise(x, weight if self.fused else normalise_kernel(weight))
        return add_bias(y, self.param("bias", constant(0), (self.features,)))

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        # With the activation, which follows wherever this layer is used.
        return Cost(x.shape[-1] * size_of(out)) + activation_cost(out)


class Dense(nn.Module):
    """Fully connected layer with equalised learning rate (Karras et al. 2018)."""

    features: int
    learning_rate_multiplier: float = 1.0
    bias_init: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in, multiplier = x.shape[-1], self.learning_rate_multiplier
        weight = self.param(
            "weight", lambda *args: normal(*args) / multiplier, (fan_in, self.features)
        )
        bias = self.param("bias", constant(self.bias_init), (self.features,))
        kernel = weight[None, None] * (multiplier / math.sqrt(fan_in))
        y = conv_pointwise(x[:, None, None], kernel)[:, 0, 0]
        return add_bias(y, bias * multiplier)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        return Cost(size_of(x) * self.features)


class EqualisedConv(nn.Module):
    """Dense convolution with equalised learning rate, as StyleGAN2's encoders use it.

    Down-sampling filters first, then convolves with stride 2 (1x1: filter and decimate
    in one). No activation.
    """

    features: int
    size: int = 3
    down: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        scale = 1 / math.sqrt(math.prod(shape[:3]))
        weight = self.param("weight", normal, shape) * scale
        if self.size == 1:
            y = conv_pointwise(downsample2x(x) if self.down else x, weight)
        elif self.down:
            y = conv(fir_filter(x, padding=2), weight, padding=0, strides=2)
        else:
            y = conv(x, weight, padding=self.size // 2)
        if self.use_bias:
            y = add_bias(y, self.param("bias", constant(0), (self.features,)))
        return y

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        cost = Cost(self.size**2 * x.shape[-1] * size_of(out))
        if self.down:
            _, h, w, c = x.shape
            filtered = (h + 1) * (w + 1) if self.size == 3 else h * w // 4
            cost += Cost(filter=16 * filtered * c)
        # All but the residual skips, which have no bias, are activated.
        return cost + (activation_cost(out) if self.use_bias else Cost())


def run_block(
    block: nn.Module, remat: bool, *inputs: jax.Array, **constants: Any
) -> Any:
    """Run one level of a network, its images split over devices where there are some.

    With `remat` its activations are not kept for the backward pass, but computed again.
    """
    inputs = tuple(split_images(x) if x.ndim == 4 else x for x in inputs)
    if not remat:
        return block(*inputs, **constants)
    again = nn.remat(lambda block, *inputs: block(*inputs, **constants))
    return again(block, *inputs)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Add one value per channel to the last axis."""
    return x + spread_like(bias.reshape((1,) * (x.ndim - 1) + (-1,)), x)


def flatten_channels_first(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, C * H * W], the order of the released dense weights."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def add_to_image(image: jax.Array | None, rgb: jax.Array) -> jax.Array:
    """Skip connection of the output: the image so far, doubled, plus this level's."""
    return rgb if image is None else upsample2x(image) + at_least_float32(rgb)
