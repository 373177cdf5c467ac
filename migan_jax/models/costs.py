"""Multiply-adds of a network, read off its own layers as they run (abstractly).

The papers count with a profiler on the reference implementation, one multiply-add as
one: convolutions and dense layers; the x2 filters as 4x4 convolutions, for up-sampling
on an image stuffed with zeros; and the elementwise work of activations (slope and
gain), noise, sums and the mask that stuffs the zeros. `Cost` keeps these apart.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from migan_jax.models import comodgan, discriminators, layers, migan


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds of one forward pass of one image."""

    convolution: int = 0  # convolutions and dense layers
    filter: int = 0  # x2 and plain FIR filters, without multiplying zeros
    zeros: int = 0  # what the reference's filters multiply beyond that
    elementwise: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Cost(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def as_papers_count(self) -> int:
        return self.convolution + self.filter + self.zeros + self.elementwise


def block_of(path: Sequence[str]) -> str:
    """The block that a module or parameter belongs to, such as "encoder b256"."""
    is_level = [bool(re.fullmatch(r"b\d+", key)) for key in path]
    end = is_level.index(True) + 1 if any(is_level) else 1
    return " ".join(path[:end])


def count(network: nn.Module, *inputs: Any) -> dict[str, Cost]:
    """Cost by block; inputs (or their shapes) of one sample."""
    costs: dict[str, Cost] = {}

    def record(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        result = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and type(module) in _RULES:
            block = block_of(module.scope.path)
            out = result[0] if isinstance(result, tuple) else result
            cost = _RULES[type(module)](module, args, out)
            costs[block] = costs.get(block, Cost()) + cost
        return result

    def run(*inputs: Any) -> Any:
        with nn.intercept_methods(record):
            return network.init(jax.random.key(0), *inputs)

    jax.eval_shape(run, *inputs)
    return costs


def _pixels(x: Any) -> int:
    return math.prod(x.shape[1:-1])


def _size(x: Any) -> int:
    return math.prod(x.shape[1:])


def _activation(x: Any) -> Cost:
    return Cost(elementwise=2 * _size(x))


def _filter_up(out_size: int) -> Cost:
    """Four taps of sixteen meet a pixel, the others a zero."""
    return Cost(filter=4 * out_size, zeros=12 * out_size)


def _pointwise(layer: layers.PointwiseConv, args: tuple, out: Any) -> Cost:
    (x,) = args
    convolved = _pixels(x)
    extra = Cost()
    if layer.resample == "down":
        convolved //= 4
        extra = Cost(filter=16 * convolved * x.shape[-1])
    if layer.resample == "up":
        extra = _filter_up(_size(out)) + Cost(elementwise=_size(out))
    return Cost(convolved * x.shape[-1] * layer.features) + extra


def _equalised(layer: layers.EqualisedConv, args: tuple, out: Any) -> Cost:
    x = args[0]
    cost = Cost(layer.size**2 * x.shape[-1] * _size(out))
    if layer.down:
        _, h, w, c = x.shape
        filtered = (h + 1) * (w + 1) if layer.size == 3 else h * w // 4
        cost += Cost(filter=16 * filtered * c)
    # All but the residual skips, which have no bias, are activated.
    return cost + (_activation(out) if layer.use_bias else Cost())


def _modulated(layer: comodgan.ModulatedConv, args: tuple, out: Any) -> Cost:
    x = args[0]
    products = 9 * _pixels(x) * x.shape[-1] * layer.features
    filtered = Cost(filter=16 * _size(out)) if layer.up else Cost()
    # Styles in and norms out, the activation.
    scaling = Cost(elementwise=_size(x) + _size(out))
    return Cost(products) + filtered + scaling + _activation(out)


def _noise(layer: layers.NoiseInjection, args: tuple, out: Any) -> Cost:
    return Cost(elementwise=_pixels(out) + _size(out))


def _separable(layer: layers.SeparableConv, args: tuple, out: Any) -> Cost:
    return _activation(args[0]) + _activation(out)


def _synthesis(block: Any, args: tuple, out: Any, mask: int) -> Cost:
    """The encoder's feature added, and the image so far doubled and added to.

    MI-GAN's reference stuffs zeros by repeating pixels and multiplying with a mask.
    """
    feature = args[1]
    cost = Cost(elementwise=_size(feature))
    if block.resolution > 4:
        image = 3 * _pixels(feature)
        cost += _filter_up(image) + Cost(elementwise=image * (1 + mask))
    return cost


def _dense(layer: layers.Dense, args: tuple, out: Any) -> Cost:
    return Cost(_size(args[0]) * layer.features)


_RULES: dict[type, Callable[[Any, tuple, Any], Cost]] = {
    layers.DepthwiseConv: lambda layer, args, out: Cost(9 * _size(out)),
    layers.PointwiseConv: _pointwise,
    layers.NormalisedConv: lambda layer, args, out: (
        Cost(args[0].shape[-1] * _size(out)) + _activation(out)
    ),
    layers.SeparableConv: _separable,
    layers.NoiseInjection: _noise,
    layers.EqualisedConv: _equalised,
    layers.Dense: _dense,
    comodgan.ModulatedConv: _modulated,
    comodgan.ToRGB: lambda layer, args, out: Cost(args[0].shape[-1] * _size(out)),
    migan.SynthesisBlock: lambda block, args, out: _synthesis(block, args, out, mask=1),
    comodgan.SynthesisBlock: lambda block, args, out: _synthesis(block, args, out, 0),
    comodgan.LowestBlock: lambda block, args, out: _synthesis(block, args, out, 0),
    discriminators.SeparableResidualBlock: lambda block, args, out: Cost(
        elementwise=2 * _size(out)
    ),
    discriminators.ResidualBlock: lambda block, args, out: Cost(
        elementwise=2 * _size(out)
    ),
}
