"""Co-Mod-GAN's generator (Zhao et al., ICLR 2021, Figure 2 (d)), MI-GAN's teacher.

A StyleGAN2 decoder whose styles depend on both a latent code and the encoded image. It
is the network of the teachers released with MI-GAN (Sargsyan et al., ICCV 2023), in
evaluation mode except for the dropout of training mode.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from migan_jax.twins.layers import (
    EPSILON,
    Dense,
    EqualizedConv,
    Noise,
    Pyramid,
    Upsampling,
    add_noise,
    fir_filter,
    fir_taps,
    fir_up,
    levels_down,
    lrelu_agc,
    register_noise,
    width_at,
)

NUM_MAPPING_LAYERS = 8
MAPPING_LR_MULT = 0.01
ENCODER_DROPOUT = 0.5


class Mapping(nn.Module):
    """Map the latent code z to one style code w for every layer."""

    def __init__(self, z_dim: int, w_dim: int, num_ws: int):
        super().__init__()
        self.num_ws = num_ws
        self.register_buffer("w_avg", torch.zeros(w_dim))
        for index in range(NUM_MAPPING_LAYERS):
            cin = z_dim if index == 0 else w_dim
            dense = Dense(cin, w_dim, lr_mult=MAPPING_LR_MULT)
            self.add_module(f"fc{index}", dense)

    def forward(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """(N, z_dim) to (N, num_ws, w_dim); truncation < 1 pulls w to its mean."""
        x = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + EPSILON)
        for index in range(NUM_MAPPING_LAYERS):
            x = lrelu_agc(getattr(self, f"fc{index}")(x))
        if truncation != 1.0:
            x = self.w_avg + truncation * (x - self.w_avg)
        return x[:, None].expand(-1, self.num_ws, -1)


class EncoderBlock(nn.Module):
    """Return one level's downsampled features for the next level, and its features."""

    def __init__(self, cin: int, cout: int, first: bool):
        super().__init__()
        self.fromrgb = EqualizedConv(4, cin, size=1) if first else None
        self.conv0 = EqualizedConv(cin, cin, size=3)
        self.conv1 = EqualizedConv(cin, cout, size=3, down=True)
        # Checkpoints hold taps here that nothing uses.
        self.register_buffer("resample_filter", fir_taps())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        features = self.conv0(x)
        return self.conv1(features), features


class EncoderLastBlock(nn.Module):
    """The 4x4 level, and the code of the whole image."""

    def __init__(self, width: int, encoder_dim: int):
        super().__init__()
        self.conv = EqualizedConv(width, width, size=3)
        self.fc = Dense(width * 4 * 4, encoder_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv(x)
        code = lrelu_agc(self.fc(features.flatten(1)))
        return F.dropout(code, ENCODER_DROPOUT, self.training), features


class Encoder(nn.Module):
    """Map the masked image to its code and to features at every resolution."""

    def __init__(
        self, resolution: int, channel_base: int, channel_max: int, encoder_dim: int
    ):
        super().__init__()
        self.levels = levels_down(resolution)
        for r in self.levels:
            cin = width_at(r, channel_base, channel_max)
            cout = width_at(r // 2, channel_base, channel_max)
            self.add_module(f"b{r}", EncoderBlock(cin, cout, first=r == resolution))
        width = width_at(4, channel_base, channel_max)
        self.b4 = EncoderLastBlock(width, encoder_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        features = {}
        for r in [*self.levels, 4]:
            x, features[r] = getattr(self, f"b{r}")(x)
        return x, features


class ModulatedConv(nn.Module):
    """A 3x3 convolution with kernels modulated by a style and demodulated.

    The style scales the input channels and the demodulation the output channels,
    so that all samples share one convolution.
    """

    def __init__(
        self, cin: int, cout: int, style_dim: int, size: int, up: bool = False
    ):
        super().__init__()
        self.up = up
        self.affine = Dense(style_dim, cin, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(cout, cin, 3, 3))
        self.bias = nn.Parameter(torch.zeros(cout))
        register_noise(self, size)
        if up:
            self.register_buffer("resample_filter", fir_taps())

    def forward(self, x: Tensor, style: Tensor, noise: Noise) -> Tensor:
        kernel, scale = self.weight, self.affine(style)
        # Both norms cancel in the demodulation, except for its epsilon.
        kernel = kernel * kernel.square().mean(dim=(1, 2, 3), keepdim=True).rsqrt()
        scale = scale * scale.square().mean().rsqrt()
        energy = F.linear(scale.square(), kernel.square().sum(dim=(2, 3)))
        demodulation = torch.rsqrt(energy + EPSILON)

        x = self.convolve(x * scale[:, :, None, None], kernel)
        x = x * demodulation[:, :, None, None]
        x = add_noise(x, self.noise_strength, self.noise_const, noise)
        return lrelu_agc(x + self.bias[:, None, None])

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        if not self.up:
            return F.conv2d(x, kernel, padding=1)
        x = F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2)
        # The transposed convolution outputs one row and column too many.
        return fir_filter(x, 4.0 * self.resample_filter, padding=1)


class ToRGB(nn.Module):
    """A 1x1 convolution to RGB, modulated by a style but not demodulated."""

    def __init__(self, cin: int, style_dim: int):
        super().__init__()
        self.affine = Dense(style_dim, cin, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(3, cin, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale = self.affine(style) / math.sqrt(self.weight.shape[1])
        return F.conv2d(x * scale[:, :, None, None], self.weight, self.bias)


class SynthesisFirstBlock(nn.Module):
    """The 4x4 level, which starts from the image's code."""

    num_convs = 1

    def __init__(self, width: int, style_dim: int, encoder_dim: int):
        super().__init__()
        self.fc = Dense(encoder_dim, width * 4 * 4)
        self.conv = ModulatedConv(width, width, style_dim, size=4)
        # Checkpoints hold taps here that nothing uses.
        self.conv.register_buffer("resample_filter", fir_taps())
        self.torgb = ToRGB(width, style_dim)

    def forward(
        self, code: Tensor, features: Tensor, styles: list[Tensor], noise: Noise
    ) -> tuple[Tensor, Tensor]:
        x = lrelu_agc(self.fc(code)).reshape(features.shape) + features
        x = self.conv(x, styles[0], noise)
        return x, self.torgb(x, styles[1])


class SynthesisBlock(nn.Module):
    """Upsample, add the encoder's features, and output RGB."""

    num_convs = 2

    def __init__(self, cin: int, cout: int, style_dim: int, size: int):
        super().__init__()
        self.conv0 = ModulatedConv(cin, cout, style_dim, size, up=True)
        self.conv1 = ModulatedConv(cout, cout, style_dim, size)
        self.torgb = ToRGB(cout, style_dim)
        self.register_buffer("resample_filter", fir_taps())

    def forward(
        self, x: Tensor, features: Tensor, styles: list[Tensor], noise: Noise
    ) -> tuple[Tensor, Tensor]:
        x = self.conv0(x, styles[0], noise) + features
        x = self.conv1(x, styles[1], noise)
        return x, self.torgb(x, styles[2])


class Synthesis(nn.Module):
    """Map codes and features to the image, coarse to fine."""

    def __init__(
        self,
        resolution: int,
        channel_base: int,
        channel_max: int,
        w_dim: int,
        encoder_dim: int,
        upsampling: Upsampling,
    ):
        super().__init__()
        self.upsampling = upsampling
        self.levels = levels_down(resolution)[::-1]
        style_dim = w_dim + encoder_dim
        width = width_at(4, channel_base, channel_max)
        self.b4 = SynthesisFirstBlock(width, style_dim, encoder_dim)
        for r in self.levels:
            cin = width_at(r // 2, channel_base, channel_max)
            cout = width_at(r, channel_base, channel_max)
            self.add_module(f"b{r}", SynthesisBlock(cin, cout, style_dim, size=r))

    def forward(
        self, code: Tensor, features: dict[int, Tensor], ws: Tensor, noise: Noise
    ) -> tuple[Tensor, Pyramid]:
        """ws is (N, num_ws, w_dim)."""
        styles = [torch.cat([w, code], dim=1) for w in ws.unbind(dim=1)]
        x, image = self.b4(code, features[4], styles, noise)
        pyramid = {4: image}
        # A level's to-RGB shares its style with the next level's first convolution.
        first = self.b4.num_convs
        for r in self.levels:
            block = getattr(self, f"b{r}")
            x, pyramid[r] = block(x, features[r], styles[first:], noise)
            image = fir_up(image, block.resample_filter, self.upsampling) + pyramid[r]
            first += block.num_convs
        return image, pyramid


class TorchCoModGANGenerator(nn.Module):
    """Inpaint `concat(mask - 0.5, image * mask)`, (N, 4, R, R), to (N, 3, R, R)."""

    def __init__(
        self,
        resolution: int = 256,
        channel_base: int = 32768,
        channel_max: int = 512,
        upsampling: Upsampling = "reference",
        z_dim: int = 512,
        w_dim: int = 512,
        encoder_dim: int = 1024,
    ):
        super().__init__()
        num_ws = 2 * len(levels_down(resolution)) + 2
        self.mapping = Mapping(z_dim, w_dim, num_ws)
        self.synthesis = Synthesis(
            resolution, channel_base, channel_max, w_dim, encoder_dim, upsampling
        )
        self.encoder = Encoder(resolution, channel_base, channel_max, encoder_dim)

    def forward(
        self,
        x: Tensor,
        z: Tensor,
        noise: Noise = "stored",
        truncation: float = 1.0,
        pyramid: bool = False,
    ) -> Tensor | tuple[Tensor, Pyramid]:
        """Return the image; with `pyramid` also each level's RGB, by resolution."""
        ws = self.mapping(z, truncation)
        code, features = self.encoder(x)
        image, levels = self.synthesis(code, features, ws, noise)
        return (image, levels) if pyramid else image
