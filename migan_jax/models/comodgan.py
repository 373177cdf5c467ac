"""Co-Mod-GAN's generator (Zhao et al., ICLR 2021), MI-GAN's teacher."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from migan_jax.models.channels import LOWEST_RESOLUTION, channels_at, levels
from migan_jax.models.costs import (
    Cost,
    activation_cost,
    num_elements,
    num_pixels,
    upsampling_cost,
)
from migan_jax.models.layers import (
    Dense,
    EqualisedConv,
    NoiseInjection,
    add_bias,
    add_to_image,
    constant,
    flatten_channels_first,
    normal,
    run_block,
)
from migan_jax.models.noise import LayerNoise, Noise, layer_noise
from migan_jax.ops.activation import lrelu_agc
from migan_jax.ops.conv import conv3x3, conv_pointwise, conv_up, demodulated_conv
from migan_jax.ops.partition import like_feature_maps, per_strip
from migan_jax.ops.precision import at_least_float32, compute_dtype

MAPPING_LAYERS = 8
MAPPING_LEARNING_RATE_MULTIPLIER = 0.01
W_AVERAGE_DECAY = 0.995
DROPOUT_RATE = 0.5


class CoModGANGenerator(nn.Module):
    """Fill the hole of a masked image; each latent z gives another completion.

    The encoder ends in a dense layer, so the input must be `resolution` pixels square.
    """

    resolution: int = 256
    channel_base: int = 32768
    channel_max: int = 512
    z_dim: int = 512
    w_dim: int = 512
    encoder_dim: int = 1024  # size of the image's style vector
    dtype: DTypeLike | None = None  # compute dtype; None: the input's
    remat: bool = False  # recompute activations: less memory, a third more time

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs: the image and z."""
        shapes = (1, self.resolution, self.resolution, 4), (1, self.z_dim)
        return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    @property
    def num_ws(self) -> int:
        """Number of style vectors that synthesis uses."""
        return 2 * len(levels(self.resolution))

    @nn.nowrap
    def noise_shapes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Return height and width of every noise layer, for `noise.random_noise`."""
        self._check_size(height, width)
        above = [
            (f"b{r}/{layer}", (r, r))
            for r in levels(self.resolution)[1:]
            for layer in ("conv0", "conv1")
        ]
        return dict([("b4/conv", (LOWEST_RESOLUTION,) * 2), *above])

    @nn.nowrap
    def _check_size(self, height: int, width: int) -> None:
        if (height, width) != (self.resolution, self.resolution):
            raise ValueError(
                f"This Co-Mod-GAN takes {self.resolution}x{self.resolution} images, "
                f"not {height}x{width}."
            )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        z: jax.Array,
        noise: Noise = "stored",
        truncation: float = 1.0,
        mixing: tuple[jax.Array, jax.Array] | None = None,
        dropout_keys: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Complete `x` = concat(mask - 0.5, image * mask), mask 1 = known.

        Args:
          x: masked image [N, R, R, 4].
          z: latents [N, z_dim].
          noise: see models/noise.py.
          truncation: 1 for none; at 0 every style is the average style.
          mixing: second latents [N, z_dim] and, per sample, the index [N] of the first
            style vector to take from them. Training only.
          dropout_keys: one key per sample for the encoder's dropout. Training only.

        Returns the image [N, R, R, 3] and each level's to-RGB output by resolution.
        While the collection `stats` is mutable, the running average style is updated.
        """
        self._check_size(*x.shape[1:3])
        sizes = dict(
            resolution=self.resolution,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            remat=self.remat,
        )
        mapping = Mapping(self.w_dim, name="mapping")
        ws = jnp.repeat(mapping(z, truncation)[:, None], self.num_ws, axis=1)
        if mixing is not None:
            second_z, first_index = mixing
            second = mapping(second_z, truncation, update_average=False)
            mixed = jnp.arange(self.num_ws)[None] >= first_index[:, None]
            ws = jnp.where(mixed[:, :, None], second[:, None], ws)
        x = x.astype(compute_dtype(self.dtype, x))
        features = Encoder(**sizes, style_dim=self.encoder_dim, name="encoder")(
            x, dropout_keys
        )
        return Synthesis(**sizes, name="synthesis")(features, ws, noise)


class Mapping(nn.Module):
    """Map latents to styles; keep the running average that truncation uses."""

    w_dim: int

    @nn.compact
    def __call__(
        self, z: jax.Array, truncation: float, update_average: bool = True
    ) -> jax.Array:
        z = at_least_float32(z)
        w = z * lax.rsqrt(jnp.mean(z**2, axis=1, keepdims=True) + 1e-8)
        for index in range(MAPPING_LAYERS):
            layer = Dense(
                self.w_dim, MAPPING_LEARNING_RATE_MULTIPLIER, name=f"fc{index}"
            )
            w = lrelu_agc(layer(w))
        average = self.variable("stats", "w_avg", constant(0), None, (self.w_dim,))
        if update_average and self._is_training():
            batch_mean = lax.stop_gradient(jnp.mean(w, axis=0))
            average.value += (1 - W_AVERAGE_DECAY) * (batch_mean - average.value)
        if truncation != 1:
            center = average.value[None]
            w = center + truncation * (w - center)
        return w

    def _is_training(self) -> bool:
        return self.is_mutable_collection("stats") and not self.is_initializing()


class Encoder(nn.Module):
    """Compute the features of every level and the image's style vector."""

    resolution: int
    channel_base: int
    channel_max: int
    remat: bool
    style_dim: int

    @nn.compact
    def __call__(
        self, x: jax.Array, dropout_keys: jax.Array | None
    ) -> dict[int | str, Any]:
        features: dict[int | str, Any] = {}
        for r in reversed(levels(self.resolution)[1:]):
            block = EncoderBlock(
                channels=channels_at(r, self.channel_base, self.channel_max),
                out_channels=channels_at(r // 2, self.channel_base, self.channel_max),
                from_rgb=r == self.resolution,
                name=f"b{r}",
            )
            x, features[r] = run_block(block, self.remat, x)
        features[LOWEST_RESOLUTION], features["style"] = EncoderTop(
            self.style_dim, name=f"b{LOWEST_RESOLUTION}"
        )(x, dropout_keys)
        return features


class EncoderBlock(nn.Module):
    """One encoder level: returns the next level's input and the skip feature."""

    channels: int
    out_channels: int
    from_rgb: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.from_rgb:
            x = lrelu_agc(EqualisedConv(self.channels, size=1, name="fromrgb")(x))
        feature = lrelu_agc(EqualisedConv(self.channels, name="conv0")(x))
        down = EqualisedConv(self.out_channels, down=True, name="conv1")
        return lrelu_agc(down(feature)), feature


class EncoderTop(nn.Module):
    """The 4x4 level: returns its feature and the style vector of the image."""

    style_dim: int

    @nn.compact
    def __call__(
        self, x: jax.Array, dropout_keys: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        feature = lrelu_agc(EqualisedConv(x.shape[-1], name="conv")(x))
        flat = flatten_channels_first(feature)
        style = lrelu_agc(Dense(self.style_dim, name="fc")(flat))
        if dropout_keys is not None:
            style = _dropout(dropout_keys, style)
        return feature, at_least_float32(style)


def _dropout(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Apply dropout with one key per sample."""
    keep_rate = 1 - DROPOUT_RATE
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, keep_rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / keep_rate, 0)


class Synthesis(nn.Module):
    """The decoder, modulated by the mapped latent and the image's style vector."""

    resolution: int
    channel_base: int
    channel_max: int
    remat: bool

    @nn.compact
    def __call__(
        self, features: dict[int | str, Any], ws: jax.Array, noise: Noise
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        image_style = jnp.broadcast_to(
            features["style"][:, None], (*ws.shape[:2], features["style"].shape[-1])
        )
        styles = jnp.concatenate([ws, image_style], axis=-1)  # [N, num_ws, w + style]
        x, image, pyramid = features["style"], None, {}
        for index, r in enumerate(levels(self.resolution)):
            block_class = LowestBlock if r == LOWEST_RESOLUTION else SynthesisBlock
            first = max(0, 2 * index - 1)
            block = block_class(
                channels=channels_at(r, self.channel_base, self.channel_max),
                resolution=r,
                name=f"b{r}",
            )
            inputs = x, features[r], styles[:, first : 2 * index + 2]
            x, pyramid[r] = run_block(block, self.remat, *inputs, noise=noise)
            image = add_to_image(image, pyramid[r])
        return image, pyramid


class LowestBlock(nn.Module):
    """The 4x4 level, computed from the image's style vector."""

    channels: int
    resolution: int

    @nn.compact
    def __call__(
        self, style: jax.Array, feature: jax.Array, styles: jax.Array, noise: Noise
    ) -> tuple[jax.Array, jax.Array]:
        n, r, c = style.shape[0], self.resolution, self.channels
        x = lrelu_agc(Dense(c * r * r, name="fc")(style.astype(feature.dtype)))
        x = x.reshape(n, c, r, r).transpose(0, 2, 3, 1)
        x = like_feature_maps(x, feature) + feature
        x = ModulatedConv(c, r, name="conv")(
            x, styles[:, 0], layer_noise(noise, f"{self.name}/conv")
        )
        return x, ToRGB(name="torgb")(x, styles[:, 1])

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        """Adding the encoder's feature."""
        return Cost(elementwise=num_elements(out))


class SynthesisBlock(nn.Module):
    """A level above 4x4: up-sample, add the encoder's feature, convolve, to-RGB.

    To-RGB shares its style with the first convolution of the next level.
    """

    channels: int
    resolution: int

    @nn.compact
    def __call__(
        self, x: jax.Array, feature: jax.Array, styles: jax.Array, noise: Noise
    ) -> tuple[jax.Array, jax.Array]:
        x = ModulatedConv(self.channels, self.resolution, up=True, name="conv0")(
            x, styles[:, 0], layer_noise(noise, f"{self.name}/conv0")
        )
        x = ModulatedConv(self.channels, self.resolution, name="conv1")(
            x + feature, styles[:, 1], layer_noise(noise, f"{self.name}/conv1")
        )
        return x, ToRGB(name="torgb")(x, styles[:, 2])

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        """Adding the encoder's feature; up-sampling and adding to the image."""
        image = 3 * num_pixels(out)
        return upsampling_cost(image) + Cost(elementwise=num_elements(out) + image)


class ModulatedConv(nn.Module):
    """3x3 modulated, demodulated convolution with noise, bias and activation."""

    features: int
    resolution: int  # nominal; the stored noise has this size
    up: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, style: jax.Array, noise: LayerNoise) -> jax.Array:
        channels = x.shape[-1]
        scales = Dense(channels, bias_init=1.0, name="affine")(style)
        weight = self.param("weight", normal, (3, 3, channels, self.features))
        if self.up:
            x = 4 * demodulated_conv(x, weight, scales, conv_up)
        else:
            x = demodulated_conv(x, weight, scales, conv3x3)
        x = NoiseInjection(self.resolution, name="noise")(x, noise)
        bias = self.param("bias", constant(0), (self.features,))
        return lrelu_agc(add_bias(x, bias))

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        x, *_ = args
        products = Cost(9 * num_pixels(x) * x.shape[-1] * self.features)
        filtered = Cost(filter=16 * num_elements(out)) if self.up else Cost()
        # The reference scales activations: inputs by styles, outputs by norms.
        scaling = Cost(elementwise=num_elements(x) + num_elements(out))
        return products + filtered + scaling + activation_cost(out)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to three channels, without demodulation."""

    @nn.compact
    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scales = Dense(channels, bias_init=1.0, name="affine")(style)
        scales *= 1 / math.sqrt(channels)
        weight = self.param("weight", normal, (1, 1, channels, 3))
        x = at_least_float32(x) * per_strip(scales)[:, None, None]
        y = conv_pointwise(x, weight)
        return add_bias(y, self.param("bias", constant(0), (3,)))

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        x, *_ = args
        return Cost(x.shape[-1] * num_elements(out))
