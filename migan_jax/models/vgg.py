"""The convolutions of VGG-16, VGG-19 and AlexNet, whose features losses and LPIPS use.

Parameter names follow torchvision's files: `features.N`.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
from jax.typing import DTypeLike

# ImageNet's mean and standard deviation, of images in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Of the weights that losses use: published ones, or random ones with few channels.
FEATURE_SOURCES = "public", "random"


class Layer(NamedTuple):
    """A convolution and ReLU, after max pooling if `window` is not 0."""

    name: str
    features: int
    kernel: int = 3
    stride: int = 1
    window: int = 0  # of max pooling with stride 2
    tap: bool = True  # return its features
    activate: bool = True


ALEXNET = (
    Layer("features.0", 64, kernel=11, stride=4),
    Layer("features.3", 192, kernel=5, window=3),
    Layer("features.6", 384, window=3),
    Layer("features.8", 256),
    Layer("features.10", 256),
)
# The last convolution before each max pooling, which LPIPS compares.
VGG16 = (
    Layer("features.0", 64, tap=False),
    Layer("features.2", 64),
    Layer("features.5", 128, window=2, tap=False),
    Layer("features.7", 128),
    Layer("features.10", 256, window=2, tap=False),
    Layer("features.12", 256, tap=False),
    Layer("features.14", 256),
    Layer("features.17", 512, window=2, tap=False),
    Layer("features.19", 512, tap=False),
    Layer("features.21", 512),
    Layer("features.24", 512, window=2, tap=False),
    Layer("features.26", 512, tap=False),
    Layer("features.28", 512),
)
# The first convolution after each max pooling, which DeepGIN's losses compare: after
# ReLU, but the last one before it, as in the reference.
VGG19 = (
    Layer("features.0", 64),
    Layer("features.2", 64, tap=False),
    Layer("features.5", 128, window=2),
    Layer("features.7", 128, tap=False),
    Layer("features.10", 256, window=2),
    *(Layer(f"features.{index}", 256, tap=False) for index in (12, 14, 16)),
    Layer("features.19", 512, window=2),
    *(Layer(f"features.{index}", 512, tap=False) for index in (21, 23, 25)),
    Layer("features.28", 512, window=2, activate=False),
)


class Features(nn.Module):
    """Normalised images [N, H, W, 3] -> the features of every tapped layer."""

    layers: tuple[Layer, ...]
    dtype: DTypeLike | None = None  # compute dtype; None: the input's

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        taps = []
        for layer in self.layers:
            if layer.window:
                x = nn.max_pool(x, (layer.window, layer.window), (2, 2), "VALID")
            x = nn.Conv(
                layer.features,
                (layer.kernel, layer.kernel),
                (layer.stride, layer.stride),
                # AlexNet's first layer pads by 2 only.
                2 if layer.stride > 1 else layer.kernel // 2,
                dtype=self.dtype,
                precision=jax.lax.Precision.HIGHEST,
                name=layer.name,
            )(x)
            if layer.activate:
                x = nn.relu(x)
            if layer.tap:
                taps.append(x)
        return taps


def narrow(network: Features, divisor: int) -> Features:
    """Return a network with a fraction of the channels, for tests."""
    layers = (
        layer._replace(features=layer.features // divisor) for layer in network.layers
    )
    return dataclasses.replace(network, layers=tuple(layers))


NETWORKS = {"alex": Features(ALEXNET), "vgg": Features(VGG16), "vgg19": Features(VGG19)}
