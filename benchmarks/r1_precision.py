"""R1's gradient with products of bfloat16 instead of float32, as on TPUs.

  python benchmarks/r1_precision.py

A TPU multiplies float32 as one (DEFAULT), three (HIGH) or six (HIGHEST) products of
bfloat16. One batch of scenes, a discriminator with initial weights, and the operations
in their forms for TPUs: errors relative to the norm of the gradient in float64, and,
for comparison, those of plain float32 products. All sums are in float32.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scaling import use_tpu_forms
from timing import print_table

from migan_jax.data.scenes import draw_scene
from migan_jax.losses.gan import r1_penalty
from migan_jax.models.discriminators import MIGANDiscriminator
from migan_jax.ops.conv import bfloat16_parts

SIZE, BATCH = 64, 4
# Pairs of parts to multiply, from the most significant: those of XLA's algorithms.
PARTS = {
    "DEFAULT": [(0, 0)],
    "HIGH": [(0, 0), (0, 1), (1, 0)],
    "HIGHEST": [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)],
}
PRODUCTS = {
    name: getattr(lax, name) for name in ("conv_general_dilated", "dot_general")
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    use_tpu_forms()
    rng = np.random.default_rng(0)
    images = np.stack([draw_scene(rng, SIZE) for _ in range(BATCH)]) / 127.5 - 1
    mask = rng.random((BATCH, 1, 1, 1)) > 0.5
    x = np.concatenate([np.broadcast_to(mask, images.shape)[..., :1] - 0.5, images], -1)
    network = MIGANDiscriminator(SIZE, channel_base=4096, channel_max=256)
    params = network.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 4)))["params"]

    def gradient(dtype: Any) -> Any:
        weights, batch = jax.tree.map(lambda w: jnp.asarray(w, dtype), (params, x))

        def loss(weights: Any) -> jax.Array:
            predict = functools.partial(network.apply, {"params": weights})
            return jnp.mean(r1_penalty(predict, batch))

        return jax.jit(jax.value_and_grad(loss))(weights)

    penalty, exact = gradient(jnp.float64)
    rows = []
    for name in ("float32", *PARTS):
        for product, function in PRODUCTS.items():
            if name != "float32":
                function = functools.partial(multiply_parts, function, PARTS[name])
            setattr(lax, product, function)
        value, ours = gradient(jnp.float32)
        pairs = list(zip(*map(jax.tree.leaves, (ours, exact)), strict=True))
        errors = [
            np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs if b.any()
        ]
        total = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs))
        norm = np.sqrt(sum(np.sum(b**2) for _, b in pairs))
        rows.append(
            {
                "products": name,
                "penalty": f"{abs(value / penalty - 1):.1e}",
                "gradient": f"{total / norm:.1e}",
                "median parameter": f"{np.median(errors):.1e}",
                "worst parameter": f"{max(errors):.1e}",
            }
        )
    print_table(rows)


def multiply_parts(
    function: Any, pairs: Any, x: Any, y: Any, *args: Any, **kwargs: Any
):
    """Multiply float32 arrays as a TPU does."""
    xs, ys = (
        [part.astype(array.dtype) for part in bfloat16_parts(array, 3)]
        for array in (x, y)
    )
    return sum(function(xs[i], ys[j], *args, **kwargs) for i, j in reversed(pairs))


if __name__ == "__main__":
    main()
