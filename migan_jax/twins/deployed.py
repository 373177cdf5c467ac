"""MI-GAN's generator as it runs on phones: fused kernels, nothing computed that is known.

It equals the inference form (Sargsyan et al., ICCV 2023, supplementary Table S.4), with
every constant where it costs nothing: the activations' gains of sqrt(2) in the kernels
before them, since a leaky ReLU lets positive factors through; noise times its strength
as one image. Sizes double by padding with zeros, bilinear resizing and cropping, so
that no convolution sees an image stuffed with zeros.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from migan_jax.twins.layers import (
    ACTIVATION_LIMIT,
    bilinear_up,
    fir_down,
    fir_taps,
    tile,
)
from migan_jax.twins.migan import Generator
from migan_jax.twins.separable import FusedConv, FusedSeparableConv

GAIN = math.sqrt(2)


def activation(x: Tensor) -> Tensor:
    """Of what has its gain already."""
    return F.leaky_relu(x, 0.2).clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)


class Convolution(nn.Module):
    """A kernel used as it is, with its bias."""

    def __init__(self, fused: FusedConv, gain: float = 1.0):
        super().__init__()
        self.groups, self.padding = fused.groups, fused.padding
        self.register_buffer("weight", fused.weight.detach() * gain)
        bias = None if fused.bias is None else fused.bias.detach() * gain
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            x, self.weight, self.bias, padding=self.padding, groups=self.groups
        )


class SeparableConvolution(nn.Module):
    """Depthwise and pointwise, with resampling and noise where the network has them."""

    def __init__(self, fused: FusedSeparableConv, with_noise: bool):
        super().__init__()
        self.depthwise = Convolution(fused.conv1, GAIN)
        self.pointwise = Convolution(fused.conv2, GAIN)
        self.halves = fused.downsample is not None
        self.doubles = fused.upsample is not None
        taps = fir_taps().expand(fused.conv1.groups, 1, 4, 4).clone()
        self.register_buffer("taps", taps if self.halves else None)
        noise = None
        if with_noise and fused.has_noise:
            noise = GAIN * fused.noise_strength.detach() * fused.noise_const
        self.register_buffer("noise", noise)

    def forward(self, x: Tensor) -> Tensor:
        x = activation(self.depthwise(x))
        if self.halves:
            x = fir_down(x, self.taps)
        x = self.pointwise(x)
        if self.doubles:
            x = bilinear_up(x)
        if self.noise is not None:
            x = x + self.noise_like(x)
        return activation(x)

    def noise_like(self, x: Tensor) -> Tensor:
        """The stored image from the top left on, repeated where x is larger."""
        return tile(self.noise, *x.shape[2:])

    def fix_size(self, height: int, width: int) -> None:
        """Keep as much noise as a picture of one size needs, so that none is cut."""
        if self.noise is not None:
            self.noise = tile(self.noise, height, width)
            self.noise_like = lambda x: self.noise


class Deployed(nn.Module):
    """`concat(mask - 0.5, image * mask)`, (N, 4, H, W) -> the picture, (N, 3, H, W)."""

    def __init__(
        self,
        twin: Generator,
        with_noise: bool = True,
        size: tuple[int, int] | None = None,
    ):
        """From the inference form; for pictures of one size, or of any that fits it."""
        super().__init__()
        encoder, synthesis = twin.encoder, twin.synthesis
        down, up = [*encoder.levels, 4], [4, *synthesis.levels]
        first = getattr(encoder, f"b{encoder.levels[0]}")
        self.from_rgb = Convolution(first.fromrgb, GAIN)

        def pairs(part: nn.Module, levels: list[int]) -> nn.ModuleList:
            blocks = [getattr(part, f"b{level}") for level in levels]
            both = [
                nn.ModuleList(
                    SeparableConvolution(conv, with_noise)
                    for conv in (block.conv1, block.conv2)
                )
                for block in blocks
            ]
            return nn.ModuleList(both)

        self.encoder, self.synthesis = pairs(encoder, down), pairs(synthesis, up)
        self.to_rgb = nn.ModuleList(
            Convolution(getattr(synthesis, f"b{level}").torgb) for level in up
        )
        if size is not None:
            self._fix_size(*size, up, twin.resolution)

    def _fix_size(
        self, height: int, width: int, levels: list[int], resolution: int
    ) -> None:
        for level, convolutions in zip(levels, self.synthesis, strict=True):
            for convolution in convolutions:
                convolution.fix_size(
                    height * level // resolution, width * level // resolution
                )

    def forward(self, x: Tensor) -> Tensor:
        x = activation(self.from_rgb(x))
        skipped = []
        for keep, halve in self.encoder:
            skipped.append(keep(x))
            x = halve(skipped[-1])
        image = None
        for (grow, keep), to_rgb in zip(self.synthesis, self.to_rgb, strict=True):
            x = keep(grow(x) + skipped.pop())
            rgb = to_rgb(x)
            image = rgb if image is None else bilinear_up(image) + rgb
        return image


def deployed(
    twin: Generator, with_noise: bool = True, size: tuple[int, int] | None = None
) -> Deployed:
    """The same, ready to run."""
    return Deployed(twin, with_noise, size).eval().requires_grad_(False)


def export_network(
    network: Deployed, sample: Tensor, opset: int, dynamic: bool
) -> "object":
    """ONNX of it."""
    raise NotImplementedError
