"""MI-GAN's generator for export: fused, with all constants folded.

It equals the inference form (Sargsyan et al., ICCV 2023, supplementary Table S.4), but
the activations' gains of sqrt(2) are folded into the kernels before them, since a leaky
ReLU is positively homogeneous; noise is premultiplied by its strength; and upsampling
repeats pixels and smooths them, which equals the filter on a zero-stuffed image with a
quarter of the taps.

The activation limit serves training in 16 bits. It prevents runtimes from fusing leaky
ReLUs into their convolutions, so it can be removed from networks that never reach it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from migan_jax.twins.layers import ACTIVATION_LIMIT as LIMIT
from migan_jax.twins.layers import fir_down, fir_taps, tile
from migan_jax.twins.migan import TorchMIGANGenerator
from migan_jax.twins.separable import FusedConv, FusedSeparableConv

GAIN = math.sqrt(2)
MIN_SCALE = 0.01  # of a channel, relative to the one with the largest magnitude
# Weight of negative values in a channel's magnitude. A leaky ReLU divides them by five,
# and the values before and after it are both quantised: the geometric mean.
NEGATIVE_WEIGHT = math.sqrt(5)


class Activation(nn.Module):
    """A leaky ReLU without gain, and the activation limit if it is kept."""

    def __init__(self, limited: bool):
        super().__init__()
        self.limited = limited

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(x, 0.2)
        if self.limited:
            x = x.clamp(-LIMIT, LIMIT)
        return x


class FusedConvolution(nn.Module):
    """A convolution with a constant kernel and bias."""

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


class Downsample(nn.Module):
    """Downsample by 2 with the FIR filter."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("taps", fir_taps().repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return fir_down(x, self.taps)


class Upsample(nn.Module):
    """Repeat each pixel 2x2, then filter with [1, 2, 1] / 4 along rows and columns.

    Pixels a, b become ..., (3a + b) / 4, (a + 3b) / 4, ..., as with [1, 3, 3, 1] on the
    zero-stuffed image, and zeros are beyond the border as there.
    """

    def __init__(self, channels: int):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        taps = torch.outer(row, row).repeat(channels, 1, 1, 1)
        self.register_buffer("taps", taps)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.conv2d(x, self.taps, padding=1, groups=len(self.taps))


class NoiseLayer(nn.Module):
    """Add a stored image, of a fixed size or tiled to any, to every channel."""

    def __init__(self, image: Tensor, size: tuple[int, int] | None):
        super().__init__()
        self.any_size = size is None
        image = image if size is None else tile(image, *size)
        self.register_buffer("image", image)

    def forward(self, x: Tensor) -> Tensor:
        return x + (tile(self.image, *x.shape[2:]) if self.any_size else self.image)


class ChannelScale(nn.Module):
    """Multiply every channel by a constant."""

    def __init__(self, factors: Tensor):
        super().__init__()
        self.register_buffer("factors", factors.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


class Deployed(nn.Module):
    """Map `concat(mask - 0.5, image * mask)`, (N, 4, H, W), to RGB, (N, 3, H, W)."""

    def __init__(
        self,
        twin: TorchMIGANGenerator,
        size: tuple[int, int] | None,
        with_noise: bool,
        limited: bool,
    ):
        """Convert the inference form.

        Args:
          size: fixed height and width; None for any that the network takes.
          with_noise: keep the stored noise.
          limited: keep the activation limit.
        """
        super().__init__()
        self._size, self._resolution = size, twin.resolution
        self._with_noise, self._limited = with_noise, limited
        encoder, synthesis = twin.encoder, twin.synthesis
        down, up = [*encoder.levels, 4], [4, *synthesis.levels]
        first = getattr(encoder, f"b{down[0]}")
        self.from_rgb = nn.Sequential(
            FusedConvolution(first.fromrgb, GAIN), Activation(limited)
        )
        self.encoder = nn.ModuleList(
            self._pair(getattr(encoder, f"b{level}"), level) for level in down
        )
        self.synthesis = nn.ModuleList(
            self._pair(getattr(synthesis, f"b{level}"), level) for level in up
        )
        self.to_rgb = nn.ModuleList(
            FusedConvolution(getattr(synthesis, f"b{level}").torgb) for level in up
        )
        self.to_skipped = nn.ModuleList(nn.Identity() for _ in up)
        self.enlarge = Upsample(3)
        self.eval().requires_grad_(False)

    def _pair(self, block: nn.Module, level: int) -> nn.ModuleList:
        convolutions = block.conv1, block.conv2
        return nn.ModuleList(self._separable(conv, level) for conv in convolutions)

    def _separable(self, fused: FusedSeparableConv, level: int) -> nn.Sequential:
        depthwise, pointwise = (
            FusedConvolution(fused.conv1, GAIN),
            FusedConvolution(fused.conv2, GAIN),
        )
        layers = [depthwise, Activation(self._limited)]
        if fused.downsample is not None:
            layers.append(Downsample(len(depthwise.weight)))
        layers.append(pointwise)
        if fused.upsample is not None:
            layers.append(Upsample(len(pointwise.weight)))
        if fused.has_noise and self._with_noise:
            image = GAIN * fused.noise_strength.detach() * fused.noise_const
            size = self._size and tuple(
                length * level // self._resolution for length in self._size
            )
            layers.append(NoiseLayer(image, size))
        return nn.Sequential(*layers, Activation(self._limited))

    def forward(self, x: Tensor) -> Tensor:
        x = self.from_rgb(x)
        skipped = []
        for same, down in self.encoder:
            skipped.append(same(x))
            x = down(skipped[-1])
        image = None
        levels = zip(self.synthesis, self.to_skipped, self.to_rgb, strict=True)
        for (up, same), to_skipped, to_rgb in levels:
            x = same(to_skipped(up(x)) + skipped.pop())
            rgb = to_rgb(x)
            image = rgb if image is None else self.enlarge(image) + rgb
        return image

    def equalise(self, inputs: Sequence[np.ndarray]) -> None:
        """Equalise the channel ranges of activations in place; outputs stay the same.

        For int8, where the channels of an activation share a range. The convolution
        before scales a channel up and those after scale it down, which leaky ReLUs let
        through (Nagel et al., ICCV 2019, section 4.1). Features of a skip connection
        are scaled too, so the decoder's features are scaled before the sum. Activations
        with noise are left alone. Only for networks without the activation limit.
        """
        sites = self._equalisation_sites()
        magnitudes = self._magnitudes([consumers for _, consumers, _ in sites], inputs)
        for magnitude, site in zip(magnitudes, sites, strict=True):
            producer, consumers, level = site
            scale = (magnitude / magnitude.max()).clamp(min=MIN_SCALE)
            producer.weight /= scale.reshape(-1, 1, 1, 1)
            if producer.bias is not None:
                producer.bias /= scale
            for consumer in consumers:
                axis = (-1, 1, 1, 1) if consumer.groups > 1 else (1, -1, 1, 1)
                consumer.weight *= scale.reshape(axis)
            if level is not None:
                self.to_skipped[level] = ChannelScale(1 / scale)

    def _equalisation_sites(
        self,
    ) -> list[tuple[FusedConvolution, list[FusedConvolution], int | None]]:
        """Return (producer, consumers, level of the skip connection) of activations."""
        sites = []
        previous = self.from_rgb[0]
        for depth, (same, down) in enumerate(self.encoder):
            level = len(self.encoder) - 1 - depth
            first, second, third, fourth = *_convolutions(same), *_convolutions(down)
            skip = _convolutions(self.synthesis[level][1])[0]
            sites += [
                (previous, [first], None),
                (first, [second], None),
                (second, [third, skip], level),
                (third, [fourth], None),
            ]
            previous = fourth
        for separable in (separable for pair in self.synthesis for separable in pair):
            depthwise, pointwise = _convolutions(separable)
            sites.append((depthwise, [pointwise], None))
        return sites

    def _magnitudes(
        self, groups: Sequence[Sequence[FusedConvolution]], inputs: Sequence[np.ndarray]
    ) -> list[Tensor]:
        """Return the largest magnitude of each input channel of each group."""
        largest: dict[FusedConvolution, Tensor] = {}

        def update(convolution: FusedConvolution, arguments: tuple[Tensor]) -> None:
            (x,) = arguments
            current = torch.maximum(x, -NEGATIVE_WEIGHT * x).amax(dim=(0, 2, 3))
            previous = largest.get(convolution, current)
            largest[convolution] = torch.maximum(previous, current)

        handles = [
            convolution.register_forward_pre_hook(update)
            for group in groups
            for convolution in group
        ]
        with torch.no_grad():
            for x in inputs:
                self(torch.from_numpy(x))
        for handle in handles:
            handle.remove()
        return [
            torch.stack([largest[convolution] for convolution in group]).amax(dim=0)
            for group in groups
        ]

    def largest_activation(self, x: np.ndarray) -> float:
        """Return the largest absolute activation for a batch, before the limit."""
        maxima = [0.0]
        handles = [
            layer.register_forward_hook(
                lambda *call: maxima.append(F.leaky_relu(call[1][0], 0.2).abs().max())
            )
            for layer in self.modules()
            if isinstance(layer, Activation)
        ]
        with torch.no_grad():
            self(torch.from_numpy(x))
        for handle in handles:
            handle.remove()
        return float(max(maxima))


def _convolutions(separable: nn.Sequential) -> list[FusedConvolution]:
    """Return the depthwise and the pointwise convolution."""
    return [layer for layer in separable if isinstance(layer, FusedConvolution)]
