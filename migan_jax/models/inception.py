"""The Inception v3 (2015-12-05) that FID, KID, P-IDS and U-IDS take features from.

TensorFlow's network of that date, with its pooling: averages exclude the padding, and
the last block uses max pooling. Batch norms are folded into the convolutions, because
the network is only evaluated. Parameter names follow pytorch-fid's file.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

SIZE = 299  # pixels per side of its training images


class Unit(NamedTuple):
    """A convolution, its folded batch norm and a ReLU."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


BranchStep = Unit | tuple[Unit, ...]  # a tuple, the last step, runs in parallel
Branch = tuple[BranchStep, ...]

THREE, FIVE, ROW, COLUMN = (3, 3), (5, 5), (1, 7), (7, 1)

# Layers before the blocks; None is max pooling with stride 2.
STEM: tuple[Unit | None, ...] = (
    Unit("Conv2d_1a_3x3", 32, THREE, 2, "VALID"),
    Unit("Conv2d_2a_3x3", 32, THREE, 1, "VALID"),
    Unit("Conv2d_2b_3x3", 64, THREE),
    None,
    Unit("Conv2d_3b_1x1", 80),
    Unit("Conv2d_4a_3x3", 192, THREE, 1, "VALID"),
    None,
)


class Inception(nn.Module):
    """Images of 299x299 pixels in [-1, 1] -> features [N, 2048]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for unit in STEM:
            x = (
                _max_pool_stride_2(x)
                if unit is None
                else Convolution(unit, name=unit.name)(x)
            )
        for pooled, letter in ((32, "b"), (64, "c"), (64, "d")):
            x = Block(_at_35(pooled), "average", name=f"Mixed_5{letter}")(x)
        x = Block(TO_17, "halve", name="Mixed_6a")(x)
        for inner, letter in ((128, "b"), (160, "c"), (160, "d"), (192, "e")):
            x = Block(_at_17(inner), "average", name=f"Mixed_6{letter}")(x)
        x = Block(TO_8, "halve", name="Mixed_7a")(x)
        x = Block(AT_8, "average", name="Mixed_7b")(x)
        x = Block(AT_8, "maximum", name="Mixed_7c")(x)
        return jnp.mean(x, axis=(1, 2))


class Convolution(nn.Module):
    unit: Unit

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        unit = self.unit
        strides = unit.stride, unit.stride
        x = nn.Conv(
            unit.features,
            unit.kernel,
            strides,
            unit.padding,
            precision=jax.lax.Precision.HIGHEST,  # accelerators would round float32
            name="conv",
        )(x)
        return nn.relu(x)


class Block(nn.Module):
    """Parallel branches, the last after pooling, concatenated."""

    branches: tuple[Branch, ...]
    pooling: str  # average, maximum, or halve (max pooling with stride 2)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = []
        for branch in self.branches[:-1] if self.pooling != "halve" else self.branches:
            outputs += _run(branch, x)
        if self.pooling == "halve":
            return jnp.concatenate([*outputs, _max_pool_stride_2(x)], axis=-1)
        pooled = {
            "average": lambda x: nn.avg_pool(
                x, THREE, (1, 1), "SAME", count_include_pad=False
            ),
            "maximum": lambda x: nn.max_pool(x, THREE, (1, 1), "SAME"),
        }[self.pooling](x)
        return jnp.concatenate([*outputs, *_run(self.branches[-1], pooled)], axis=-1)


def _run(branch: Branch, x: jax.Array) -> list[jax.Array]:
    """Apply a branch; call it in a compact method, which owns the submodules."""
    for step in branch:
        if not isinstance(step, Unit):
            return [Convolution(unit, name=unit.name)(x) for unit in step]
        x = Convolution(step, name=step.name)(x)
    return [x]


def _max_pool_stride_2(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, THREE, (2, 2), "VALID")


def _at_35(pooled: int) -> tuple[Branch, ...]:
    return (
        (Unit("branch1x1", 64),),
        (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, FIVE)),
        (
            Unit("branch3x3dbl_1", 64),
            Unit("branch3x3dbl_2", 96, THREE),
            Unit("branch3x3dbl_3", 96, THREE),
        ),
        (Unit("branch_pool", pooled),),
    )


TO_17: tuple[Branch, ...] = (
    (Unit("branch3x3", 384, THREE, 2, "VALID"),),
    (
        Unit("branch3x3dbl_1", 64),
        Unit("branch3x3dbl_2", 96, THREE),
        Unit("branch3x3dbl_3", 96, THREE, 2, "VALID"),
    ),
)


def _at_17(inner: int) -> tuple[Branch, ...]:
    return (
        (Unit("branch1x1", 192),),
        (
            Unit("branch7x7_1", inner),
            Unit("branch7x7_2", inner, ROW),
            Unit("branch7x7_3", 192, COLUMN),
        ),
        (
            Unit("branch7x7dbl_1", inner),
            Unit("branch7x7dbl_2", inner, COLUMN),
            Unit("branch7x7dbl_3", inner, ROW),
            Unit("branch7x7dbl_4", inner, COLUMN),
            Unit("branch7x7dbl_5", 192, ROW),
        ),
        (Unit("branch_pool", 192),),
    )


TO_8: tuple[Branch, ...] = (
    (Unit("branch3x3_1", 192), Unit("branch3x3_2", 320, THREE, 2, "VALID")),
    (
        Unit("branch7x7x3_1", 192),
        Unit("branch7x7x3_2", 192, ROW),
        Unit("branch7x7x3_3", 192, COLUMN),
        Unit("branch7x7x3_4", 192, THREE, 2, "VALID"),
    ),
)

AT_8: tuple[Branch, ...] = (
    (Unit("branch1x1", 320),),
    (
        Unit("branch3x3_1", 384),
        (Unit("branch3x3_2a", 384, (1, 3)), Unit("branch3x3_2b", 384, (3, 1))),
    ),
    (
        Unit("branch3x3dbl_1", 448),
        Unit("branch3x3dbl_2", 384, THREE),
        (Unit("branch3x3dbl_3a", 384, (1, 3)), Unit("branch3x3dbl_3b", 384, (3, 1))),
    ),
    (Unit("branch_pool", 192),),
)
