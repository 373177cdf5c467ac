"""Convolutions against loops over pixels and taps."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from migan_jax.ops.conv import (
    conv3x3,
    conv_dense,
    conv_depthwise,
    conv_down,
    conv_pointwise,
    conv_to_float32,
    conv_up,
    demodulated_conv,
)

INPUTS, OUTPUTS = 3, 4


# Reference implementations. Along one axis, `links` lists which input pixel contributes
# to which output pixel through which tap; the rest follows from it.


@dataclasses.dataclass(frozen=True)
class Reference:
    size: int  # of the kernel
    padding: int = 0
    strides: int = 1
    transposed: bool = False
    dilation: int = 1

    def out_size(self, length):
        if self.transposed:
            return 2 * length + self.size - 2
        reach = self.dilation * (self.size - 1) + 1
        return (length + 2 * self.padding - reach) // self.strides + 1

    def links(self, length):
        if self.transposed:
            return [(2 * i + u, i, u) for i in range(length) for u in range(self.size)]
        unpadded = [
            (o, o * self.strides + u * self.dilation - self.padding, u)
            for o in range(self.out_size(length))
            for u in range(self.size)
        ]
        return [(o, i, u) for o, i, u in unpadded if 0 <= i < length]

    def pixels(self, h, w):
        for oy, iy, u in self.links(h):
            for ox, ix, v in self.links(w):
                yield (slice(None), oy, ox), (slice(None), iy, ix), (u, v)

    def value(self, x, kernel):
        n, h, w, _ = x.shape
        y = np.zeros((n, self.out_size(h), self.out_size(w), kernel.shape[-1]))
        for out, into, tap in self.pixels(h, w):
            y[out] += x[into] @ kernel[tap]
        return y

    def gradients(self, x, kernel, dy):
        dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
        for out, into, tap in self.pixels(*x.shape[1:3]):
            dx[into] += dy[out] @ kernel[tap].T
            dkernel[tap] += x[into].T @ dy[out]
        return dx, dkernel


class DepthwiseReference(Reference):
    """A depthwise kernel is a dense one with zeros off the diagonal."""

    def value(self, x, kernel):
        return super().value(x, kernel * np.eye(x.shape[-1]))

    def gradients(self, x, kernel, dy):
        dx, dkernel = super().gradients(x, kernel * np.eye(x.shape[-1]), dy)
        return dx, np.einsum("uvcc->uvc", dkernel)[:, :, None]


def fir(x, padding, transposed=False):
    """Filter [1, 3, 3, 1] / 8 along both axes, or its transpose."""
    for axis in (1, 2):
        size = x.shape[axis] + 2 * padding - 3
        if transposed:
            size = x.shape[axis] + 3 - 2 * padding
        filtered = np.zeros((*x.shape[:axis], size, *x.shape[axis + 1 :]))
        x, filtered = np.moveaxis(x, axis, 0), np.moveaxis(filtered, axis, 0)
        for i in range(len(x)):
            for tap, weight in enumerate((1 / 8, 3 / 8, 3 / 8, 1 / 8)):
                o = i - padding + tap if transposed else i + padding - tap
                if 0 <= o < size:
                    filtered[o] += weight * x[i]
        x = np.moveaxis(filtered, 0, axis)
    return x


class DownReference(Reference):
    """A filter with padding 2, then a convolution with stride 2."""

    def out_size(self, length):
        return length // 2

    def value(self, x, kernel):
        return Reference(3, strides=2).value(fir(x, 2), kernel)

    def gradients(self, x, kernel, dy):
        dx, dkernel = Reference(3, strides=2).gradients(fir(x, 2), kernel, dy)
        return fir(dx, 2, transposed=True), dkernel


class UpReference(Reference):
    """A transposed convolution, then a filter with padding 1."""

    def out_size(self, length):
        return 2 * length

    def value(self, x, kernel):
        return fir(Reference(3, transposed=True).value(x, kernel), 1)

    def gradients(self, x, kernel, dy):
        dy = fir(dy, 1, transposed=True)
        return Reference(3, transposed=True).gradients(x, kernel, dy)


@dataclasses.dataclass(frozen=True)
class Case:
    operation: Callable
    reference: Reference
    sizes: list[tuple[int, int]]
    depthwise: bool = False

    def arrays(self, size, batch=2, seed=0, channels=(INPUTS, OUTPUTS)):
        """Draw x, a kernel, and a gradient of the output."""
        rng = np.random.default_rng(seed)
        inputs, outputs = channels
        taps = (self.reference.size, self.reference.size)
        x = rng.standard_normal((batch, *size, inputs))
        ends = (1, inputs) if self.depthwise else (inputs, outputs)
        out = [self.reference.out_size(length) for length in size]
        dy = rng.standard_normal((batch, *out, ends[1]))
        return x, rng.standard_normal((*taps, *ends)), dy


SMALL = [(1, 1), (3, 5)]
CASES = {
    "depthwise": Case(conv_depthwise, DepthwiseReference(3, padding=1), SMALL, True),
    "pointwise": Case(conv_pointwise, Reference(1), SMALL),
    "same": Case(conv3x3, Reference(3, padding=1), SMALL),
    "down": Case(conv_down, DownReference(3), [(2, 2), (6, 4)]),
    "up": Case(conv_up, UpReference(3), SMALL),
    # A stride that leaves no row over, and one that does.
    "strided": Case(
        functools.partial(conv_dense, stride=2, padding=2),
        Reference(4, padding=2, strides=2),
        [(4, 4), (3, 5)],
    ),
    "dilated": Case(
        functools.partial(conv_dense, dilation=3),
        Reference(3, dilation=3),
        [(7, 7), (9, 8)],
    ),
}
FILTERED = "down", "up"
ALL_SIZES = pytest.mark.parametrize(
    "name, size",
    [(name, size) for name, case in CASES.items() for size in case.sizes],
    ids=[f"{name}-{h}x{w}" for name, case in CASES.items() for h, w in case.sizes],
)

SOME_SIZES = pytest.mark.parametrize(
    "name, size",
    [(name, case.sizes[-1]) for name, case in CASES.items()],
)


def value_and_gradients(operation):
    def run(x, kernel, dy):
        y, pullback = jax.vjp(operation, x, kernel)
        return y, *pullback(dy)

    return run


@ALL_SIZES
def test_value_and_gradients(name, size, float64):
    case = CASES[name]
    x, kernel, dy = case.arrays(size)

    results = jax.jit(value_and_gradients(case.operation))(x, kernel, dy)

    expected = case.reference.value(x, kernel), *case.reference.gradients(x, kernel, dy)
    for actual, target in zip(results, expected, strict=True):
        assert actual.dtype == np.float64
        assert actual.shape == target.shape
        np.testing.assert_allclose(actual, target, atol=1e-12)


def second_derivatives(operation):
    """Gradients of <dx, v> + <dkernel, u> with respect to x, kernel and dy."""

    def along(x, kernel, dy, v, u):
        _, pullback = jax.vjp(operation, x, kernel)
        dx, dkernel = pullback(dy)
        return jnp.sum(dx * v) + jnp.sum(dkernel * u)

    return jax.jit(jax.grad(along, (0, 1, 2)))


def reference_second_derivatives(reference, x, kernel, dy, v, u):
    """<dx, v> = <y(v, kernel), dy> and <dkernel, u> = <y(x, u), dy>."""
    by_x, _ = reference.gradients(x, u, dy)
    _, by_kernel = reference.gradients(v, kernel, dy)
    return by_x, by_kernel, reference.value(v, kernel) + reference.value(x, u)


@SOME_SIZES
def test_second_derivatives(name, size, float64):
    case = CASES[name]
    arrays = *case.arrays(size), *case.arrays(size, seed=1)[:2]
    results = second_derivatives(case.operation)(*arrays)
    expected = reference_second_derivatives(case.reference, *arrays)
    for actual, target in zip(results, expected, strict=True):
        assert actual.dtype == np.float64
        np.testing.assert_allclose(actual, target, atol=1e-12)


# Mixed precision.


def half_precision_arrays(case, size, **kwargs):
    x, kernel, dy = case.arrays(size, **kwargs)
    as_half = lambda array: jnp.asarray(array, jnp.bfloat16)  # noqa: E731
    return as_half(x), jnp.asarray(kernel, jnp.float32), as_half(dy)


def rounded(array):
    """To bfloat16 and back."""
    return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)


def error(actual, exact):
    difference = np.asarray(actual, np.float64) - exact
    return np.linalg.norm(difference) / np.linalg.norm(exact)


@pytest.mark.parametrize(
    "name, size",
    [
        ("depthwise", (3, 5)),
        ("pointwise", (3, 5)),
        ("same", (3, 5)),
        ("down", (6, 4)),
        ("up", (1, 1)),
        ("strided", (3, 5)),
        ("dilated", (9, 8)),
    ],
)
def test_half_precision_input_with_float32_kernel(name, size):
    case = CASES[name]
    x, kernel, dy = half_precision_arrays(case, size)

    # Not jitted: XLA would remove intermediate roundings.
    y, dx, dkernel = value_and_gradients(case.operation)(x, kernel, dy)

    assert y.dtype == dx.dtype == jnp.bfloat16
    assert dkernel.dtype == jnp.float32
    exact = rounded(x), rounded(kernel), rounded(dy)
    exact_dx, exact_dkernel = case.reference.gradients(*exact)
    assert error(y, case.reference.value(*exact[:2])) < 0.01
    assert error(dx, exact_dx) < 0.01
    # The kernel gradient is neither summed nor rounded in half precision, although
    # what has been filtered is rounded.
    assert error(dkernel, exact_dkernel) < (0.002 if name in FILTERED else 1e-6)
    assert error(rounded(exact_dkernel), exact_dkernel) > 1e-4


@pytest.mark.parametrize("name", ["pointwise", "same", "strided"])
def test_kernel_gradient_of_half_precision_is_summed_in_float32(name):
    """All terms are 1: in bfloat16 the sum would stop growing at 256."""
    case = CASES[name]
    size = (33, 65)
    shapes = [array.shape for array in case.arrays(size, channels=(1, 1))]
    x, dy = (jnp.ones(shapes[i], jnp.bfloat16) for i in (0, 2))
    kernel = jnp.zeros(shapes[1], jnp.float32)

    _, _, dkernel = value_and_gradients(case.operation)(x, kernel, dy)

    counts = np.zeros(shapes[1])
    for _, _, tap in case.reference.pixels(*size):
        counts[tap] += shapes[0][0]
    assert counts.min() > 256
    np.testing.assert_array_equal(dkernel, counts)


@pytest.mark.parametrize("name", ["depthwise", "pointwise", "down", "up"])
def test_second_derivatives_of_half_precision(name):
    """The R1 step differentiates an input gradient with respect to the kernel."""
    case = CASES[name]
    size = case.sizes[-1]
    arrays = half_precision_arrays(case, size)
    arrays += half_precision_arrays(case, size, seed=1)[:2]

    results = second_derivatives(case.operation)(*arrays)

    expected = reference_second_derivatives(case.reference, *map(rounded, arrays))
    dtypes = jnp.bfloat16, jnp.float32, jnp.bfloat16
    tolerances = 0.01, (0.005 if name in FILTERED else 1e-5), 0.01
    for result, target, dtype, tolerance in zip(
        results, expected, dtypes, tolerances, strict=True
    ):
        assert result.dtype == dtype
        assert error(result, target) < tolerance


@pytest.mark.parametrize("name", ["pointwise", "down"])
def test_float64_input_is_not_cast_down(name, float64):
    case = CASES[name]
    x, kernel, dy = case.arrays(case.sizes[-1])
    kernel = kernel.astype(np.float32)

    y, dx, dkernel = jax.jit(value_and_gradients(case.operation))(x, kernel, dy)

    assert y.dtype == dx.dtype == np.float64
    assert dkernel.dtype == np.float32
    kernel = kernel.astype(np.float64)
    assert error(y, case.reference.value(x, kernel)) < 1e-14
    assert error(dx, case.reference.gradients(x, kernel, dy)[0]) < 1e-14


# Modulation.


MODULATED = {
    "same": (conv3x3, Reference(3, padding=1)),
    "up": (conv_up, UpReference(3)),
}
ALL_MODULATED = pytest.mark.parametrize("name", MODULATED)


def modulate(x, kernel, styles, reference):
    """Convolve each sample with its own modulated kernel, as StyleGAN2 defines it."""
    outputs = kernel.shape[-1]
    unit = np.stack(
        [
            kernel[..., o] / np.sqrt(np.mean(kernel[..., o] ** 2))
            for o in range(outputs)
        ],
        axis=-1,
    )
    styles = styles / np.sqrt(np.mean(styles**2))
    samples = []
    for sample, style in zip(x, styles, strict=True):
        scaled = unit * style[None, None, :, None]
        for o in range(outputs):
            scaled[..., o] /= np.sqrt(np.sum(scaled[..., o] ** 2) + 1e-8)
        samples.append(reference.value(sample[None], scaled))
    return np.concatenate(samples)


def modulation_arrays(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 3, 4, INPUTS))
    kernel = rng.standard_normal((3, 3, INPUTS, OUTPUTS))
    return x, kernel, rng.standard_normal((3, INPUTS))


@ALL_MODULATED
def test_demodulated_conv(name, float64):
    convolve, reference = MODULATED[name]
    x, kernel, styles = modulation_arrays()

    run = jax.jit(lambda *arrays: demodulated_conv(*arrays, convolve))
    y = run(x, kernel, styles)

    assert y.dtype == np.float64
    np.testing.assert_allclose(y, modulate(x, kernel, styles, reference), atol=1e-12)


@ALL_MODULATED
def test_gradients_of_demodulated_conv(name, float64):
    convolve, reference = MODULATED[name]
    arrays = modulation_arrays()
    rng = np.random.default_rng(1)
    dy = rng.standard_normal(modulate(*arrays, reference).shape)
    gradients = jax.jit(
        jax.grad(lambda *a: jnp.sum(demodulated_conv(*a, convolve) * dy), (0, 1, 2))
    )(*arrays)

    for index, gradient in enumerate(gradients):
        direction = rng.standard_normal(arrays[index].shape)
        step = 1e-5 * direction
        ahead, behind = list(arrays), list(arrays)
        ahead[index], behind[index] = arrays[index] + step, arrays[index] - step
        change = modulate(*ahead, reference) - modulate(*behind, reference)
        slope = np.sum(change * dy) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-7)


def test_demodulation_cancels_the_scale_of_styles_and_kernels():
    x, kernel, styles = (a.astype(np.float32) for a in modulation_arrays())
    y = demodulated_conv(x, kernel, styles, conv3x3)
    per_sample = np.array([[1.0], [2.0], [0.5]], np.float32)
    for changed in (
        demodulated_conv(x, 30 * kernel, styles, conv3x3),
        demodulated_conv(x, kernel, per_sample * styles, conv3x3),
    ):
        np.testing.assert_allclose(changed, y, rtol=1e-4, atol=1e-5)


def test_demodulated_conv_of_half_precision():
    x, kernel, styles = modulation_arrays()
    x = jnp.asarray(x, jnp.bfloat16)
    kernel, styles = kernel.astype(np.float32), styles.astype(np.float32)

    def loss(x, kernel, styles):
        y = demodulated_conv(x, kernel, styles, conv3x3)
        return jnp.sum(y.astype(jnp.float32)), y

    gradients, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x, kernel, styles)

    assert y.dtype == gradients[0].dtype == jnp.bfloat16
    assert gradients[1].dtype == gradients[2].dtype == jnp.float32
    expected = modulate(rounded(x), kernel, styles, Reference(3, padding=1))
    assert error(y, expected) < 0.02


def test_half_precision_to_float32_is_exact():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 4, 4, 64)), rng.standard_normal((2, 4, 4, 3))
    x, dy = jnp.asarray(x, jnp.bfloat16), jnp.asarray(dy, jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((1, 1, 64, 3)), jnp.float32)

    y, pullback = jax.vjp(jax.jit(conv_to_float32), x, kernel)
    dx, dkernel = pullback(dy)

    assert (y.dtype, dx.dtype, dkernel.dtype) == (kernel.dtype, x.dtype, kernel.dtype)
    exact_x, exact_dy, exact_kernel = (
        np.asarray(a, np.float64) for a in (x, dy, kernel)
    )
    for ours, exact, tolerance in (
        (y, exact_x @ exact_kernel[0, 0], 1e-6),
        (dkernel[0, 0], np.tensordot(exact_x, exact_dy, axes=([0, 1, 2],) * 2), 1e-6),
        (dx, exact_dy @ exact_kernel[0, 0].T, 2**-8),  # rounded to half precision
    ):
        scale = np.abs(exact).max()
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), exact, 0, tolerance * scale
        )
