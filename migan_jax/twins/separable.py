"""MI-GAN's convolutions (Sargsyan et al., ICCV 2023, supplementary Table S.4).

A separable convolution exists in two forms. The training form re-parametrises every
kernel; the inference form stores fused kernels, and the FIR constants with them.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from migan_jax.twins.layers import (
    EPSILON,
    Noise,
    Upsampling,
    add_noise,
    bilinear_up,
    filter_zero_stuffed,
    fir_down,
    fir_taps,
    fir_up,
    lrelu_agc,
    register_noise,
)

Resample = Literal["down", "up"]


def normalize_kernel(kernel: Tensor) -> Tensor:
    """Scale each output channel's kernel to unit norm."""
    energy = kernel.square().sum(dim=(1, 2, 3), keepdim=True)
    return kernel * torch.rsqrt(energy + EPSILON)


class SameConv(nn.Module):
    """A stride-1 convolution that keeps the size; subclasses define the kernel."""

    def __init__(self, cout: int, size: int, groups: int, bias: bool):
        super().__init__()
        self.groups = groups
        self.padding = size // 2
        self.bias = nn.Parameter(torch.zeros(cout)) if bias else None

    def kernel(self) -> Tensor:
        """Return the kernel to convolve with."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel()
        return F.conv2d(x, kernel, self.bias, padding=self.padding, groups=self.groups)


class FusedConv(SameConv):
    """A convolution with a stored kernel."""

    def __init__(
        self, cin: int, cout: int, size: int, groups: int = 1, bias: bool = True
    ):
        super().__init__(cout, size, groups, bias)
        raw = torch.randn(cout, cin // groups, size, size)
        self.weight = nn.Parameter(normalize_kernel(raw))

    def kernel(self) -> Tensor:
        return self.weight


class NormalizedConv(SameConv):
    """A convolution with a raw kernel, normalised at run time."""

    def __init__(self, cin: int, cout: int, size: int):
        super().__init__(cout, size, groups=1, bias=True)
        self.weight = nn.Parameter(torch.randn(cout, cin, size, size))

    def kernel(self) -> Tensor:
        return normalize_kernel(self.weight)


class ReparamConv(SameConv):
    """A convolution with n raw kernels: at run time their sum / sqrt(n), normalised."""

    def __init__(
        self,
        num_kernels: int,
        cin: int,
        cout: int,
        size: int,
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__(cout, size, groups, bias)
        self.num_kernels = num_kernels
        for index in range(num_kernels):
            raw = torch.randn(cout, cin // groups, size, size)
            self.register_parameter(f"w{index}", nn.Parameter(raw))

    def kernel(self) -> Tensor:
        raw = [getattr(self, f"w{index}") for index in range(self.num_kernels)]
        return normalize_kernel(sum(raw) / math.sqrt(self.num_kernels))


class ReparamPointwise(ReparamConv):
    """A 1x1 convolution with optional resampling and noise."""

    def __init__(
        self,
        num_kernels: int,
        cin: int,
        cout: int,
        resample: Resample | None = None,
        noise_size: int | None = None,
        upsampling: Upsampling = "reference",
    ):
        super().__init__(num_kernels, cin, cout, size=1, bias=False)
        self.resample = resample
        self.has_noise = noise_size is not None
        self.upsampling = upsampling
        if resample:
            self.register_buffer("resample_filter", fir_taps())
        if noise_size is not None:
            register_noise(self, noise_size)

    def forward(self, x: Tensor, noise: Noise = "none") -> Tensor:
        if self.resample == "down":
            x = fir_down(x, self.resample_filter)
        x = super().forward(x)
        if self.resample == "up":
            x = fir_up(x, self.resample_filter, self.upsampling)
        if self.has_noise:
            x = add_noise(x, self.noise_strength, self.noise_const, noise)
        return x


class ReparamSeparableConv(nn.Module):
    """Depthwise 3x3 and pointwise 1x1, re-parametrised (the training form)."""

    def __init__(
        self,
        num_kernels: int,
        cin: int,
        cout: int,
        resample: Resample | None = None,
        noise_size: int | None = None,
        upsampling: Upsampling = "reference",
        gain: float = 1.0,
    ):
        super().__init__()
        self.gain = gain
        self.conv1 = ReparamConv(num_kernels, cin, cin, size=3, groups=cin)
        self.conv2 = ReparamPointwise(
            num_kernels, cin, cout, resample, noise_size, upsampling
        )

    def forward(self, x: Tensor, noise: Noise = "none") -> Tensor:
        x = lrelu_agc(self.conv1(x), self.gain)
        return lrelu_agc(self.conv2(x, noise), self.gain)


class Taps(nn.Module):
    """FIR taps stored once per channel, as in fused checkpoints."""

    def __init__(self, channels: int, gain: float):
        super().__init__()
        weight = (gain * fir_taps()).repeat(channels, 1, 1, 1)
        self.register_buffer("weight", weight)


class FusedDownsample(nn.Module):
    """Downsample by 2 with FIR taps from the checkpoint."""

    def __init__(self, channels: int):
        super().__init__()
        self.filter = Taps(channels, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return fir_down(x, self.filter.weight)


class FusedUpsample(nn.Module):
    """Upsample by 2 to `size` pixels, with mask and FIR taps from the checkpoint."""

    def __init__(self, channels: int, size: int, upsampling: Upsampling):
        super().__init__()
        self.upsampling = upsampling
        even = (torch.arange(size) % 2 == 0).to(torch.get_default_dtype())
        self.register_buffer("filter_const", torch.outer(even, even)[None, None])
        self.filter = Taps(channels, gain=4.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.upsampling == "efficient":
            return bilinear_up(x)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") * self.filter_const
        return filter_zero_stuffed(x, self.filter.weight)


class FusedSeparableConv(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 with fused kernels (the inference form)."""

    def __init__(
        self,
        cin: int,
        cout: int,
        resample: Resample | None = None,
        noise_size: int | None = None,
        upsampling: Upsampling = "reference",
    ):
        super().__init__()
        self.has_noise = noise_size is not None
        if noise_size is not None:
            register_noise(self, noise_size)
        self.conv1 = FusedConv(cin, cin, size=3, groups=cin)
        self.conv2 = FusedConv(cin, cout, size=1, bias=False)
        self.downsample = FusedDownsample(cin) if resample == "down" else None
        self.upsample = (
            FusedUpsample(cout, noise_size, upsampling) if resample == "up" else None
        )

    def forward(self, x: Tensor, noise: Noise = "none") -> Tensor:
        x = lrelu_agc(self.conv1(x))
        if self.downsample is not None:
            x = self.downsample(x)
        x = self.conv2(x)
        if self.upsample is not None:
            x = self.upsample(x)
        if self.has_noise:
            x = add_noise(x, self.noise_strength, self.noise_const, noise)
        return lrelu_agc(x)
