"""Depthwise convolution and its kernel gradient against loops over pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from migan_jax.ops import depthwise
from migan_jax.ops.depthwise import depthwise_kernel_gradient

SHAPES = pytest.mark.parametrize(
    ("shape", "size"),
    [
        *(
            (shape, 3)
            for shape in ((1, 1, 1, 1), (1, 1, 4, 2), (2, 5, 1, 2), (3, 4, 6, 5))
        ),
        ((2, 3, 7, 2), 5),
    ],
    ids=lambda value: "x".join(map(str, np.atleast_1d(value))),
)


def neighbours(h, w, size):
    """Yield output pixel, input pixel and tap, for all taps inside the image."""
    for i, j, u, v in np.ndindex(h, w, size, size):
        row, column = i + u - size // 2, j + v - size // 2
        if 0 <= row < h and 0 <= column < w:
            yield (i, j), (row, column), (u, v)


def convolve(x, kernel):
    y = np.zeros_like(x)
    for (i, j), (row, column), (u, v) in neighbours(*x.shape[1:3], len(kernel)):
        y[:, i, j] += x[:, row, column] * kernel[u, v, 0]
    return y


def input_gradient(kernel, dy):
    dx = np.zeros_like(dy)
    for (i, j), (row, column), (u, v) in neighbours(*dy.shape[1:3], len(kernel)):
        dx[:, row, column] += dy[:, i, j] * kernel[u, v, 0]
    return dx


def kernel_gradient(x, dy, size=3):
    gradient = np.zeros((size, size, 1, x.shape[-1]))
    for (i, j), (row, column), (u, v) in neighbours(*x.shape[1:3], size):
        gradient[u, v, 0] += np.sum(x[:, row, column] * dy[:, i, j], axis=0)
    return gradient


def arrays(shape, seed=0, size=3):
    """Draw x, a kernel and dy."""
    rng = np.random.default_rng(seed)
    shapes = shape, (size, size, 1, shape[-1]), shape
    return [rng.standard_normal(shape) for shape in shapes]


@SHAPES
def test_value_and_gradients(shape, size, float64):
    x, kernel, dy = arrays(shape, size=size)

    @jax.jit
    def run(x, kernel, dy):
        y, pullback = jax.vjp(depthwise.depthwise, x, kernel)
        return y, *pullback(dy)

    results = run(x, kernel, dy)

    expected = (
        convolve(x, kernel),
        input_gradient(kernel, dy),
        kernel_gradient(x, dy, size),
    )
    for actual, target in zip(results, expected, strict=True):
        assert actual.dtype == np.float64
        assert actual.shape == target.shape
        np.testing.assert_allclose(actual, target, atol=1e-12)


@SHAPES
def test_kernel_gradient_and_its_gradients(shape, size, float64):
    x, direction, dy = arrays(shape, size=size)

    of_size = partial(depthwise_kernel_gradient, size=size)

    @jax.jit
    def run(x, dy, direction):
        gradient, pullback = jax.vjp(of_size, x, dy)
        return gradient, *pullback(direction)

    results = run(x, dy, direction)

    # <gradient, direction> = <convolve(x, direction), dy>
    expected = (
        kernel_gradient(x, dy, size),
        input_gradient(direction, dy),
        convolve(x, direction),
    )
    for actual, target in zip(results, expected, strict=True):
        assert actual.dtype == np.float64
        np.testing.assert_allclose(actual, target, atol=1e-12)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize(
    "name, operation, convolution",
    [
        ("apply", depthwise.depthwise, depthwise._grouped_convolution),
        (
            "kernel_gradient",
            depthwise_kernel_gradient,
            depthwise._kernel_gradient_convolution,
        ),
        (
            "kernel_gradient",
            depthwise_kernel_gradient,
            depthwise._kernel_gradient_sums,
        ),
    ],
    ids=["apply", "kernel_gradient", "kernel_gradient_of_gpus"],
)
def test_forms_of_platforms_are_equal(name, operation, convolution, size, float64):
    shape = 2, 3, 4, 2
    x, kernel, dy = arrays(shape, 1, size)
    if name == "kernel_gradient":
        operation = partial(operation, size=size)
        convolution = partial(convolution, size)
    arguments = (x, kernel) if name == "apply" else (x, dy)
    directions = [array[::-1] for array in arguments]
    probe = arrays(shape, 2, size)[0 if name == "apply" else 1]

    def derivatives(operation):
        def loss(*arguments):
            return jnp.sum(jnp.sin(operation(*arguments)) * probe)

        def along(*arguments):
            gradients = jax.grad(loss, (0, 1))(*arguments)
            pairs = zip(gradients, directions, strict=True)
            return sum(jnp.sum(gradient * v) for gradient, v in pairs)

        def run(*arguments):
            first = jax.grad(loss, (0, 1))(*arguments)
            second = jax.grad(along, (0, 1))(*arguments)
            return operation(*arguments), *first, *second

        return jax.jit(run)

    ours = derivatives(operation)(*arguments)
    theirs = derivatives(convolution)(*arguments)

    for mine, their in zip(ours, theirs, strict=True):
        assert np.any(mine)
        np.testing.assert_allclose(mine, their, rtol=1e-10, atol=1e-11)


@SHAPES
def test_second_derivatives(shape, size, float64):
    """<dx, v> = <convolve(v, kernel), dy> and <dkernel, u> = <convolve(x, u), dy>."""
    x, kernel, dy = arrays(shape, size=size)
    v, u, _ = arrays(shape, seed=1, size=size)

    def along(x, kernel, dy):
        _, pullback = jax.vjp(depthwise.depthwise, x, kernel)
        dx, dkernel = pullback(dy)
        return jnp.sum(dx * v) + jnp.sum(dkernel * u)

    results = jax.jit(jax.grad(along, (0, 1, 2)))(x, kernel, dy)

    expected = (
        input_gradient(u, dy),
        kernel_gradient(v, dy, size),
        convolve(v, kernel) + convolve(x, u),
    )
    for actual, target in zip(results, expected, strict=True):
        np.testing.assert_allclose(actual, target, atol=1e-12)


def test_samples_and_channels_do_not_mix():
    x, kernel, _ = arrays((3, 4, 5, 4))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    changed = x.copy()
    changed[1, :, :, 2] += 1
    difference = np.asarray(
        depthwise.depthwise(changed, kernel) - depthwise.depthwise(x, kernel)
    )
    affected = np.any(difference, axis=(1, 2))
    assert affected.sum() == 1 and affected[1, 2]


def test_half_precision_in_and_out():
    x, kernel, dy = (jnp.asarray(a, jnp.bfloat16) for a in arrays((2, 6, 4, 3)))

    def run(x, kernel, dy):
        y, pullback = jax.vjp(depthwise.depthwise, x, kernel)
        return y, *pullback(dy)

    y, dx, dkernel = jax.jit(run)(x, kernel, dy)

    assert y.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16
    x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
    for actual, exact in (
        (y, convolve(x, kernel)),
        (dx, input_gradient(kernel, dy)),
        (dkernel, kernel_gradient(x, dy)),
    ):
        actual = np.asarray(actual, np.float64)
        assert np.linalg.norm(actual - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    "operation",
    [
        depthwise_kernel_gradient,
        partial(depthwise._kernel_gradient_convolution, 3),
    ],
    ids=["here", "accelerator"],
)
def test_kernel_gradient_of_half_precision_is_summed_in_float32(operation):
    # In bfloat16 256 + 1 is 256, and 1089 is not representable.
    ones = jnp.ones((1, 33, 33, 2), jnp.bfloat16)

    gradient = jax.jit(operation)(ones, ones)

    assert gradient.dtype == jnp.float32
    rows = np.array([32, 33, 32])
    expected = (rows[:, None] * rows)[:, :, None, None].repeat(2, axis=3)
    np.testing.assert_array_equal(gradient, expected)


def test_kernel_gradient_of_half_precision_is_not_rounded():
    x, _, dy = (jnp.asarray(a, jnp.bfloat16) for a in arrays((4, 8, 8, 3)))
    exact = kernel_gradient(np.asarray(x, np.float64), np.asarray(dy, np.float64))
    gradient = np.asarray(depthwise_kernel_gradient(x, dy), np.float64)
    assert np.linalg.norm(gradient - exact) < 1e-6 * np.linalg.norm(exact)
