"""Building blocks shared by all twins; images are NCHW.

The activation, FIR resampling, equalised layers and minibatch-std are StyleGAN2's,
as Co-Mod-GAN (Zhao et al., ICLR 2021, section 3) and MI-GAN (Sargsyan et al., ICCV
2023, supplementary Tables S.4 and S.5) use them.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Noise = Literal["stored", "none", "random"]
Pyramid = dict[int, Tensor]
Upsampling = Literal["reference", "efficient"]

EPSILON = 1e-8
ACTIVATION_LIMIT = 256.0
STD_GROUP = 4


def width_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Return the number of channels of the level with `resolution` pixels."""
    return min(channel_base // resolution, channel_max)


def levels_down(resolution: int) -> list[int]:
    """Return the resolutions of the levels above 4x4: `resolution`, ..., 16, 8."""
    return [2**k for k in range(resolution.bit_length() - 1, 2, -1)]


def lrelu_agc(x: Tensor, gain: float = 1.0) -> Tensor:
    """Apply leaky ReLU, a variance-preserving gain, and the activation limit."""
    x = F.leaky_relu(x, 0.2) * (math.sqrt(2.0) * gain)
    return x.clamp(-ACTIVATION_LIMIT * gain, ACTIVATION_LIMIT * gain)


# FIR resampling ---------------------------------------------------------------


def fir_taps() -> Tensor:
    """Return the outer product of [1, 3, 3, 1] with itself, normalised to sum 1."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(row, row) / 64.0


def fir_filter(x: Tensor, taps: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Filter every channel alike (4x4 taps) or by its own taps (C, 1, 4, 4)."""
    channels = x.shape[1]
    kernel = taps.to(x.dtype).expand(channels, 1, 4, 4)
    return F.conv2d(x, kernel, stride=stride, padding=padding, groups=channels)


def fir_down(x: Tensor, taps: Tensor) -> Tensor:
    """Halve height and width."""
    return fir_filter(x, taps, stride=2, padding=1)


def fir_up(x: Tensor, taps: Tensor, upsampling: Upsampling) -> Tensor:
    """Double height and width; the taps sum to 1."""
    if upsampling == "efficient":
        return bilinear_up(x)
    # Three of four zero-stuffed pixels are zero, hence the gain of 4.
    return filter_zero_stuffed(zero_stuff(x), 4.0 * taps)


def zero_stuff(x: Tensor) -> Tensor:
    """Put the pixels of x at even rows and columns of an image of zeros."""
    n, c, h, w = x.shape
    cells = F.pad(x.reshape(n, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1))
    return cells.reshape(n, c, 2 * h, 2 * w)


def filter_zero_stuffed(x: Tensor, taps: Tensor) -> Tensor:
    """Interpolate a zero-stuffed image with half-pixel centres."""
    return fir_filter(F.pad(x, (2, 1, 2, 1)), taps)


def bilinear_up(x: Tensor) -> Tensor:
    """Upsample as the FIR filter does, without multiplying zeros.

    Inside, both are bilinear interpolation with half-pixel centres. At the border the
    FIR filter sees zeros, which the padding supplies and the crop removes.
    """
    x = F.pad(x, (1, 1, 1, 1))
    x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    return x[:, :, 2:-2, 2:-2]


# Noise ------------------------------------------------------------------------


def add_noise(x: Tensor, strength: Tensor, stored: Tensor, noise: Noise) -> Tensor:
    """Add one noise image to all channels, scaled by a learned strength."""
    if noise == "none":
        return x
    if noise == "random":
        return x + strength * torch.randn_like(x[:, :1])
    if noise == "stored":
        return x + strength * tile(stored, x.shape[2], x.shape[3])
    raise ValueError(f"noise must be 'stored', 'none' or 'random', got {noise!r}.")


def tile(image: Tensor, height: int, width: int) -> Tensor:
    """Repeat an image from its top-left corner, cropped to height and width."""
    rows = (height + image.shape[0] - 1) // image.shape[0]  # ONNX's // is C's
    columns = (width + image.shape[1] - 1) // image.shape[1]
    return image.repeat(rows, columns)[:height, :width]


def register_noise(module: nn.Module, size: int) -> None:
    """Add the strength and the stored noise of one layer to a module."""
    module.noise_strength = nn.Parameter(torch.zeros(()))
    module.register_buffer("noise_const", torch.randn(size, size))


# Layers with equalised learning rate ------------------------------------------


class Dense(nn.Module):
    """A linear map whose stored weight has unit variance (over lr_mult)."""

    def __init__(
        self, cin: int, cout: int, lr_mult: float = 1.0, bias_init: float = 0.0
    ):
        super().__init__()
        self.lr_mult = lr_mult
        self.weight = nn.Parameter(torch.randn(cout, cin) / lr_mult)
        self.bias = nn.Parameter(torch.full((cout,), bias_init))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * (self.lr_mult / math.sqrt(self.weight.shape[1]))
        return F.linear(x, weight, self.bias * self.lr_mult)


class EqualizedConv(nn.Module):
    """A convolution with activation, or linear if `gain` is None.

    With `down` it downsamples by 2. The stored kernel has unit variance; it is scaled
    by the fan-in at run time.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        size: int,
        down: bool = False,
        bias: bool = True,
        gain: float | None = 1.0,
    ):
        super().__init__()
        self.down = down
        self.gain = gain
        self.weight = nn.Parameter(torch.randn(cout, cin, size, size))
        self.bias = nn.Parameter(torch.zeros(cout)) if bias else None
        if down:
            self.register_buffer("resample_filter", fir_taps())

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolve(x, self.weight / math.sqrt(self.weight[0].numel()))
        return x if self.gain is None else lrelu_agc(x, self.gain)

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        size = kernel.shape[-1]
        if not self.down:
            return F.conv2d(x, kernel, self.bias, padding=size // 2)
        if size == 1:
            return F.conv2d(fir_down(x, self.resample_filter), kernel, self.bias)
        # The filter adds one row and column, as a 3x3 kernel with stride 2 and no
        # padding needs.
        x = fir_filter(x, self.resample_filter, padding=2)
        return F.conv2d(x, kernel, self.bias, stride=2)


def minibatch_std(x: Tensor) -> Tensor:
    """Append a channel with the standard deviation over a group of samples.

    Groups are strided: with m groups, sample i is grouped with the samples congruent to
    i modulo m.
    """
    n, c, h, w = x.shape
    group = min(STD_GROUP, n)
    if n % group:
        raise ValueError(
            f"minibatch-std needs a batch that {group} divides, got {n} samples."
        )
    grouped = x.reshape(group, n // group, c, h, w)
    variance = grouped.var(dim=0, unbiased=False)
    deviation = torch.sqrt(variance + EPSILON).mean(dim=(1, 2, 3))
    channel = deviation.repeat(group).reshape(n, 1, 1, 1).expand(n, 1, h, w)
    return torch.cat([x, channel], dim=1)
