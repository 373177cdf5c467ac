"""FIR resampling against its definition: zero stuffing and loops over 16 taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from migan_jax.ops import resample
from migan_jax.ops.resample import downsample2x, fir_filter, upsample2x


def sixteen_taps(x, stride=1):
    """Correlate a padded image with the outer product of [1, 3, 3, 1], sum 1."""
    weights = [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    n, h, w, c = x.shape
    y = np.zeros((n, (h - 4) // stride + 1, (w - 4) // stride + 1, c))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            for u in range(4):
                for v in range(4):
                    tap = weights[u] * weights[v]
                    y[:, i, j] += tap * x[:, i * stride + u, j * stride + v]
    return y


def pad(x, before, after):
    return np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))


def up_by_definition(x):
    n, h, w, c = x.shape
    stuffed = np.zeros((n, 2 * h, 2 * w, c))
    for i in range(h):
        for j in range(w):
            stuffed[:, 2 * i, 2 * j] = x[:, i, j]
    return 4 * sixteen_taps(pad(stuffed, 2, 1))


def down_by_definition(x):
    return sixteen_taps(pad(x, 1, 1), stride=2)


def filter_by_definition(padding):
    return lambda x: sixteen_taps(pad(x, padding, padding))


def filter_with(padding):
    return lambda x: fir_filter(x, padding)


def filter_convolution_with(padding):
    return lambda x: resample._filter_convolution(x, padding)


# {name: (operation, definition, form for TPUs, size)}
CASES = {
    f"up-{h}x{w}": (upsample2x, up_by_definition, resample._up_convolution, (h, w))
    for h, w in [(1, 1), (1, 3), (5, 3)]
}
CASES |= {
    f"down-{h}x{w}": (
        downsample2x,
        down_by_definition,
        resample._down_convolution,
        (h, w),
    )
    for h, w in [(2, 2), (2, 6)]
}
CASES |= {
    f"filter{p}-{h}x{w}": (
        filter_with(p),
        filter_by_definition(p),
        filter_convolution_with(p),
        (h, w),
    )
    for p, h, w in [(0, 4, 5), (1, 5, 3), (2, 1, 1), (2, 2, 5), (3, 1, 2)]
}


def parametrized(names):
    return pytest.mark.parametrize(
        "operation, definition, convolution, size",
        [CASES[name] for name in names],
        ids=names,
    )


ALL_CASES = parametrized(list(CASES))
# Second derivatives compile slowly.
SOME_CASES = parametrized(["up-5x3", "down-2x6", "filter1-5x3"])


def matrix_of(definition, shape):
    """The matrix of a linear map of images, from its outputs for unit images."""
    columns = []
    for index in np.ndindex(shape):
        unit = np.zeros(shape)
        unit[index] = 1
        columns.append(definition(unit).ravel())
    return np.stack(columns, axis=1)


@ALL_CASES
def test_value_and_gradient(operation, definition, convolution, size, float64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 3))
    expected = definition(x)
    dy = rng.standard_normal(expected.shape)

    @jax.jit
    def run(x, dy):
        y, pullback = jax.vjp(operation, x)
        return y, pullback(dy)[0]

    y, dx = run(x, dy)

    assert y.dtype == dx.dtype == np.float64
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=1e-13)
    matrix = matrix_of(definition, (1, *size, 1))
    for n in range(2):
        for c in range(3):
            gradient = (matrix.T @ dy[n, ..., c].ravel()).reshape(size)
            np.testing.assert_allclose(dx[n, ..., c], gradient, atol=1e-13)


@SOME_CASES
def test_forms_of_platforms_are_equal(
    operation, definition, convolution, size, float64
):
    rng = np.random.default_rng(1)
    x, direction = rng.standard_normal((2, 2, *size, 3))
    probe = rng.standard_normal(definition(x).shape)

    def derivatives(operation):
        def loss(x):
            return jnp.sum(jnp.sin(operation(x)) * probe)

        def along(x):
            return jnp.sum(jax.grad(loss)(x) * direction)

        return jax.jit(lambda x: (operation(x), jax.grad(loss)(x), jax.grad(along)(x)))

    ours = derivatives(operation)(x)
    theirs = derivatives(convolution)(x)

    for mine, their in zip(ours, theirs, strict=True):
        assert np.any(mine)
        np.testing.assert_allclose(mine, their, atol=1e-13)


def test_up_preserves_a_constant_except_at_the_border():
    y = upsample2x(np.ones((1, 3, 4, 1), np.float32))[0, ..., 0]
    expected = np.ones((6, 8))
    expected[[0, -1]] *= 0.75
    expected[:, [0, -1]] *= 0.75
    np.testing.assert_array_equal(y, expected)


def test_up_is_bilinear_with_half_pixel_centres_inside():
    ramp = np.arange(6, dtype=np.float32)
    x = np.broadcast_to(ramp[:, None] + 10 * ramp, (1, 6, 6)).reshape(1, 6, 6, 1)
    y = upsample2x(x)[0, 1:-1, 1:-1, 0]
    position = (np.arange(1, 11) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(y, position[:, None] + 10 * position, rtol=1e-6)


def test_down_halves_a_constant_image():
    y = downsample2x(np.ones((1, 6, 8, 1), np.float32))
    assert y.shape == (1, 3, 4, 1)
    np.testing.assert_array_equal(y[0, 1:-1, 1:-1, 0], np.ones((1, 2)))
    assert np.all(y[0, 0] < 1)


@pytest.mark.parametrize("h, w", [(3, 4), (4, 7), (1, 1)])
def test_down_raises_for_odd_sizes(h, w):
    with pytest.raises(ValueError, match=rf"{h}\b.*{w}\b"):
        downsample2x(np.zeros((1, h, w, 1), np.float32))


@pytest.mark.parametrize(
    "operation, definition",
    [
        (upsample2x, up_by_definition),
        (downsample2x, down_by_definition),
        (filter_with(1), filter_by_definition(1)),
    ],
    ids=["up", "down", "filter1"],
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_keeps_the_dtype(operation, definition, dtype):
    x = np.random.default_rng(3).standard_normal((2, 6, 8, 5))
    x = jnp.asarray(x, dtype)
    exact = definition(np.asarray(x, np.float64))

    y, gradient = jax.jit(
        lambda x: (operation(x), jax.grad(lambda x: jnp.sum(operation(x)))(x))
    )(x)

    assert y.dtype == gradient.dtype == dtype
    error = np.linalg.norm(np.asarray(y, np.float64) - exact) / np.linalg.norm(exact)
    assert error < float(jnp.finfo(dtype).eps)
