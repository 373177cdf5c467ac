"""Discriminators of MI-GAN (Table S.5) and of Co-Mod-GAN (StyleGAN2's, residual).

Both take concat(mask - 0.5, image), [N, R, R, 4], and return logits [N, 1]. Samples of
several batches may take turns, as fake and real images do; they are not compared.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from migan_jax.models.channels import LOWEST_RESOLUTION, channels_at, levels
from migan_jax.models.costs import Cost, num_elements
from migan_jax.models.layers import (
    Dense,
    EqualisedConv,
    PointwiseConv,
    Reparam,
    SeparableConv,
    flatten_channels_first,
    run_block,
)
from migan_jax.ops.activation import lrelu_agc
from migan_jax.ops.minibatch_std import append_minibatch_std
from migan_jax.ops.precision import at_least_float32, compute_dtype

# Scales both branches of a residual block, so that their sum keeps its variance.
BRANCH_GAIN = math.sqrt(0.5)


def _input_shape(resolution: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, resolution, resolution, 4), jnp.float32)


def _discriminate(
    network: nn.Module,
    x: jax.Array,
    make_block: Callable[..., nn.Module],
    make_head: Callable[..., nn.Module],
    batches: int,
) -> jax.Array:
    """Run a block per level, from the largest down, and the head: logits [N, 1]."""
    size = network.resolution
    if x.shape[1:] != (size, size, 4):
        raise ValueError(
            f"This discriminator takes [N, {size}, {size}, 4], not {tuple(x.shape)}."
        )
    x = x.astype(compute_dtype(network.dtype, x))
    for r in reversed(levels(size)[1:]):
        block = make_block(
            channels=channels_at(r, network.channel_base, network.channel_max),
            out_channels=channels_at(r // 2, network.channel_base, network.channel_max),
            from_rgb=r == size,
            name=f"b{r}",
        )
        x = run_block(block, network.remat, x)
    return make_head(name=f"b{LOWEST_RESOLUTION}")(x, batches)


class MIGANDiscriminator(nn.Module):
    """Residual discriminator of separable, re-parametrised convolutions."""

    resolution: int = 256
    channel_base: int = 32768
    channel_max: int = 512
    reparam: Reparam = Reparam()
    dtype: DTypeLike | None = None  # compute dtype; None: the input's
    remat: bool = False  # recompute activations: less memory, a third more time
    can_be_fused: ClassVar = False  # used in training only

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        return [_input_shape(self.resolution)]

    @nn.compact
    def __call__(self, x: jax.Array, batches: int = 1) -> jax.Array:
        block, head = (
            functools.partial(module, reparam=self.reparam)
            for module in (SeparableResidualBlock, SeparableHead)
        )
        return _discriminate(self, x, block, head, batches)


class SeparableResidualBlock(nn.Module):
    """Two separable convolutions and a 1x1 skip; halves height and width."""

    channels: int
    out_channels: int
    from_rgb: bool
    reparam: Reparam

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.from_rgb:
            from_rgb = PointwiseConv(
                self.channels, self.reparam, use_bias=True, name="fromrgb"
            )
            x = lrelu_agc(from_rgb(x))
        skip = PointwiseConv(
            self.out_channels, self.reparam, resample="down", name="skip"
        )(x)
        x = SeparableConv(self.channels, self.reparam, name="conv1")(x)
        x = SeparableConv(
            self.out_channels,
            self.reparam,
            resample="down",
            gain=BRANCH_GAIN,
            name="conv2",
        )(x)
        return x + skip * BRANCH_GAIN

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        """The skip's gain and the sum."""
        return Cost(elementwise=2 * num_elements(out))


class SeparableHead(nn.Module):
    """The 4x4 level: minibatch standard deviation, convolution, two dense layers."""

    reparam: Reparam

    @nn.compact
    def __call__(self, x: jax.Array, batches: int) -> jax.Array:
        channels = x.shape[-1]
        x = append_minibatch_std(x, batches)
        x = SeparableConv(channels, self.reparam, name="conv")(x)
        x = flatten_channels_first(x)
        x = lrelu_agc(Dense(channels, name="fc")(x))
        return Dense(1, name="out")(at_least_float32(x))


class CoModGANDiscriminator(nn.Module):
    """StyleGAN2's residual discriminator with the mask as a fourth input channel."""

    resolution: int = 256
    channel_base: int = 32768
    channel_max: int = 512
    dtype: DTypeLike | None = None  # compute dtype; None: the input's
    remat: bool = False  # recompute activations: less memory, a third more time

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        return [_input_shape(self.resolution)]

    @nn.compact
    def __call__(self, x: jax.Array, batches: int = 1) -> jax.Array:
        return _discriminate(self, x, ResidualBlock, Head, batches)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a 1x1 skip; halves height and width."""

    channels: int
    out_channels: int
    from_rgb: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.from_rgb:
            x = lrelu_agc(EqualisedConv(self.channels, size=1, name="fromrgb")(x))
        skip = EqualisedConv(
            self.out_channels, size=1, down=True, use_bias=False, name="skip"
        )(x)
        x = lrelu_agc(EqualisedConv(self.channels, name="conv0")(x))
        down = EqualisedConv(self.out_channels, down=True, name="conv1")
        return lrelu_agc(down(x), BRANCH_GAIN) + skip * BRANCH_GAIN

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        """The skip's gain and the sum."""
        return Cost(elementwise=2 * num_elements(out))


class Head(nn.Module):
    """The 4x4 level: minibatch standard deviation, convolution, two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array, batches: int) -> jax.Array:
        channels = x.shape[-1]
        x = append_minibatch_std(x, batches)
        x = lrelu_agc(EqualisedConv(channels, name="conv")(x))
        x = flatten_channels_first(x)
        x = lrelu_agc(Dense(channels, name="fc")(x))
        return Dense(1, name="out")(at_least_float32(x))
