"""Layers shared by several networks.

Layers compute in the dtype of their input; parameters are created in float32.
Converters, the optimiser and the EMA depend on parameter names:
  kernel   a re-parametrised kernel stored as one array (collapsed); in the fused form,
           the normalised kernel
  kernels  the same kernel expanded to n kernels, [n, kh, kw, I, O]
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
    num_elements,
    num_pixels,
    upsampling_cost,
)
from migan_jax.models.noise import LayerNoise, tile_noise
from migan_jax.ops.activation import NEGATIVE_SLOPE, lrelu_agc
from migan_jax.ops.conv import (
    conv3x3,
    conv_dense,
    conv_depthwise,
    conv_down,
    conv_pointwise,
    conv_to_float32,
    join_kernels,
    normalise_kernel,
)
from migan_jax.ops.edges import pad_edges, pad_reflected
from migan_jax.ops.partition import (
    image_size,
    in_strips,
    like_feature_maps,
    split_images,
)
from migan_jax.ops.precision import at_least_float32, broadcast_like
from migan_jax.ops.resample import downsample2x, upsample2x

Resampling = Literal["up", "down"] | None


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Initialise a weight from N(0, 1); layers normalise or scale it."""
    return jax.random.normal(key, shape, jnp.float32)


def constant(value: float) -> Callable[..., jax.Array]:
    """Return an initialiser for biases and noise strengths."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Reparam:
    """How re-parametrised convolutions store their kernels (MI-GAN, section 3.2).

    Each layer has `kernels` kernels. Their sum is scaled by 1 / sqrt(kernels) and
    normalised per output channel. Adam only depends on the sum, so "collapsed" stores
    just that. "expanded" stores all kernels, as the reference does in training. "fused"
    stores the normalised result, as the released networks do.
    """

    form: Literal["collapsed", "expanded", "fused"] = "collapsed"
    kernels: int = 9

    def kernel(self, layer: nn.Module, shape: tuple[int, int, int, int]) -> jax.Array:
        """Declare the layer's kernel parameter; return the kernel to convolve with."""
        if self.form == "expanded":
            kernels = layer.param("kernels", normal, (self.kernels, *shape))
            return normalise_kernel(join_kernels(kernels))
        if self.form == "collapsed":
            return normalise_kernel(layer.param("kernel", normal, shape))
        return layer.param("kernel", _normalised_init, shape)


def _normalised_init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
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
        return Cost(9 * num_elements(out))


class PointwiseConv(nn.Module):
    """1x1 convolution, after down-sampling or before up-sampling."""

    features: int
    reparam: Reparam
    use_bias: bool = False
    resample: Resampling = None
    to_float32: bool = False  # from half precision, for few features

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.resample == "down":
            x = downsample2x(x)
        convolve = conv_to_float32 if self.to_float32 else conv_pointwise
        shape = (1, 1, x.shape[-1], self.features)
        y = convolve(x, self.reparam.kernel(self, shape))
        if self.use_bias:
            y = add_bias(y, self.param("bias", constant(0), (self.features,)))
        return upsample2x(y) if self.resample == "up" else y

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        pixels, resampling = num_pixels(x), Cost()
        if self.resample == "down":
            pixels //= 4
            resampling = Cost(filter=16 * pixels * x.shape[-1])
        if self.resample == "up":
            # The reference inserts zeros by multiplying repeated pixels with a mask.
            mask = Cost(elementwise=num_elements(out))
            resampling = upsampling_cost(num_elements(out)) + mask
        return Cost(pixels * x.shape[-1] * self.features) + resampling


class NoiseInjection(nn.Module):
    """Add one noise channel to all channels, times a learned strength (initially 0)."""

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
            noise = tile_noise(stored, *image_size(x))[None, :, :, None]
        return x + broadcast_like(strength * like_feature_maps(noise, x), x)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        # Scaling one channel by the strength, and adding it to all.
        return Cost(elementwise=num_pixels(out) + num_elements(out))


class SeparableConv(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, both activated (MI-GAN, 3.1).

    `noise_resolution` is the nominal resolution of the noise added before the second
    activation; None adds no noise.
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
    """1x1 convolution of the generator's input; normalises its weight unless fused."""

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
        # Includes the activation that always follows this layer.
        return Cost(x.shape[-1] * num_elements(out)) + activation_cost(out)


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
        return Cost(num_elements(x) * self.features)


class EqualisedConv(nn.Module):
    """Dense convolution with equalised learning rate, as in StyleGAN2's encoders.

    With `down`, it filters and then convolves with stride 2; a 1x1 convolution follows
    `downsample2x` instead. No activation.
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
            y = conv_down(x, weight)
        else:
            y = conv3x3(x, weight)
        if self.use_bias:
            y = add_bias(y, self.param("bias", constant(0), (self.features,)))
        return y

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        cost = Cost(self.size**2 * x.shape[-1] * num_elements(out))
        if self.down:
            _, h, w, c = x.shape
            filtered = (h + 1) * (w + 1) if self.size == 3 else h * w // 4
            cost += Cost(filter=16 * filtered * c)
        # An activation follows, except after residual skips, which have no bias.
        return cost + (activation_cost(out) if self.use_bias else Cost())


def run_block(
    block: nn.Module, remat: bool, *inputs: jax.Array, **constants: Any
) -> Any:
    """Run one level of a network, with its images split over devices and into strips.

    With `remat`, the backward pass recomputes its activations instead of storing them.
    A block's feature maps may be strips of rows (ops/partition.py).
    """
    inputs = tuple(split_images(x) if x.ndim == 4 else x for x in inputs)

    def run(block: nn.Module, *inputs: jax.Array) -> Any:
        return in_strips(lambda *inputs: block(*inputs, **constants), *inputs)

    return (nn.remat(run) if remat else run)(block, *inputs)


# Plain convolutions with biases (DeepGIN; distillation-guided inpainting).

Initial = Literal["small_he", "he", "normal"]


def initialise(kind: Initial) -> Callable[..., jax.Array]:
    """Return an initialiser of kernels [kh, kw, I, O] from a normal distribution.

    Its deviation is He's ("he"), a tenth of that as in ESRGAN ("small_he"), or 0.02.
    """

    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        he = math.sqrt(2 / math.prod(shape[:-1]))
        deviation = {"he": he, "small_he": 0.1 * he, "normal": 0.02}[kind]
        return deviation * jax.random.normal(key, shape, jnp.float32)

    return draw


class PaddedConv(nn.Module):
    """Convolution with bias and leaky ReLU; its padding repeats or reflects edges."""

    features: int
    size: int = 3
    stride: int = 1
    activate: bool = True
    reflects: bool = False
    initial: Initial = "small_he"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pad = pad_reflected if self.reflects else pad_edges
        x = pad(x, (self.size - 1) // 2)
        y = convolve_plain(
            self, x, self.features, self.size, self.stride, initial=self.initial
        )
        return nn.leaky_relu(y, NEGATIVE_SLOPE) if self.activate else y

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        activation = num_elements(out) if self.activate else 0
        convolution = self.size**2 * x.shape[-1] * num_elements(out)
        return Cost(convolution, elementwise=activation)


class PlainPointwise(nn.Module):
    """1x1 convolution with bias."""

    features: int
    initial: Initial = "small_he"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = 1, 1, x.shape[-1], self.features
        y = conv_pointwise(x, self.param("weight", initialise(self.initial), shape))
        return add_bias(y, self.param("bias", constant(0), (self.features,)))

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        return Cost(x.shape[-1] * num_elements(out))


def convolve_plain(
    layer: nn.Module,
    x: jax.Array,
    features: int,
    size: int,
    stride: int = 1,
    dilation: int = 1,
    initial: Initial = "small_he",
) -> jax.Array:
    """Convolve with a layer's weight and bias, without padding."""
    shape = size, size, x.shape[-1], features
    weight = layer.param("weight", initialise(initial), shape)
    y = conv_dense(x, weight, stride, dilation)
    return add_bias(y, layer.param("bias", constant(0), (features,)))


def make_run(remat: bool) -> Callable[..., jax.Array]:
    """Make a function that runs a layer, with its images split over devices."""

    def call(layer: nn.Module, *inputs: jax.Array) -> jax.Array:
        return layer(*(split_images(x) for x in inputs))

    return nn.remat(call) if remat else call


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Add one value per channel to the last axis."""
    return x + broadcast_like(bias.reshape((1,) * (x.ndim - 1) + (-1,)), x)


def flatten_channels_first(x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, C * H * W], the order of dense weights in released files."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def add_to_image(image: jax.Array | None, rgb: jax.Array) -> jax.Array:
    """Output skip connection: up-sample the image so far, add this level's to-RGB."""
    if image is None:
        return rgb
    return in_strips(upsample2x, image) + at_least_float32(rgb)
