"""MI-GAN's generator (Sargsyan et al., ICCV 2023, supplementary Table S.4).

The network has two forms. The training form sums n kernels per convolution and
normalises them; the inference form stores the fused kernels and the FIR constants.
Where the paper and the released checkpoints differ, this follows the checkpoints: there
is no noise at 4x4.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from migan_jax.twins.layers import (
    Noise,
    Pyramid,
    Upsampling,
    fir_taps,
    fir_up,
    levels_down,
    lrelu_agc,
    width_at,
)
from migan_jax.twins.separable import (
    FusedConv,
    FusedSeparableConv,
    FusedUpsample,
    NormalizedConv,
    ReparamConv,
    ReparamSeparableConv,
    Resample,
)


@dataclass(frozen=True)
class Variant:
    """Builds layers of the inference form (no num_kernels) or the training form."""

    num_kernels: int | None
    upsampling: Upsampling

    @property
    def fused(self) -> bool:
        return self.num_kernels is None

    def separable(
        self,
        cin: int,
        cout: int,
        resample: Resample | None = None,
        noise_size: int | None = None,
    ) -> nn.Module:
        if self.fused:
            return FusedSeparableConv(cin, cout, resample, noise_size, self.upsampling)
        return ReparamSeparableConv(
            self.num_kernels, cin, cout, resample, noise_size, self.upsampling
        )

    def from_rgb(self, cout: int) -> nn.Module:
        conv = FusedConv if self.fused else NormalizedConv
        return conv(4, cout, size=1)

    def to_rgb(self, cin: int) -> nn.Module:
        if self.fused:
            return FusedConv(cin, 3, size=1)
        return ReparamConv(self.num_kernels, cin, 3, size=1)


class EncoderBlock(nn.Module):
    """Return one level's downsampled features for the next level, and its features."""

    def __init__(self, variant: Variant, cin: int, cout: int, first: bool):
        super().__init__()
        self.fromrgb = variant.from_rgb(cin) if first else None
        self.conv1 = variant.separable(cin, cin)
        self.conv2 = variant.separable(cin, cout, resample="down")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.fromrgb is not None:
            x = lrelu_agc(self.fromrgb(x))
        features = self.conv1(x)
        return self.conv2(features), features


class EncoderLastBlock(nn.Module):
    """The 4x4 level, which keeps its size."""

    def __init__(self, variant: Variant, width: int):
        super().__init__()
        self.conv1 = variant.separable(width, width)
        self.conv2 = variant.separable(width, width)
        if not variant.fused:
            # Training checkpoints hold taps here that nothing uses.
            self.conv2.conv2.register_buffer("resample_filter", fir_taps())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv1(x)
        return self.conv2(features), features


class SynthesisFirstBlock(nn.Module):
    """The 4x4 level: features and the coarsest RGB."""

    def __init__(self, variant: Variant, width: int):
        super().__init__()
        self.conv1 = variant.separable(width, width)
        self.conv2 = variant.separable(width, width)
        self.torgb = variant.to_rgb(width)

    def forward(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv2(self.conv1(x) + features)
        return x, self.torgb(x)


class SynthesisBlock(nn.Module):
    """Upsample, add the encoder's features, and output RGB."""

    def __init__(self, variant: Variant, cin: int, cout: int, size: int):
        super().__init__()
        self.upsampling = variant.upsampling
        self.conv1 = variant.separable(cin, cout, resample="up", noise_size=size)
        self.conv2 = variant.separable(cout, cout, noise_size=size)
        self.torgb = variant.to_rgb(cout)
        self.upsample = (
            FusedUpsample(3, size, variant.upsampling) if variant.fused else None
        )
        if not variant.fused:
            self.register_buffer("resample_filter", fir_taps())

    def forward(
        self, x: Tensor, features: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        x = self.conv1(x, noise) + features
        x = self.conv2(x, noise)
        return x, self.torgb(x)

    def upsample_image(self, image: Tensor) -> Tensor:
        """Upsample the coarser image to this level's size."""
        if self.upsample is not None:
            return self.upsample(image)
        return fir_up(image, self.resample_filter, self.upsampling)


class Encoder(nn.Module):
    """Map the masked image to features at every resolution."""

    def __init__(
        self, variant: Variant, resolution: int, channel_base: int, channel_max: int
    ):
        super().__init__()
        self.levels = levels_down(resolution)
        for r in self.levels:
            cin = width_at(r, channel_base, channel_max)
            cout = width_at(r // 2, channel_base, channel_max)
            block = EncoderBlock(variant, cin, cout, first=r == resolution)
            self.add_module(f"b{r}", block)
        self.b4 = EncoderLastBlock(variant, width_at(4, channel_base, channel_max))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        features = {}
        for r in [*self.levels, 4]:
            x, features[r] = getattr(self, f"b{r}")(x)
        return x, features


class Synthesis(nn.Module):
    """Map the encoder's features to the image, coarse to fine."""

    def __init__(
        self, variant: Variant, resolution: int, channel_base: int, channel_max: int
    ):
        super().__init__()
        self.levels = levels_down(resolution)[::-1]
        self.b4 = SynthesisFirstBlock(variant, width_at(4, channel_base, channel_max))
        for r in self.levels:
            cin = width_at(r // 2, channel_base, channel_max)
            cout = width_at(r, channel_base, channel_max)
            self.add_module(f"b{r}", SynthesisBlock(variant, cin, cout, size=r))

    def forward(
        self, x: Tensor, features: dict[int, Tensor], noise: Noise
    ) -> tuple[Tensor, Pyramid]:
        x, image = self.b4(x, features[4])
        pyramid = {4: image}
        for r in self.levels:
            block = getattr(self, f"b{r}")
            x, pyramid[r] = block(x, features[r], noise)
            image = block.upsample_image(image) + pyramid[r]
        return image, pyramid


class TorchMIGANGenerator(nn.Module):
    """Inpaint `concat(mask - 0.5, image * mask)`, (N, 4, H, W), to (N, 3, H, W).

    Without `num_kernels` this is the inference form, with it the training form.
    Both kinds of upsampling give equal results from the same state dict. The reference
    one computes exactly what the released models do, including zero-stuffing.
    """

    def __init__(
        self,
        resolution: int = 256,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_kernels: int | None = None,
        upsampling: Upsampling = "reference",
    ):
        super().__init__()
        self.resolution = resolution
        self.fixed_size = num_kernels is None and upsampling == "reference"
        variant = Variant(num_kernels, upsampling)
        self.synthesis = Synthesis(variant, resolution, channel_base, channel_max)
        self.encoder = Encoder(variant, resolution, channel_base, channel_max)

    def forward(
        self, x: Tensor, noise: Noise = "stored", pyramid: bool = False
    ) -> Tensor | tuple[Tensor, Pyramid]:
        """Return the image; with `pyramid` also each level's RGB, by resolution."""
        self.check_size(x)
        bottom, features = self.encoder(x)
        image, levels = self.synthesis(bottom, features, noise)
        return (image, levels) if pyramid else image

    def check_size(self, x: Tensor) -> None:
        """Raise ValueError for sizes that cannot be halved down to the last level."""
        height, width = x.shape[2:]
        if self.fixed_size and (height, width) != (self.resolution, self.resolution):
            raise ValueError(
                f"reference upsampling needs {self.resolution}x{self.resolution} "
                f"pixels, got {height}x{width}; use upsampling='efficient'."
            )
        stride = self.resolution // 4
        if height % stride or width % stride:
            raise ValueError(
                f"height and width must be multiples of {stride}, got {height}x{width}."
            )
