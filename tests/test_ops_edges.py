"""Padding equals numpy's."""

import jax
import numpy as np
import pytest

from migan_jax.ops.edges import pad_edges, pad_reflected


@pytest.mark.parametrize(
    ("pad", "mode"), [(pad_edges, "edge"), (pad_reflected, "reflect")]
)
@pytest.mark.parametrize(
    ("height", "width", "padding"), [(5, 4, 3), (1, 2, 1), (1, 1, 2)]
)
def test_padding_equals_numpys(pad, mode, height, width, padding):
    x = np.random.default_rng(0).standard_normal((2, height, width, 3))
    x = x.astype(np.float32)
    ours = jax.jit(pad, static_argnums=1)(x, padding)
    widths = (0, 0), (padding, padding), (padding, padding), (0, 0)
    np.testing.assert_array_equal(ours, np.pad(x, widths, mode))
