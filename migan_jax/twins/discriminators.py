"""The two discriminators: a residual pyramid ending in a minibatch-std head.

MI-GAN's has re-parametrised separable convolutions (Sargsyan et al., ICCV 2023,
supplementary Table S.5); Co-Mod-GAN's is StyleGAN2's with dense 3x3 convolutions
(Zhao et al., ICLR 2021). Input: `concat(mask - 0.5, image)`, (N, 4, H, W); output:
logits, (N, 1).
"""

import math
from collections.abc import Callable

from torch import Tensor, nn

from migan_jax.twins.layers import (
    Dense,
    EqualizedConv,
    fir_taps,
    levels_down,
    lrelu_agc,
    minibatch_std,
    width_at,
)
from migan_jax.twins.separable import (
    ReparamConv,
    ReparamPointwise,
    ReparamSeparableConv,
)

# Each of the two summed branches carries half of the variance.
BRANCH_GAIN = math.sqrt(0.5)


class MIGANBlock(nn.Module):
    """Two separable convolutions and a linear skip, downsampling by 2."""

    def __init__(self, num_kernels: int, cin: int, cout: int, first: bool):
        super().__init__()
        self.fromrgb = ReparamConv(num_kernels, 4, cin, size=1) if first else None
        self.conv1 = ReparamSeparableConv(num_kernels, cin, cin)
        self.conv2 = ReparamSeparableConv(
            num_kernels, cin, cout, resample="down", gain=BRANCH_GAIN
        )
        self.skip = ReparamPointwise(num_kernels, cin, cout, resample="down")

    def forward(self, x: Tensor) -> Tensor:
        if self.fromrgb is not None:
            x = lrelu_agc(self.fromrgb(x))
        return self.skip(x) * BRANCH_GAIN + self.conv2(self.conv1(x))


class CoModGANBlock(nn.Module):
    """Two dense convolutions and a linear skip, downsampling by 2."""

    def __init__(self, cin: int, cout: int, first: bool):
        super().__init__()
        self.fromrgb = EqualizedConv(4, cin, size=1) if first else None
        self.conv0 = EqualizedConv(cin, cin, size=3)
        self.conv1 = EqualizedConv(cin, cout, size=3, down=True, gain=BRANCH_GAIN)
        self.skip = EqualizedConv(cin, cout, size=1, down=True, bias=False, gain=None)
        # Checkpoints hold taps here that nothing uses.
        self.register_buffer("resample_filter", fir_taps())

    def forward(self, x: Tensor) -> Tensor:
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        return self.skip(x) * BRANCH_GAIN + self.conv1(self.conv0(x))


class Head(nn.Module):
    """Map the 4x4 level to one logit per sample."""

    def __init__(self, conv: nn.Module, width: int):
        super().__init__()
        self.conv = conv
        self.fc = Dense(width * 4 * 4, width)
        self.out = Dense(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = lrelu_agc(self.fc(self.conv(x).flatten(1)))
        return self.out(x)


class TorchDiscriminator(nn.Module):
    """The pyramid; subclasses choose the blocks and the head's convolution."""

    def __init__(
        self,
        resolution: int,
        width: Callable[[int], int],
        block: Callable[[int, int, bool], nn.Module],
        head_conv: nn.Module,
    ):
        super().__init__()
        self.levels = levels_down(resolution)
        for r in self.levels:
            first = r == resolution
            self.add_module(f"b{r}", block(width(r), width(r // 2), first))
        self.b4 = Head(head_conv, width(4))

    def forward(self, x: Tensor) -> Tensor:
        for r in self.levels:
            x = getattr(self, f"b{r}")(x)
        return self.b4(minibatch_std(x))


class TorchMIGANDiscriminator(TorchDiscriminator):
    """MI-GAN's discriminator, with `num_kernels` kernels per convolution."""

    def __init__(
        self,
        resolution: int = 256,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_kernels: int = 9,
    ):
        def width(r: int) -> int:
            return width_at(r, channel_base, channel_max)

        def block(cin: int, cout: int, first: bool) -> nn.Module:
            return MIGANBlock(num_kernels, cin, cout, first)

        conv = ReparamSeparableConv(num_kernels, width(4) + 1, width(4))
        super().__init__(resolution, width, block, conv)


class TorchCoModGANDiscriminator(TorchDiscriminator):
    """Co-Mod-GAN's discriminator; the reference's default `channel_base` is 16384."""

    def __init__(
        self, resolution: int = 256, channel_base: int = 32768, channel_max: int = 512
    ):
        def width(r: int) -> int:
            return width_at(r, channel_base, channel_max)

        conv = EqualizedConv(width(4) + 1, width(4), size=3)
        super().__init__(resolution, width, CoModGANBlock, conv)
