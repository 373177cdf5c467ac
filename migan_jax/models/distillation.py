"""Distillation-guided inpainting (Suin et al., ICCV 2021): networks and meta networks.

An auxiliary autoencoder sees the whole image; its features guide the encoder and the
attention of the inpainting network (sections 3.1 and 3.3). Both have three levels. A
completion block fills the holes of each level of the encoder with an adaptive
convolution (section 3.2). In the decoder, the output of another one is fused with that
of attention. Meta networks weigh the guidance (section 3.4). Images are in [0, 1],
holes are 1, and so is a masked image in its hole.

There is no public code, and the layer table of the paper is in a supplement that we
have not seen. The one here is ours; it has the paper's 13 M parameters. Convolutions
reflect edges, and there is no normalisation.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from migan_jax.models.costs import Cost, num_elements, num_pixels
from migan_jax.models.layers import (
    Initial,
    PaddedConv,
    PlainPointwise,
    add_bias,
    constant,
    make_run,
)
from migan_jax.models.spectral import SpectralConv
from migan_jax.ops.activation import NEGATIVE_SLOPE
from migan_jax.ops.adaptive_conv import adaptive_conv
from migan_jax.ops.attention import attend
from migan_jax.ops.conv import conv_dense, conv_pointwise
from migan_jax.ops.edges import pad_reflected
from migan_jax.ops.partition import split_images
from migan_jax.ops.precision import at_least_float32, compute_dtype

LevelHole = Literal["any", "nearest"]
AttentionOutput = Literal["residual", "alone"]

LEVELS = 3
WIDTHS = 2, 4, 4  # of the levels' features, relative to `channels`
BLOCKS = 1, 2, 4  # residual blocks of the encoder's levels; the decoder's have one


class Attention(NamedTuple):
    """What a decoder level's attention is computed from."""

    features: jax.Array
    queries: jax.Array
    keys: jax.Array  # of fewer pixels at the largest level


class GuidedFeatures(NamedTuple):
    """Features of an inpainting or auxiliary network, from the largest level on."""

    encoder: tuple[jax.Array, ...]
    attention: tuple[Attention, ...]  # of the decoder's levels, if it attends


class DistillationGenerator(nn.Module):
    """Complete images: concat(image, white in the hole; hole), [N, H, W, 4].

    Returns the output [N, H, W, 3] and its features.

    Attributes:
      completes: whether the encoder has completion blocks.
      attends: whether the decoder has attention.
      fuses: whether it fuses attention with adaptive convolutions.
      matched: whether plain residual blocks replace all of these, with as many
        parameters.
      kernel_size: of adaptive convolutions.
      level_hole: a pixel of a level is in the hole if "any" of its pixels is, or if the
        "nearest" is.
      attention_output: what a level without fusion adds attention to, or replaces.
      pooled_keys: pixels per key and axis in the attention of the largest level.
      initial: distribution of the initial kernels.
    """

    resolution: int = 256  # that it is trained at; H and W are any multiples of stride
    channels: int = 64  # of the first layer
    completes: bool = True
    attends: bool = True
    fuses: bool = True
    matched: bool = False
    kernel_size: int = 3
    level_hole: LevelHole = "any"
    attention_output: AttentionOutput = "residual"
    pooled_keys: int = 4
    initial: Initial = "normal"
    dtype: DTypeLike | None = None  # compute dtype; None: the input's
    remat: bool = False  # recompute activations: less memory, a third more time
    stride: ClassVar = 2**LEVELS  # input pixels per pixel of the lowest level

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        return [_image_shape(self.resolution, 4)]

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, GuidedFeatures]:
        _check_size(x, 4, self.stride)
        settings = {
            "channels": self.channels,
            "initial": self.initial,
            "remat": self.remat,
        }
        hole = at_least_float32(x[..., 3:])
        x = x.astype(compute_dtype(self.dtype, x))
        complete = None
        if self.completes:
            complete = CompletionBlocks(
                LEVELS, self.channels, self.kernel_size, self.initial, name="completion"
            )
        encoder = Encoder(**settings, name="encoder")
        levels = encoder(x, hole, complete, self.level_hole)
        decoder = AttentiveDecoder(
            **settings,
            attends=self.attends,
            output=self.attention_output,
            pooled_keys=self.pooled_keys,
            kernel_size=self.kernel_size if self.fuses else 0,
            matched=self.matched,
            name="decoder",
        )
        output, attention = decoder(levels[-1])
        return output, GuidedFeatures(tuple(levels), tuple(attention))


class DistillationAuxiliary(nn.Module):
    """The auxiliary autoencoder: images [N, H, W, 3], returned with their features.

    Its decoder adds attention times a learned scalar, which starts at 0: so it first
    trains as a plain autoencoder.
    """

    resolution: int = 256
    channels: int = 64
    attends: bool = True
    pooled_keys: int = 4
    initial: Initial = "normal"
    dtype: DTypeLike | None = None
    remat: bool = False
    stride: ClassVar = 2**LEVELS

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        return [_image_shape(self.resolution, 3)]

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, GuidedFeatures]:
        _check_size(x, 3, self.stride)
        settings = {
            "channels": self.channels,
            "initial": self.initial,
            "remat": self.remat,
        }
        x = x.astype(compute_dtype(self.dtype, x))
        levels = Encoder(**settings, name="encoder")(x)
        decoder = AttentiveDecoder(
            **settings,
            attends=self.attends,
            output="gated",
            pooled_keys=self.pooled_keys,
            name="decoder",
        )
        output, attention = decoder(levels[-1])
        return output, GuidedFeatures(tuple(levels), tuple(attention))


def _image_shape(resolution: int, channels: int) -> jax.ShapeDtypeStruct:
    shape = 1, resolution, resolution, channels
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _check_size(x: jax.Array, channels: int, stride: int) -> None:
    if (
        x.ndim != 4
        or x.shape[3] != channels
        or x.shape[1] % stride
        or (x.shape[2] % stride)
    ):
        raise ValueError(
            f"The network takes [N, H, W, {channels}] with H and W divisible by "
            f"{stride}, not {list(x.shape)}."
        )


def pool_hole(hole: jax.Array, rows: int, how: LevelHole) -> jax.Array:
    """Return the hole [N, H, W, 1] at a level with this number of rows."""
    factor = hole.shape[1] // rows
    if how == "nearest":
        return hole[:, ::factor, ::factor]
    return nn.max_pool(hole, (factor, factor), (factor, factor))


class Encoder(nn.Module):
    """From the image to an eighth of its size; returns the features of each level."""

    channels: int
    initial: Initial
    remat: bool

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        hole: jax.Array | None = None,
        complete: "CompletionBlocks | None" = None,
        level_hole: LevelHole = "any",
    ) -> list[jax.Array]:
        run, settings = make_run(self.remat), _reflecting(self.initial)
        x = run(PaddedConv(self.channels, 7, **settings, name="stem"), x)
        levels = []
        for level, (width, blocks) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
            features = width * self.channels
            name = f"down{level + 1}"
            x = run(PaddedConv(features, 4, 2, **settings, name=name), x)
            for block in range(1, blocks + 1):
                name = f"block{level + 1}_{block}"
                x = run(ResidualPair(features, self.initial, name=name), x)
            if complete is not None:
                x = complete(x, pool_hole(hole, x.shape[1], level_hole), level)
            levels.append(split_images(x))
        return levels


class AttentiveDecoder(nn.Module):
    """From the lowest level to the image; also returns each level's attention."""

    channels: int
    initial: Initial
    remat: bool
    attends: bool
    output: AttentionOutput | Literal["gated"]
    pooled_keys: int
    kernel_size: int = 0  # of adaptive convolutions that are fused with attention
    matched: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, list[Attention]]:
        run, settings = make_run(self.remat), _reflecting(self.initial)
        attention = []
        for level in reversed(range(LEVELS)):
            features = WIDTHS[level] * self.channels
            if level < LEVELS - 1:
                name = f"up{level + 1}"
                x = run(PaddedConv(features, **settings, name=name), enlarge(x))
            name = f"block{level + 1}"
            x = run(ResidualPair(features, self.initial, name=name), x)
            if self.matched:
                name = f"extra{level + 1}"
                narrow = self.channels // 2
                x = run(ResidualPair(narrow, self.initial, name=name), x)
            if self.attends:
                layer = FusedAttention(
                    self.output,
                    self.pooled_keys if level == 0 else 1,
                    self.kernel_size,
                    self.initial,
                    name=f"attention{level + 1}",
                )
                x, inputs = layer(split_images(x))
                attention.insert(0, inputs)
        x = run(PaddedConv(self.channels, **settings, name="head"), enlarge(x))
        # Outputs are computed in float32, not rounded to half precision.
        image = PaddedConv(3, 7, activate=False, **settings, name="out")
        return (jnp.tanh(run(image, at_least_float32(x))) + 1) / 2, attention


def _reflecting(initial: Initial) -> dict[str, Any]:
    return {"reflects": True, "initial": initial}


def _small(initial: Initial) -> Initial:
    """Return the initialisation of layers that should change little at first."""
    return "small_he" if initial == "he" else initial


def enlarge(x: jax.Array) -> jax.Array:
    """Repeat each pixel twice on both axes."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class ResidualPair(nn.Module):
    """Two 3x3 convolutions with leaky ReLU between them, and a sum."""

    width: int  # between the convolutions
    initial: Initial

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = PaddedConv(self.width, **_reflecting(self.initial), name="conv1")(x)
        # He's deviation would double the variance in each block.
        settings = {"activate": False, **_reflecting(_small(self.initial))}
        return x + PaddedConv(x.shape[-1], **settings, name="conv2")(y)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        """The sum."""
        return Cost(elementwise=num_elements(out))


# Adaptive convolutions.


class AdaptiveTaps(nn.Module):
    """Predict the weights and offsets of an adaptive convolution of each pixel.

    Initially, offsets are 0, and the convolution is the identity or an average.
    """

    size: int
    is_average: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        count = self.size**2

        def initial_bias(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            if self.is_average:
                return jnp.full(shape, 1 / count, jnp.float32)
            return jnp.zeros(shape, jnp.float32).at[count // 2].set(1)

        weights = ZeroConv(count, bias=initial_bias, name="weights")(x)
        offsets = ZeroConv(2 * count, name="offsets")(x)
        return weights, offsets


class ZeroConv(nn.Module):
    """3x3 or 1x1 convolution that starts from weights of 0."""

    features: int
    size: int = 3
    bias: Callable[..., jax.Array] = constant(0)  # its initialiser

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = self.size, self.size, x.shape[-1], self.features
        y = conv_dense(
            pad_reflected(x, self.size // 2), self.param("weight", constant(0), shape)
        )
        return add_bias(y, self.param("bias", self.bias, (self.features,)))

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        return Cost(self.size**2 * x.shape[-1] * num_elements(out))


class CompletionBlocks(nn.Module):
    """Fill the holes of features by an adaptive convolution, one block for each level.

    They share the layers that predict weights and offsets. Since levels differ in their
    number of channels, each has an adapter.
    """

    levels: int
    channels: int  # of the adapters
    size: int
    initial: Initial

    def setup(self) -> None:
        self.adapters = [
            PlainPointwise(self.channels, self.initial, name=f"adapter{level + 1}")
            for level in range(self.levels)
        ]
        self.taps = AdaptiveTaps(self.size, is_average=True, name="taps")

    def __call__(self, x: jax.Array, hole: jax.Array, level: int) -> jax.Array:
        """Complete [N, h, w, C], given the hole [N, h, w, 1] of its level."""
        x = split_images(x)
        adapted = nn.leaky_relu(self.adapters[level](x), NEGATIVE_SLOPE)
        completion = adaptive_conv(x, *self.taps(adapted))
        return x + completion * hole.astype(x.dtype)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        return adaptive_cost(self.size, out) + Cost(elementwise=2 * num_elements(out))


def adaptive_cost(size: int, out: jax.Array) -> Cost:
    """Return the cost of an adaptive convolution: four pixels for each tap."""
    return Cost(4 * size**2 * num_elements(out))


class FusedAttention(nn.Module):
    """Attention of a decoder level, fused with an adaptive convolution (PGL).

    Equation 7 normalises a pixel's scores over the pixels that attend to it. With
    equation 8 that gives no averages, so we take it for a misprint, and normalise over
    those that it attends to.

    Without an adaptive convolution (`size` 0) it returns attention "alone", or adds it:
    as it is ("residual"), or times a learned scalar ("gated").
    """

    output: AttentionOutput | Literal["gated"]
    pooling: int  # pixels per key and axis
    size: int
    initial: Initial

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, Attention]:
        # He's deviation would make each pixel attend to a random one.
        small = _small(self.initial)
        query, key = (
            PlainPointwise(x.shape[-1] // 2, small, name=name)
            for name in ("query", "key")
        )
        window = self.pooling, self.pooling
        values = nn.avg_pool(x, window, window) if self.pooling > 1 else x
        inputs = Attention(x, query(x), key(values))
        attended = attend(inputs.queries, inputs.keys, values)
        if self.size:
            adapted = adaptive_conv(
                x, *AdaptiveTaps(self.size, is_average=False, name="taps")(x)
            )
            # Little attention at first, ours: averages of all pixels say little.
            share = ZeroConv(1, bias=constant(-3), name="share")
            weight = nn.sigmoid(at_least_float32(share(x))).astype(x.dtype)
            return attended * weight + adapted * (1 - weight), inputs
        if self.output == "gated":
            attended *= self.param("gate", constant(0), ()).astype(x.dtype)
        return attended if self.output == "alone" else x + attended, inputs

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        """Scores, their products with the values, and the adaptive convolution."""
        pixels, channels = num_pixels(out), out.shape[-1]
        pairs = pixels * pixels // self.pooling**2
        attention = Cost(pairs * (channels // 2 + channels))
        sums = Cost(elementwise=2 * num_elements(out))
        return attention + sums + adaptive_cost(self.size, out)


# Networks that are only used in training.


class Projections(nn.Module):
    """From each level's features to the next one's, for self-distillation (f_l)."""

    channels: tuple[int, ...]  # of all levels
    initial: Initial = "he"

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of the features that it projects."""
        return [_image_shape(8, channels) for channels in self.channels[:-1]]

    @nn.compact
    def __call__(self, *features: jax.Array) -> list[jax.Array]:
        settings = {"stride": 2, "activate": False, **_reflecting(self.initial)}
        return [
            PaddedConv(channels, **settings, name=f"level{level}")(x)
            for level, (x, channels) in enumerate(
                zip(features, self.channels[1:], strict=True), 1
            )
        ]


class Guidance(NamedTuple):
    """What the meta networks choose, for each level that is guided."""

    targets: list[jax.Array]  # gamma of the auxiliary network's features
    cross_weights: list[jax.Array]  # rho, [N, C]: of their channels
    self_weights: list[jax.Array]  # phi, [N, C]: of the deeper levels' channels
    importance: list[jax.Array]  # t, [N, h, w, 1]: of pixels' attention


class MetaNetworks(nn.Module):
    """Choose what is worth learning (section 3.4).

    Takes the auxiliary network's encoder features, the deeper features of the
    inpainting network's encoder, and the auxiliary network's decoder features.
    Initially, targets are the features, and all weights alike.
    """

    cross: tuple[
        int, ...
    ] = ()  # channels of each level; none without that distillation
    deeper: tuple[int, ...] = ()
    decoder: tuple[int, ...] = ()

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's features."""
        channels = *self.cross, *self.deeper, *self.decoder
        return [_image_shape(8, count) for count in channels]

    @nn.compact
    def __call__(self, *features: jax.Array) -> Guidance:
        teacher = features[: len(self.cross)]
        deeper = features[len(self.cross) : len(self.cross) + len(self.deeper)]
        decoder = features[len(self.cross) + len(self.deeper) :]
        return Guidance(
            [IdentityConv(name=f"gamma{i}")(x) for i, x in enumerate(teacher, 1)],
            [ChannelWeights(name=f"rho{i}")(x) for i, x in enumerate(teacher, 1)],
            [ChannelWeights(name=f"phi{i}")(x) for i, x in enumerate(deeper, 1)],
            [
                nn.sigmoid(at_least_float32(ZeroConv(1, 1, name=f"t{i}")(x)))
                for i, x in enumerate(decoder, 1)
            ],
        )


class IdentityConv(nn.Module):
    """1x1 convolution that starts as the identity."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        weight = self.param(
            "weight", lambda key, shape: jnp.eye(c)[None, None], (1, 1, c, c)
        )
        y = conv_pointwise(x, weight)
        return add_bias(y, self.param("bias", constant(0), (c,)))

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        return Cost(out.shape[-1] * num_elements(out))


class ChannelWeights(nn.Module):
    """Weights of channels from their means: at least 0, with a sum of 1."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        means = jnp.mean(at_least_float32(x), axis=(1, 2), keepdims=True)
        return nn.softmax(ZeroConv(x.shape[-1], 1, name="dense")(means)[:, 0, 0])


class DistillationDiscriminator(nn.Module):
    """Score patches of 70 pixels (RN's PatchGAN): [N, H, W, 3] -> [N, h, w, 1]."""

    resolution: int = 256
    channels: int = 64
    dtype: DTypeLike | None = None

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        return [_image_shape(self.resolution, 3)]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.channels
        x = split_images(x.astype(compute_dtype(self.dtype, x)))
        layers = (c, 2), (2 * c, 2), (4 * c, 2), (8 * c, 1), (1, 1)
        for index, (features, stride) in enumerate(layers, 1):
            if index > 1:
                x = nn.leaky_relu(x, NEGATIVE_SLOPE)
            x = SpectralConv(
                features, 4, stride, padding=1, use_bias=False, name=f"conv{index}"
            )(x)
        return at_least_float32(x)
