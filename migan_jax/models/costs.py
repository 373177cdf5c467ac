"""Multiply-adds of a network, read off its own layers as they run (abstractly).

The papers count with a profiler on the reference implementation, one multiply-add as
one: convolutions and dense layers; the x2 filters as 4x4 convolutions, for up-sampling
on an image stuffed with zeros; and the elementwise work of activations (slope and
gain), noise, sums and the mask that stuffs the zeros. `Cost` keeps these apart.

A layer states what it does itself, without its sub-layers, beside its `__call__`:

  @nn.nowrap
  def cost(self, args: tuple, out: jax.Array) -> Cost:

`args` are the call's positional arguments, `out` its result or the first of several.
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


def parameters_by_block(params: Any) -> dict[str, int]:
    """How many there are in each block, in the order of a forward pass."""
    blocks: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        block = block_of([part.key for part in path])
        blocks[block] = blocks.get(block, 0) + leaf.size

    def forward_order(block: str) -> tuple[int, int]:
        part, _, level = block.rpartition(" ")
        size = int(level[1:]) if level[1:].isdigit() else 0
        return (2, size) if part == "synthesis" else (1 if size else 0, -size)

    return {block: blocks[block] for block in sorted(blocks, key=forward_order)}


def count(network: nn.Module, *inputs: Any) -> dict[str, Cost]:
    """Cost by block; inputs (or their shapes) of one sample."""
    costs: dict[str, Cost] = {}

    def record(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        result = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__":
            out = result[0] if isinstance(result, tuple) else result
            cost = _own_cost(module, args, out)
            if cost is not None:
                block = block_of(module.scope.path)
                costs[block] = costs.get(block, Cost()) + cost
        return result

    def run(*inputs: Any) -> Any:
        with nn.intercept_methods(record):
            return network.init(jax.random.key(0), *inputs)

    jax.eval_shape(run, *inputs)
    return costs


def _own_cost(module: nn.Module, args: tuple, out: Any) -> Cost | None:
    if hasattr(module, "cost"):
        return module.cost(args, out)
    params = module.variables.get("params", {})
    if isinstance(module, nn.Conv | nn.Dense):  # flax's own
        return Cost(params["kernel"].size * pixels_of(out))
    own = [name for name, value in params.items() if not isinstance(value, Mapping)]
    if own:
        raise TypeError(
            f"{type(module).__name__} has parameters ({', '.join(own)}), but no method "
            "`cost` that says how many multiply-adds it does with them."
        )
    return None


def pixels_of(x: Any) -> int:
    return math.prod(x.shape[1:-1])


def size_of(x: Any) -> int:
    return math.prod(x.shape[1:])


def activation_cost(x: Any) -> Cost:
    """Slope and gain."""
    return Cost(elementwise=2 * size_of(x))


def upsampling_cost(out_size: int) -> Cost:
    """Four taps of sixteen meet a pixel, the others a zero."""
    return Cost(filter=4 * out_size, zeros=12 * out_size)
