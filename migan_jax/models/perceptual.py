"""The convolutions of AlexNet and VGG-16, whose features LPIPS compares.

Parameter names follow torchvision's files: `features.N`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax


class Layer(NamedTuple):
    """A convolution and ReLU, after max pooling if `window` is not 0."""

    name: str
    features: int
    kernel: int = 3
    stride: int = 1
    window: int = 0  # of max pooling with stride 2
    tap: bool = True  # return its features


ALEXNET = (
    Layer("features.0", 64, kernel=11, stride=4),
    Layer("features.3", 192, kernel=5, window=3),
    Layer("features.6", 384, window=3),
    Layer("features.8", 256),
    Layer("features.10", 256),
)
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


class Features(nn.Module):
    """Normalised images [N, H, W, 3] -> the features of every tapped layer."""

    layers: tuple[Layer, ...]

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
                precision=jax.lax.Precision.HIGHEST,
                name=layer.name,
            )(x)
            x = nn.relu(x)
            if layer.tap:
                taps.append(x)
        return taps


NETWORKS = {"alex": Features(ALEXNET), "vgg": Features(VGG16)}
