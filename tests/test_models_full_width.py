"""The published networks at full width in float32, against the PyTorch twins.

Eight images each; gradients are summed over them two at a time, to fit in memory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from parity import by_name, flax_of, inputs_like, nhwc, randomise  # noqa: E402

from migan_jax.twins import comodgan, migan  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

NETWORKS = {
    "migan_256": lambda: migan.Generator(256, upsampling="efficient"),
    "migan_512": lambda: migan.Generator(512, upsampling="efficient"),
    "migan_256_training": lambda: migan.Generator(
        256, num_kernels=9, upsampling="efficient"
    ),
    "comodgan_256": lambda: comodgan.Generator(256, upsampling="efficient"),
}
BATCH, PART = 8, 2


def squares(tree, other):
    """Sum of squared differences, and of squares of the second."""
    pairs = [(np.float64(tree[key]), np.float64(other[key])) for key in other]
    difference = sum(np.sum((a - b) ** 2) for a, b in pairs)
    return difference, sum(np.sum(b**2) for _, b in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_full_width_in_float32(name):
    twin = randomise(NETWORKS[name](), torch.float32)
    checkpoint = flax_of(twin)
    r = checkpoint.network.resolution
    shapes = [(PART, r, r, 4)]
    if isinstance(twin, comodgan.Generator):
        shapes.append((PART, twin.mapping.fc0.weight.shape[1]))
    probe = np.random.default_rng(7).standard_normal((PART, r, r, 3), np.float32)

    def loss(params, *inputs):
        variables = {"params": params, "stats": checkpoint.stats}
        rgb, pyramid = checkpoint.network.apply(variables, *inputs)
        return jnp.sum(rgb * probe), (rgb, pyramid)

    grad = jax.jit(jax.grad(loss, has_aux=True))
    total, output_error, output_norm = None, 0.0, 0.0
    for part in range(BATCH // PART):
        cases = [
            inputs_like(s, np.float32, 10 * part + i) for i, s in enumerate(shapes)
        ]
        ours, theirs = zip(*cases, strict=True)
        gradient, (rgb, pyramid) = grad(checkpoint.params, *ours)
        total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
        their_rgb, their_pyramid = twin(*theirs, pyramid=True)
        (their_rgb * torch.from_numpy(np.moveaxis(probe, -1, 1))).sum().backward()
        error, norm = squares(
            {"rgb": rgb, **pyramid},
            {k: nhwc(v) for k, v in {"rgb": their_rgb, **their_pyramid}.items()},
        )
        output_error, output_norm = output_error + error, output_norm + norm
    named = by_name(checkpoint.network, total)
    expected = {k: p.grad.numpy() for k, p in twin.named_parameters()}
    assert named.keys() == expected.keys()
    gradient_error, gradient_norm = squares(named, expected)
    outputs = np.sqrt(output_error / output_norm)
    gradients = np.sqrt(gradient_error / gradient_norm)
    print(f"{name}: outputs {outputs:.1e}, gradient {gradients:.1e}")
    assert outputs <= 1e-5
    assert gradients <= 1e-5
