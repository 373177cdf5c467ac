"""DeepGIN (Li et al. 2020): a coarse and a refinement generator, two discriminators.

The refinement's bottleneck has dilated residual blocks (SPD, section 3.1), and its
features attend to each other at three scales (MSSA, 3.2). Back projection (3.3)
corrects the output by its difference from a small completion. Convolutions replicate
edges; resizing aligns corners. Images are in [0, 1], holes are 1, and so is a masked
image in its hole.

`LADDER` has the rows of the paper's Table 1.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from migan_jax.models.costs import Cost, num_elements, num_pixels
from migan_jax.models.layers import (
    PaddedConv,
    PlainPointwise,
    convolve_plain,
    make_run,
)
from migan_jax.models.spectral import SpectralConv
from migan_jax.ops.activation import NEGATIVE_SLOPE
from migan_jax.ops.align_corners import resize_align_corners
from migan_jax.ops.attention import attend
from migan_jax.ops.edges import pad_edges
from migan_jax.ops.partition import split_images
from migan_jax.ops.precision import at_least_float32, compute_dtype

# Dilations in the order in which their features are concatenated.
SPD_8, SPD_4 = (2, 3, 4, 5, 6, 8, 10, 1), (2, 3, 4, 5)


class Row(NamedTuple):
    """A row of Table 1: what its generators have."""

    parameters: str  # as the paper states them
    refines: bool = True
    dilations: tuple[tuple[int, ...], tuple[int, ...]] = ((1,), (1,))  # of G1, of G2
    attends: bool = False  # at the bottleneck
    has_skips: bool = False  # with attention, at an eighth and a quarter of the size
    back_projects: bool = False


_MSSA = Row("42.892", attends=True, has_skips=True)
_SPD = SPD_8, SPD_4
LADDER = {
    "coarse_only": Row("8.168", refines=False),
    "std": Row("40.850"),
    "std_sa": Row("41.376", attends=True),
    "std_mssa": _MSSA,
    "dil_mssa": _MSSA._replace(dilations=((2,), (2,))),
    "spd_mssa": _MSSA._replace(dilations=_SPD),
    "full": _MSSA._replace(parameters="42.930", dilations=_SPD, back_projects=True),
}


class DeepGINGenerator(nn.Module):
    """Complete images: concat(image, white in the hole; hole), [N, H, W, 4].

    Returns the output [N, H, W, 3], of which only the hole is used, and those of
    earlier stages by name: "coarse", and with back projection "lr", at a quarter of the
    size, and "refined", the output before it.
    """

    resolution: int = 256  # that it is trained at; H and W are any multiples of stride
    variant: str = "full"  # in LADDER
    channels: int = 64  # after the first down-sampling
    dtype: DTypeLike | None = None  # compute dtype; None: the input's
    remat: bool = False  # recompute activations: less memory, a third more time
    stride: ClassVar = 16  # input pixels per pixel of the lowest level

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        return [_image_shape(self.resolution, 4)]

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        _, height, width, channels = x.shape
        if channels != 4 or height % self.stride or width % self.stride:
            raise ValueError(
                f"DeepGIN takes [N, H, W, 4] with H and W divisible by {self.stride}, "
                f"not {list(x.shape)}."
            )
        row = LADDER[self.variant]
        settings = {"channels": self.channels, "remat": self.remat}
        dtype = compute_dtype(self.dtype, x)
        known, hole = at_least_float32(x[..., :3]), at_least_float32(x[..., 3:])

        def paste(image: jax.Array) -> jax.Array:
            return image * hole + known * (1 - hole)

        coarse = Coarse(row.dilations[0], **settings, name="coarse")(x.astype(dtype))
        if not row.refines:
            return coarse, {}
        x = jnp.concatenate([paste(coarse), hole], axis=-1).astype(dtype)
        refined, heads = Refinement(row, **settings, name="refinement")(x)
        if heads is None:
            return refined, {"coarse": coarse}
        low, alpha = heads
        image = paste(refined)
        residual = low - resize_align_corners(image, *low.shape[1:3])
        output = image + resize_align_corners(residual, height, width) * alpha
        return output, {"coarse": coarse, "lr": low, "refined": refined}


class Coarse(nn.Module):
    """G1: an encoder to an eighth of the size, six residual blocks, and a decoder."""

    dilations: tuple[int, ...]
    channels: int
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        run = make_run(self.remat)
        c = self.channels
        for index, features in enumerate((c // 2, c, 2 * c, 4 * c), 1):
            x = run(_encoder(features, index), x)
        for index in range(1, 7):
            x = run(SPDBlock(self.dilations, name=f"spd{index}"), x)
        for index, features in enumerate((2 * c, c, c // 2), 1):
            x = run(UpConv(features, name=f"dec{index}"), x)
        # Outputs are computed in float32, not rounded to half precision.
        return run(PaddedConv(3, 7, activate=False, name="out"), at_least_float32(x))


class Refinement(nn.Module):
    """G2: to a sixteenth of the size and back, with attention and skips by `row`.

    Returns the output, and with back projection a small completion and the weight of
    the correction (alpha).
    """

    row: Row
    channels: int
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, Any]:
        run = make_run(self.remat)
        c = self.channels
        skips = []
        for index, features in enumerate((c // 2, c, 2 * c, 4 * c, 8 * c), 1):
            x = run(_encoder(features, index), x)
            skips.append(x)
        for index in range(1, 7):
            x = run(SPDBlock(self.row.dilations[1], name=f"spd{index}"), x)
            if index == 3 and self.row.attends:
                x = run(NonLocal(name="sa16"), x)
        # From an eighth and a quarter of the size.
        levels = (4 * c, 2 * c, 32, skips[3]), (2 * c, c, 64, skips[2])
        for index, (features, narrow, name, skip) in enumerate(levels, 1):
            x = run(UpConv(features, name=f"dec{index}"), x)
            if self.row.has_skips:
                skip = run(PaddedConv(narrow, name=f"skip{name}"), skip)
                skip = run(NonLocal(name=f"sa{name}"), skip)
                x = jnp.concatenate([x, skip], axis=-1)
                x = run(PaddedConv(features, name=f"mix{index}"), x)
        quarter = x
        x = run(UpConv(c, name="dec3"), x)
        x = run(UpConv(c // 2, name="dec4"), x)
        x = at_least_float32(x)
        output = run(PaddedConv(3, 7, activate=False, name="out"), x)
        if not self.row.back_projects:
            return output, None
        low = at_least_float32(run(PaddedConv(c // 2, name="lr1"), quarter))
        low = run(PaddedConv(3, activate=False, name="lr2"), low)
        alpha = run(PaddedConv(1, activate=False, name="alpha"), x)
        return output, (low, nn.sigmoid(alpha))


def _image_shape(resolution: int, channels: int) -> jax.ShapeDtypeStruct:
    shape = 1, resolution, resolution, channels
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# Layers.


def _encoder(features: int, index: int) -> PaddedConv:
    """Make the first layer of an encoder, or one that halves the size."""
    size, stride = (7, 1) if index == 1 else (4, 2)
    return PaddedConv(features, size, stride, name=f"enc{index}")


class UpConv(nn.Module):
    """Up-sampling to twice the size, and a 3x3 convolution with leaky ReLU."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, h, w, _ = x.shape
        x = pad_edges(resize_align_corners(x, 2 * h, 2 * w), 1)
        return nn.leaky_relu(convolve_plain(self, x, self.features, 3), NEGATIVE_SLOPE)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        upsampled = num_pixels(out) * x.shape[-1]
        activation = num_elements(out)
        return Cost(
            9 * x.shape[-1] * num_elements(out),
            filter=4 * upsampled,
            elementwise=activation,
        )


class SPDBlock(nn.Module):
    """Parallel 3x3 convolutions of several dilations, ReLU, and one 3x3 convolution.

    With more than one dilation, it is the paper's SPD block (spatial pyramid dilation).
    All have the same number of parameters.
    """

    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        reach = max(self.dilations)
        # Else the weights of both blocks with one branch could be mistaken.
        kind = "dilated" if self.dilations == (2,) else "branch"
        padded = pad_edges(x, reach)  # once for all branches
        branches = [
            BranchConv(features // len(self.dilations), d, name=f"{kind}{index}")(
                _crop(padded, reach - d)
            )
            for index, d in enumerate(self.dilations, 1)
        ]
        y = jnp.concatenate(branches, axis=-1)
        return x + PaddedConv(features, activate=False, name="fuse")(y)

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        """The sum."""
        return Cost(elementwise=num_elements(out))


class BranchConv(nn.Module):
    """Dilated 3x3 convolution with ReLU; its input has the padding already."""

    features: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(
            convolve_plain(self, x, self.features, 3, dilation=self.dilation)
        )

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        (x,) = args
        return Cost(9 * x.shape[-1] * num_elements(out))


class NonLocal(nn.Module):
    """A residual block in which each pixel attends to all others (Wang et al. 2018)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1]
        theta, phi, g = (
            PlainPointwise(features // 2, name=name)(x)
            for name in ("theta", "phi", "g")
        )
        return x + PlainPointwise(features, name="W")(attend(theta, phi, g))

    @nn.nowrap
    def cost(self, args: tuple, out: jax.Array) -> Cost:
        """Scores, their products with the values, and the sum."""
        pairs = num_pixels(out) ** 2
        return Cost(pairs * out.shape[-1], elementwise=num_elements(out))


def _crop(x: jax.Array, margin: int) -> jax.Array:
    _, h, w, _ = x.shape
    return x[:, margin : h - margin, margin : w - margin]


# The discriminators.


class DeepGINDiscriminator(nn.Module):
    """Two patch discriminators, at full and at half resolution.

    Takes concat(masked image, image), [N, H, W, 6], and returns both scores, of which
    every channel is one: [N, h, w, 4 * channels].
    """

    resolution: int = 256  # that it is trained at
    channels: int = 64
    dtype: DTypeLike | None = None  # compute dtype; None: the input's

    @nn.nowrap
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of one sample's inputs."""
        return [_image_shape(self.resolution, 6)]

    @nn.compact
    def __call__(self, x: jax.Array) -> Sequence[jax.Array]:
        dtype = compute_dtype(self.dtype, x)
        return tuple(
            PatchDiscriminator(self.channels, name=name)(
                split_images(image.astype(dtype))
            )
            for name, image in (("full", x), ("half", halve(x)))
        )


def halve(x: jax.Array) -> jax.Array:
    """Halve images by 3x3 averages, of the pixels inside the image."""
    return nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False)


class PatchDiscriminator(nn.Module):
    """Four spectrally normalised 4x4 convolutions, zero padding 2."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.channels
        layers = (c, 2), (2 * c, 2), (4 * c, 1), (4 * c, 1)
        for index, (features, stride) in enumerate(layers, 1):
            if index > 1:
                x = nn.leaky_relu(x, NEGATIVE_SLOPE)
            x = SpectralConv(features, 4, stride, padding=2, name=f"conv{index}")(x)
        return at_least_float32(x)
