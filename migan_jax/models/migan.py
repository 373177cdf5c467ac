"""MI-GAN's generator (Sargsyan et al., ICCV 2023, section 3 and Table S.4)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from migan_jax.models.channels import LOWEST_RESOLUTION, channels_at, levels
from migan_jax.models.costs import Cost, num_elements, num_pixels, upsampling_cost
from migan_jax.models.distillation import LEVELS, CompletionBlocks, pool_hole
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
from migan_jax.ops.precision import compute_dtype

# Of completion blocks, as in distillation-guided inpainting.
COMPLETION_CHANNELS, COMPLETION_SIZE = 64, 3


class MIGANGenerator(nn.Module):
    """Fill the hole of a masked image in one pass.

    Fully convolutional: takes any height and width divisible by `stride`.
    Levels are named by their resolution for an input of `resolution` pixels. With
    completion blocks, which the paper does not have, the outputs of the highest levels
    are completed in holes (models/distillation.py).
    """

    resolution: int = 256
    channel_base: int = 32768
    channel_max: int = 512
    reparam: Reparam = Reparam()
    completes: bool = False  # with completion blocks
    dtype: DTypeLike | None = None  # compute dtype; None: the input's
    remat: bool = False  # recompute activations: less memory, a third more time

    can_be_fused: ClassVar = True  # released files hold normalised kernels

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        shape = 1, self.resolution, self.resolution, 4
        return [jax.ShapeDtypeStruct(shape, jnp.float32)]

    @property
    def stride(self) -> int:
        """Input pixels per pixel of the lowest level, per axis."""
        return self.resolution // LOWEST_RESOLUTION

    @nn.nowrap
    def noise_shapes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Return height and width of every noise layer, for `noise.random_noise`."""
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

        Returns the image [N, H, W, 3] (not clipped) and each level's to-RGB output by
        resolution.
        """
        _, h, w, channels = x.shape
        if channels != 4 or h % self.stride or w % self.stride:
            raise ValueError(
                f"MI-GAN takes [N, H, W, 4] with H and W divisible by {self.stride}, "
                f"not {tuple(x.shape)}."
            )
        sizes = dict(
            resolution=self.resolution,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            reparam=self.reparam,
            remat=self.remat,
        )
        hole = 0.5 - x[..., :1] if self.completes else None
        x = x.astype(compute_dtype(self.dtype, x))
        features = Encoder(**sizes, name="encoder")(x, hole)
        # For guidance, which asks for them.
        self.sow("intermediates", "guided", features["guided"])
        return Synthesis(**sizes, name="synthesis")(features, noise)


def guided_channels(
    resolution: int, channel_base: int, channel_max: int
) -> tuple[int, ...]:
    """Return the channels of the encoder's outputs that guidance compares."""
    below = levels(resolution)[-2::-1][:LEVELS]
    return tuple(channels_at(r, channel_base, channel_max) for r in below)


class MIGANAuxiliary(nn.Module):
    """An autoencoder of MI-GAN's layout, which sees the whole image, to guide it.

    Features reach its synthesis only through the lowest level, so that the encoder's
    must tell all about the image. Returns the image and the features that guide.
    """

    resolution: int = 256
    channel_base: int = 32768
    channel_max: int = 512
    reparam: Reparam = Reparam()
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        shape = 1, self.resolution, self.resolution, 3
        return [jax.ShapeDtypeStruct(shape, jnp.float32)]

    @nn.compact
    def __call__(self, image: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        sizes = dict(
            resolution=self.resolution,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            reparam=self.reparam,
            remat=self.remat,
        )
        image = image.astype(compute_dtype(self.dtype, image))
        # As the generator's input, without a hole.
        x = jnp.concatenate([jnp.full_like(image[..., :1], 0.5), image], axis=-1)
        features = Encoder(**sizes, name="encoder")(x)
        guided, innermost = features.pop("guided"), features.pop("innermost")
        skips = {r: jnp.zeros_like(x) for r, x in features.items()}
        synthesis = Synthesis(**sizes, name="synthesis")
        output, _ = synthesis({"innermost": innermost, **skips}, "none")
        return output, guided


class Encoder(nn.Module):
    """Compute the features of every level and the input of synthesis ("innermost").

    "guided" are the highest levels' outputs. Given a hole, these are completed.
    """

    resolution: int
    channel_base: int
    channel_max: int
    reparam: Reparam
    remat: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, hole: jax.Array | None = None
    ) -> dict[int | str, Any]:
        features, guided = {}, []
        count = len(
            guided_channels(self.resolution, self.channel_base, self.channel_max)
        )
        complete = None
        if hole is not None:
            complete = CompletionBlocks(
                count, COMPLETION_CHANNELS, COMPLETION_SIZE, "he", name="completion"
            )
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
            if complete is not None and len(guided) < count:
                x = complete(x, pool_hole(hole, x.shape[1], "any"), len(guided))
            guided.append(x)
        return {"innermost": x, "guided": guided[:count], **features}


class EncoderBlock(nn.Module):
    """One encoder level: returns the next level's input and the skip feature."""

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
    """The decoder: the image is the sum of all levels' to-RGB outputs."""

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
    """One decoder level; the lowest has neither up-sampling nor noise."""

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
            self.channels, self.reparam, noise_resolution=noise_resolution, name="conv2"
        )(x + feature, second)
        to_rgb = PointwiseConv(
            3, self.reparam, use_bias=True, to_float32=True, name="torgb"
        )
        return x, to_rgb(x)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        """Adding the encoder's feature; up-sampling and adding to the image."""
        skip = Cost(elementwise=num_elements(out))
        if self.resolution == LOWEST_RESOLUTION:
            return skip
        image = 3 * num_pixels(out)
        # Adding, and the mask with which the reference inserts zeros.
        return skip + upsampling_cost(image) + Cost(elementwise=2 * image)
