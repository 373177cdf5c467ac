"""MI-GAN's generator as it runs on phones: fused, and nothing computed twice.

It equals the inference form (Sargsyan et al., ICCV 2023, supplementary Table S.4), with
every constant where it costs nothing: the activations' gains of sqrt(2) in the kernels
before them, since a leaky ReLU lets positive factors through; noise times its strength
as one image; sizes doubled by repeating pixels and smoothing them, which is the same
filter as over an image stuffed with zeros, on a quarter of the taps.

The limit of activations is for training in 16 bits. It stands between convolutions and
their leaky ReLUs, which runtimes otherwise compute as one, so it can be left out of
networks that never come near it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from migan_jax.twins.layers import ACTIVATION_LIMIT as LIMIT
from migan_jax.twins.layers import fir_down, fir_taps, tile
from migan_jax.twins.migan import Generator
from migan_jax.twins.separable import FusedConv, FusedSeparableConv

GAIN = math.sqrt(2)
SMALLEST_SHARE = 0.01  # of what another channel reaches
# What a value below zero counts for when channels are compared. Before a leaky ReLU it
# is five times as far from zero as after it, and both are rounded: so, in between.
BELOW_ZERO = math.sqrt(5)


class Activation(nn.Module):
    """A leaky ReLU of what has its gain already, and its limit if it has one."""

    def __init__(self, limited: bool):
        super().__init__()
        self.limited = limited

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(x, 0.2)
        if self.limited:
            x = x.clamp(-LIMIT, LIMIT)
        return x


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


class Halving(nn.Module):
    """The FIR filter, at every second pixel."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("taps", fir_taps().repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return fir_down(x, self.taps)


class Doubling(nn.Module):
    """Each pixel four times, then [1, 2, 1] / 4 along rows and columns.

    Of pixels a, b that becomes ..., (3a + b) / 4, (a + 3b) / 4, ...: what [1, 3, 3, 1]
    makes of them with zeros in between, and as there zeros are beyond the border.
    """

    def __init__(self, channels: int):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        taps = torch.outer(row, row).repeat(channels, 1, 1, 1)
        self.register_buffer("taps", taps)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.conv2d(x, self.taps, padding=1, groups=len(self.taps))


class Noise(nn.Module):
    """Adds a stored image to every channel: of one size, or repeated to any."""

    def __init__(self, image: Tensor, size: tuple[int, int] | None):
        super().__init__()
        self.any_size = size is None
        image = image if size is None else tile(image, *size)
        self.register_buffer("image", image)

    def forward(self, x: Tensor) -> Tensor:
        return x + (tile(self.image, *x.shape[2:]) if self.any_size else self.image)


class Scaling(nn.Module):
    """Every channel times a number of its own."""

    def __init__(self, factors: Tensor):
        super().__init__()
        self.register_buffer("factors", factors.reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


class Deployed(nn.Module):
    """`concat(mask - 0.5, image * mask)`, (N, 4, H, W) -> the picture, (N, 3, H, W)."""

    def __init__(
        self,
        twin: Generator,
        size: tuple[int, int] | None,
        with_noise: bool,
        limited: bool,
    ):
        """From the inference form.

        Args:
          size: height and width of all pictures; None for any that the network takes.
          with_noise: keep its stored noise.
          limited: keep the limit of activations.
        """
        super().__init__()
        self._size, self._resolution = size, twin.resolution
        self._with_noise, self._limited = with_noise, limited
        encoder, synthesis = twin.encoder, twin.synthesis
        down, up = [*encoder.levels, 4], [4, *synthesis.levels]
        first = getattr(encoder, f"b{down[0]}")
        self.from_rgb = nn.Sequential(
            Convolution(first.fromrgb, GAIN), Activation(limited)
        )
        self.encoder = nn.ModuleList(
            self._pair(getattr(encoder, f"b{level}"), level) for level in down
        )
        self.synthesis = nn.ModuleList(
            self._pair(getattr(synthesis, f"b{level}"), level) for level in up
        )
        self.to_rgb = nn.ModuleList(
            Convolution(getattr(synthesis, f"b{level}").torgb) for level in up
        )
        self.to_skipped = nn.ModuleList(nn.Identity() for _ in up)
        self.enlarge = Doubling(3)
        self.eval().requires_grad_(False)

    def _pair(self, block: nn.Module, level: int) -> nn.ModuleList:
        convolutions = block.conv1, block.conv2
        return nn.ModuleList(self._separable(conv, level) for conv in convolutions)

    def _separable(self, fused: FusedSeparableConv, level: int) -> nn.Sequential:
        depthwise, pointwise = (
            Convolution(fused.conv1, GAIN),
            Convolution(fused.conv2, GAIN),
        )
        layers = [depthwise, Activation(self._limited)]
        if fused.downsample is not None:
            layers.append(Halving(len(depthwise.weight)))
        layers.append(pointwise)
        if fused.upsample is not None:
            layers.append(Doubling(len(pointwise.weight)))
        if fused.has_noise and self._with_noise:
            image = GAIN * fused.noise_strength.detach() * fused.noise_const
            size = self._size and tuple(
                length * level // self._resolution for length in self._size
            )
            layers.append(Noise(image, size))
        return nn.Sequential(*layers, Activation(self._limited))

    def forward(self, x: Tensor) -> Tensor:
        x = self.from_rgb(x)
        skipped = []
        for keep, halve in self.encoder:
            skipped.append(keep(x))
            x = halve(skipped[-1])
        image = None
        levels = zip(self.synthesis, self.to_skipped, self.to_rgb, strict=True)
        for (grow, keep), to_skipped, to_rgb in levels:
            x = keep(to_skipped(grow(x)) + skipped.pop())
            rgb = to_rgb(x)
            image = rgb if image is None else self.enlarge(image) + rgb
        return image

    def equalise(self, inputs: Sequence[np.ndarray]) -> None:
        """Let the channels of an activation reach equally far; nothing else changes.

        For 8 bits, which an activation's channels share: a channel is made larger by
        the convolution before it and smaller by those after it, which leaky ReLUs let
        through (Nagel et al., ICCV 2019, section 4.1). A feature that skips to the
        other side is larger there too, so what it is added to is made so before. Not
        where noise joins in. For networks without the limit of activations.
        """
        places = self._equalisable()
        reached = self._reached([takers for _, takers, _ in places], inputs)
        for reach, (maker, takers, level) in zip(reached, places, strict=True):
            share = (reach / reach.max()).clamp(min=SMALLEST_SHARE)
            maker.weight /= share.reshape(-1, 1, 1, 1)
            if maker.bias is not None:
                maker.bias /= share
            for taker in takers:
                axis = (-1, 1, 1, 1) if taker.groups > 1 else (1, -1, 1, 1)
                taker.weight *= share.reshape(axis)
            if level is not None:
                self.to_skipped[level] = Scaling(1 / share)

    def _equalisable(self) -> list[tuple[Convolution, list[Convolution], int | None]]:
        """What makes and what takes channels, and where they skip to."""
        found = []
        source = self.from_rgb[0]
        for depth, (keep, halve) in enumerate(self.encoder):
            level = len(self.encoder) - 1 - depth
            first, second, third, fourth = *_convolutions(keep), *_convolutions(halve)
            other_side = _convolutions(self.synthesis[level][1])[0]
            found += [
                (source, [first], None),
                (first, [second], None),
                (second, [third, other_side], level),
                (third, [fourth], None),
            ]
            source = fourth
        for separable in (separable for pair in self.synthesis for separable in pair):
            depthwise, pointwise = _convolutions(separable)
            found.append((depthwise, [pointwise], None))
        return found

    def _reached(
        self, places: Sequence[Sequence[Convolution]], inputs: Sequence[np.ndarray]
    ) -> list[Tensor]:
        """How far each channel goes that some convolutions take."""
        seen: dict[Convolution, Tensor] = {}

        def look(convolution: Convolution, arguments: tuple[Tensor]) -> None:
            (x,) = arguments
            here = torch.maximum(x, -BELOW_ZERO * x).amax(dim=(0, 2, 3))
            seen[convolution] = torch.maximum(seen.get(convolution, here), here)

        handles = [
            convolution.register_forward_pre_hook(look)
            for takers in places
            for convolution in takers
        ]
        with torch.no_grad():
            for x in inputs:
                self(torch.from_numpy(x))
        for handle in handles:
            handle.remove()
        return [
            torch.stack([seen[convolution] for convolution in takers]).amax(dim=0)
            for takers in places
        ]

    def largest_activation(self, x: np.ndarray) -> float:
        """That any layer makes of some inputs, before a limit."""
        seen = [0.0]
        handles = [
            layer.register_forward_hook(
                lambda *call: seen.append(F.leaky_relu(call[1][0], 0.2).abs().max())
            )
            for layer in self.modules()
            if isinstance(layer, Activation)
        ]
        with torch.no_grad():
            self(torch.from_numpy(x))
        for handle in handles:
            handle.remove()
        return float(max(seen))


def _convolutions(separable: nn.Sequential) -> list[Convolution]:
    """The depthwise and the pointwise one."""
    return [layer for layer in separable if isinstance(layer, Convolution)]
