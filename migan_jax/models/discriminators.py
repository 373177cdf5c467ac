"""Discriminators of MI-GAN (Table S.5) and of Co-Mod-GAN (StyleGAN2's, residual).

Both look at concat(mask - 0.5, image), [N, R, R, 4], and return logits [N, 1].
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from migan_jax.models.channels import LOWEST_RESOLUTION, channels_at, levels
from migan_jax.models.costs import Cost, size_of
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

# Both branches of a residual block, so that their sum keeps its variance.
BRANCH_GAIN = math.sqrt(0.5)


def _input_shape(resolution: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, resolution, resolution, 4), jnp.float32)


def _check_input(x: jax.Array, resolution: int) -> None:
    if x.shape[1:] != (resolution, resolution, 4):
        raise ValueError(
            f"This discriminator takes [N, {resolution}, {resolution}, 4], "
            f"not {tuple(x.shape)}."
        )


class MIGANDiscriminator(nn.Module):
    """Residual discriminator of separable, re-parametrised convolutions."""

    resolution: int = 256
    channel_base: int = 32768
    channel_max: int = 512
    reparam: Reparam = Reparam()
    dtype: DTypeLike | None = None  # compute dtype; None: that of the input
    remat: bool = False  # less memory in training, a third more time
    can_be_fused: ClassVar = False  # it is used in training only

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        return [_input_shape(self.resolution)]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _check_input(x, self.resolution)
        x = x.astype(compute_dtype(self.dtype, x))
        for r in reversed(levels(self.resolution)[1:]):
            block = SeparableResidualBlock(
                channels=channels_at(r, self.channel_base, self.channel_max),
                out_channels=channels_at(r // 2, self.channel_base, self.channel_max),
                from_rgb=r == self.resolution,
                reparam=self.reparam,
                name=f"b{r}",
            )
            x = run_block(block, self.remat, x)
        return SeparableHead(self.reparam, name=f"b{LOWEST_RESOLUTION}")(x)


class SeparableResidualBlock(nn.Module):
    """Two separable convolutions beside a 1x1 skip, at half the size."""

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
        return Cost(elementwise=2 * size_of(out))


class SeparableHead(nn.Module):
    """The 4x4 level: batch statistics, then two dense layers."""

    reparam: Reparam

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        x = append_minibatch_std(x)
        x = SeparableConv(channels, self.reparam, name="conv")(x)
        x = flatten_channels_first(x)
        x = lrelu_agc(Dense(channels, name="fc")(x))
        return Dense(1, name="out")(at_least_float32(x))


class CoModGANDiscriminator(nn.Module):
    """StyleGAN2's residual discriminator with a fourth input channel."""

    resolution: int = 256
    channel_base: int = 32768
    channel_max: int = 512
    dtype: DTypeLike | None = None  # compute dtype; None: that of the input
    remat: bool = False  # less memory in training, a third more time

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        return [_input_shape(self.resolution)]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _check_input(x, self.resolution)
        x = x.astype(compute_dtype(self.dtype, x))
        for r in reversed(levels(self.resolution)[1:]):
            block = ResidualBlock(
                channels=channels_at(r, self.channel_base, self.channel_max),
                out_channels=channels_at(r // 2, self.channel_base, self.channel_max),
                from_rgb=r == self.resolution,
                name=f"b{r}",
            )
            x = run_block(block, self.remat, x)
        return Head(name=f"b{LOWEST_RESOLUTION}")(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 skip, at half the size."""

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
        return Cost(elementwise=2 * size_of(out))


class Head(nn.Module):
    """The 4x4 level: batch statistics, a convolution, two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        x = append_minibatch_std(x)
        x = lrelu_agc(EqualisedConv(channels, name="conv")(x))
        x = flatten_channels_first(x)
        x = lrelu_agc(Dense(channels, name="fc")(x))
        return Dense(1, name="out")(at_least_float32(x))
