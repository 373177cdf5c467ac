"""MI-GAN's generator (Sargsyan et al., ICCV 2023, section 3 and Table S.4)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from migan_jax.models.channels import LOWEST_RESOLUTION, channels_at, levels
from migan_jax.models.costs import Cost, pixels_of, size_of, upsampling_cost
from migan_jax.models.layers import (
    NormalisedConv,
    PointwiseConv,
    Reparam,
    SeparableConv,
    add_to_image,
    run_block,
)
from migan_jax.models.noise import Noise, layer_noise
from migan_jax.ops.activation import lrelu_agc
from migan_jax.ops.precision import at_least_float32, compute_dtype


class Generator(nn.Module):
    """Fill the hole of a masked image in one pass.

    Fully convolutional: any height and width divisible by `stride`, square or not.
    Levels are named by their resolution when the input is `resolution` pixels wide.
    """

    resolution: int = 256
    channel_base: int = 32768
    channel_max: int = 512
    reparam: Reparam = Reparam()
    dtype: DTypeLike | None = None  # compute dtype; None: that of the input
    remat: bool = False  # less memory in training, a third more time

    can_be_fused: ClassVar = True  # kernels normalised once, as in released files

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        shape = 1, self.resolution, self.resolution, 4
        return [jax.ShapeDtypeStruct(shape, jnp.float32)]

    @property
    def stride(self) -> int:
        """Input pixels per pixel of the innermost level, per axis."""
        return self.resolution // LOWEST_RESOLUTION

    @nn.nowrap
    def noise_shapes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Height and width of every noise layer, for `noise.random_noise`."""
        shapes = {}
        for r in levels(self.resolution)[1:]:
            scale = self.resolution // r
            for layer in ("conv1", "conv2"):
                shapes[f"b{r}/{layer}"] = (height // scale, width // scale)
        return shapes

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: Noise = "stored"
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Complete `x` = concat(mask - 0.5, image * mask), mask 1 = known.

        Returns the picture [N, H, W, 3] (linear, not clipped) and every level's own
        contribution to it, {resolution: rgb}.
        """
        _, h, w, channels = x.shape
        if channels != 4 or h % self.stride or w % self.stride:
            raise ValueError(
                f"The generator takes [N, H, W, 4] with H and W divisible by "
                f"{self.stride}, not {tuple(x.shape)}."
            )
        sizes = dict(
            resolution=self.resolution,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            reparam=self.reparam,
            remat=self.remat,
        )
        x = x.astype(compute_dtype(self.dtype, x))
        features = Encoder(**sizes, name="encoder")(x)
        return Synthesis(**sizes, name="synthesis")(features, noise)


class Encoder(nn.Module):
    """Features of every level, and the innermost map that synthesis starts from."""

    resolution: int
    channel_base: int
    channel_max: int
    reparam: Reparam
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[int | str, Any]:
        features = {}
        for r in reversed(levels(self.resolution)):
            lowest = r == LOWEST_RESOLUTION
            below = r if lowest else r // 2
            block = EncoderBlock(
                channels=channels_at(r, self.channel_base, self.channel_max),
                out_channels=channels_at(below, self.channel_base, self.channel_max),
                from_rgb=r == self.resolution,
                down=not lowest,
                reparam=self.reparam,
                name=f"b{r}",
            )
            x, features[r] = run_block(block, self.remat, x)
        return {"innermost": x, **features}


class EncoderBlock(nn.Module):
    """One level of the encoder: its skip feature, and the input of the next level."""

    channels: int
    out_channels: int
    from_rgb: bool
    down: bool
    reparam: Reparam

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.from_rgb:
            fused = self.reparam.form == "fused"
            x = lrelu_agc(NormalisedConv(self.channels, fused, name="fromrgb")(x))
        feature = SeparableConv(self.channels, self.reparam, name="conv1")(x)
        x = SeparableConv(
            self.out_channels,
            self.reparam,
            resample="down" if self.down else None,
            name="conv2",
        )(feature)
        return x, feature


class Synthesis(nn.Module):
    """The decoder: a picture that every level adds to."""

    resolution: int
    channel_base: int
    channel_max: int
    reparam: Reparam
    remat: bool

    @nn.compact
    def __call__(
        self, features: dict[int | str, Any], noise: Noise
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        x, image, pyramid = features["innermost"], None, {}
        for r in levels(self.resolution):
            block = SynthesisBlock(
                channels=channels_at(r, self.channel_base, self.channel_max),
                resolution=r,
                reparam=self.reparam,
                name=f"b{r}",
            )
            inputs = x, features[r]
            x, pyramid[r] = run_block(block, self.remat, *inputs, noise=noise)
            image = add_to_image(image, pyramid[r])
        return image, pyramid


class SynthesisBlock(nn.Module):
    """One level of the decoder; the lowest neither up-samples nor takes noise."""

    channels: int
    resolution: int
    reparam: Reparam

    @nn.compact
    def __call__(
        self, x: jax.Array, feature: jax.Array, noise: Noise
    ) -> tuple[jax.Array, jax.Array]:
        lowest = self.resolution == LOWEST_RESOLUTION
        first, second = (
            "none" if lowest else layer_noise(noise, f"{self.name}/{layer}")
            for layer in ("conv1", "conv2")
        )
        noise_resolution = None if lowest else self.resolution
        x = SeparableConv(
            self.channels,
            self.reparam,
            resample=None if lowest else "up",
            noise_resolution=noise_resolution,
            name="conv1",
        )(x, first)
        x = SeparableConv(
            self.channels,
            self.reparam,
            noise_resolution=noise_resolution,
            name="conv2",
        )(x + feature, second)
        to_rgb = PointwiseConv(3, self.reparam, use_bias=True, name="torgb")
        return x, to_rgb(at_least_float32(x))

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        """The encoder's feature added, and the image so far doubled and added to."""
        summed = Cost(elementwise=size_of(out))
        if self.resolution == LOWEST_RESOLUTION:
            return summed
        image = 3 * pixels_of(out)
        # The sum, and the mask with which the reference stuffs zeros.
        return summed + upsampling_cost(image) + Cost(elementwise=2 * image)
