"""MI-GAN's generator (Sargsyan et al., ICCV 2023, supplementary Table S.4).

Two forms of one network: the training form sums n kernels per convolution and
normalises them; the inference form stores the fused kernels and the FIR constants.
Where the paper and the released checkpoints differ, the checkpoints hold: there is
no noise at 4x4.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from migan_jax.twins.layers import (
    Noise,
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

Pyramid = dict[int, Tensor]


@dataclass(frozen=True)
class Form:
    """Builds the layers of the inference form (no num_kernels) or training form."""

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
    """The features of one level, and its halved image for the next one."""

    def __init__(self, form: Form, cin: int, cout: int, first: bool):
        super().__init__()
        self.fromrgb = form.from_rgb(cin) if first else None
        self.conv1 = form.separable(cin, cin)
        self.conv2 = form.separable(cin, cout, resample="down")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.fromrgb is not None:
            x = lrelu_agc(self.fromrgb(x))
        features = self.conv1(x)
        return self.conv2(features), features


class EncoderLastBlock(nn.Module):
    """The 4x4 level, which keeps its size."""

    def __init__(self, form: Form, width: int):
        super().__init__()
        self.conv1 = form.separable(width, width)
        self.conv2 = form.separable(width, width)
        if not form.fused:
            # Training checkpoints hold taps here that nothing uses.
            self.conv2.conv2.register_buffer("resample_filter", fir_taps())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv1(x)
        return self.conv2(features), features


class SynthesisFirstBlock(nn.Module):
    """The 4x4 level: features and the first, coarsest image."""

    def __init__(self, form: Form, width: int):
        super().__init__()
        self.conv1 = form.separable(width, width)
        self.conv2 = form.separable(width, width)
        self.torgb = form.to_rgb(width)

    def forward(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv2(self.conv1(x) + features)
        return x, self.torgb(x)


class SynthesisBlock(nn.Module):
    """Doubles the size, adds the encoder's features, and gives an image."""

    def __init__(self, form: Form, cin: int, cout: int, size: int):
        super().__init__()
        self.upsampling = form.upsampling
        self.conv1 = form.separable(cin, cout, resample="up", noise_size=size)
        self.conv2 = form.separable(cout, cout, noise_size=size)
        self.torgb = form.to_rgb(cout)
        self.upsample = FusedUpsample(3, size, form.upsampling) if form.fused else None
        if not form.fused:
            self.register_buffer("resample_filter", fir_taps())

    def forward(
        self, x: Tensor, features: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        x = self.conv1(x, noise) + features
        x = self.conv2(x, noise)
        return x, self.torgb(x)

    def upsample_image(self, image: Tensor) -> Tensor:
        """Bring the coarser image to this level's size."""
        if self.upsample is not None:
            return self.upsample(image)
        return fir_up(image, self.resample_filter, self.upsampling)


class Encoder(nn.Module):
    """From the masked image to features at every resolution."""

    def __init__(
        self, form: Form, resolution: int, channel_base: int, channel_max: int
    ):
        super().__init__()
        self.levels = levels_down(resolution)
        for r in self.levels:
            cin = width_at(r, channel_base, channel_max)
            cout = width_at(r // 2, channel_base, channel_max)
            block = EncoderBlock(form, cin, cout, first=r == resolution)
            self.add_module(f"b{r}", block)
        self.b4 = EncoderLastBlock(form, width_at(4, channel_base, channel_max))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        features = {}
        for r in [*self.levels, 4]:
            x, features[r] = getattr(self, f"b{r}")(x)
        return x, features


class Synthesis(nn.Module):
    """From the encoder's features to the image, coarse to fine."""

    def __init__(
        self, form: Form, resolution: int, channel_base: int, channel_max: int
    ):
        super().__init__()
        self.levels = levels_down(resolution)[::-1]
        self.b4 = SynthesisFirstBlock(form, width_at(4, channel_base, channel_max))
        for r in self.levels:
            cin = width_at(r // 2, channel_base, channel_max)
            cout = width_at(r, channel_base, channel_max)
            self.add_module(f"b{r}", SynthesisBlock(form, cin, cout, size=r))

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


class Generator(nn.Module):
    """Inpaints `concat(mask - 0.5, image * mask)`, (N, 4, H, W), as (N, 3, H, W).

    Without `num_kernels` this is the inference form, with it the training form.
    The two kinds of upsampling give equal results from the same state dict; the
    reference one is what the released models compute, zero-stuffing included.
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
        form = Form(num_kernels, upsampling)
        self.synthesis = Synthesis(form, resolution, channel_base, channel_max)
        self.encoder = Encoder(form, resolution, channel_base, channel_max)

    def forward(
        self, x: Tensor, noise: Noise = "stored", pyramid: bool = False
    ) -> Tensor | tuple[Tensor, Pyramid]:
        """The image; with `pyramid` also each level's own to-RGB, by resolution."""
        self.check_size(x)
        bottom, features = self.encoder(x)
        image, levels = self.synthesis(bottom, features, noise)
        return (image, levels) if pyramid else image

    def check_size(self, x: Tensor) -> None:
        """Raise on a size that the network cannot halve down to its last level."""
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
