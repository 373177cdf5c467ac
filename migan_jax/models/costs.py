"""Multiply-adds of a network, collected from its layers by an abstract evaluation.

The papers profile the reference implementation and count a multiply-add as one. They
include convolutions and dense layers; the x2 filters as 4x4 convolutions (up-sampling
filters a zero-stuffed image); and elementwise work: activations (slope and gain),
noise, sums and the mask that inserts the zeros. `Cost` keeps these apart.

A layer defines its cost, without that of its sub-layers, next to `__call__`:

  @nn.nowrap
  def cost(self, args: tuple, out: jax.Array) -> Cost:

`args` are the call's positional arguments, `out` is its result, or its first result.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds of one forward pass of one image."""

    convolution: int = 0  # convolutions and dense layers
    filter: int = 0  # x2 and plain FIR filters, without multiplying zeros
    zeros: int = 0  # the reference's multiplications by stuffed zeros
    elementwise: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Cost(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def papers_total(self) -> int:
        return self.convolution + self.filter + self.zeros + self.elementwise


def block_of(path: Sequence[str]) -> str:
    """Return the block of a module or parameter, such as "encoder b256"."""
    is_level = [bool(re.fullmatch(r"b\d+", key)) for key in path]
    end = is_level.index(True) + 1 if any(is_level) else 1
    return " ".join(path[:end])


def parameters_by_block(params: Any) -> dict[str, int]:
    """Count the parameters of each block, in the order of a forward pass."""
    blocks: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        block = block_of([part.key for part in path])
        blocks[block] = blocks.get(block, 0) + leaf.size

    def forward_order(block: str) -> tuple[int, int]:
        part, _, level = block.rpartition(" ")
        size = int(level[1:]) if level[1:].isdigit() else 0
        return (
            (2, size) if part in ("synthesis", "decoder") else (1 if size else 0, -size)
        )

    return {block: blocks[block] for block in sorted(blocks, key=forward_order)}


def count(network: nn.Module, *inputs: Any) -> dict[str, Cost]:
    """Return the cost of each block for one sample's inputs, or their shapes."""
    costs: dict[str, Cost] = {}

    def record(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        result = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__":
            out = result[0] if isinstance(result, tuple) else result
            cost = _layer_cost(module, args, out)
            if cost is not None:
                block = block_of(module.scope.path)
                costs[block] = costs.get(block, Cost()) + cost
        return result

    def run(*inputs: Any) -> Any:
        with nn.intercept_methods(record):
            return network.init(jax.random.key(0), *inputs)

    jax.eval_shape(run, *inputs)
    return costs


def _layer_cost(module: nn.Module, args: tuple, out: Any) -> Cost | None:
    if hasattr(module, "cost"):
        return module.cost(args, out)
    params = module.variables.get("params", {})
    if isinstance(module, nn.Conv | nn.Dense):  # flax's own
        return Cost(params["kernel"].size * num_pixels(out))
    direct = [name for name, value in params.items() if not isinstance(value, Mapping)]
    if direct:
        raise TypeError(
            f"{type(module).__name__} has parameters ({', '.join(direct)}) but no "
            "method `cost`. Define one that returns its multiply-adds."
        )
    return None


def num_pixels(x: Any) -> int:
    return math.prod(x.shape[1:-1])


def num_elements(x: Any) -> int:
    return math.prod(x.shape[1:])


def activation_cost(x: Any) -> Cost:
    """Multiplications by slope and gain."""
    return Cost(elementwise=2 * num_elements(x))


def upsampling_cost(out_size: int) -> Cost:
    """4 of the 16 taps multiply a pixel, 12 a stuffed zero."""
    return Cost(filter=4 * out_size, zeros=12 * out_size)
