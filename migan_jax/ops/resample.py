"""FIR resampling by two with the [1, 3, 3, 1] filter (MI-GAN section 3, StyleGAN2).

Per axis, with zeros outside the image:
  up    out[2i] = .25 x[i-1] + .75 x[i],  out[2i+1] = .75 x[i] + .25 x[i+1]
  down  out[i]  = (x[2i-1] + 3 x[2i] + 3 x[2i+1] + x[2i+2]) / 8
The two are each other's adjoints up to a factor of four. The adjoint of the plain
filter is itself with padding 3 - p. TPUs run grouped convolutions; CPUs and GPUs run
sums of shifted slices, for the reasons in ops/depthwise.py.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from migan_jax.ops.partition import Strips, current_strips
from migan_jax.ops.precision import at_least_float32, full_precision

TAPS = (1.0, 3.0, 3.0, 1.0)
_FILTER_1D = np.array(TAPS) / sum(TAPS)


# Of feature maps that are strips or, if None, images.
Linear = Callable[[Strips | None, jax.Array], jax.Array]


def _linear_with_adjoint(function: Linear, adjoint: Linear) -> Linear:
    """Make a linear map with this derivative; the adjoint may call the map again."""
    wrapped = jax.custom_vjp(function, nondiff_argnums=(0,))
    wrapped.defvjp(
        lambda strips, x: (wrapped(strips, x), None),
        lambda strips, _, dy: (adjoint(strips, dy),),
    )
    return wrapped


def upsample2x(x: jax.Array) -> jax.Array:
    """Double height and width: [N, H, W, C] -> [N, 2H, 2W, C]."""
    return _up(current_strips(), x)


def downsample2x(x: jax.Array) -> jax.Array:
    """Halve height and width, which must be even: [N, H, W, C] -> [N, H/2, W/2, C]."""
    _, h, w, _ = x.shape
    if h % 2 or w % 2:
        raise ValueError(
            f"downsample2x needs even sizes, not height {h} and width {w}."
        )
    return _down(current_strips(), x)


def fir_filter(x: jax.Array, padding: int, halo: int = 0) -> jax.Array:
    """Filter without resampling: [N, H, W, C] -> [N, H + 2p - 3, W + 2p - 3, C].

    With a halo, x has that many rows on both sides in place of padding.
    """
    return lax.platform_dependent(
        x,
        tpu=partial(_filter_convolution, padding=padding, halo=halo),
        default=partial(_filter_shifts, padding=padding, halo=halo),
    )


def _upsample(strips: Strips | None, x: jax.Array) -> jax.Array:
    if strips is not None:
        return _up_convolution(strips.add_halo(x, 1), halo=1)
    return lax.platform_dependent(x, tpu=_up_convolution, default=_up_phases)


def _downsample(strips: Strips | None, x: jax.Array) -> jax.Array:
    if strips is not None:
        return _down_convolution(strips.add_halo(x, 1), halo=1)
    return lax.platform_dependent(x, tpu=_down_convolution, default=_down_slices)


_up = _linear_with_adjoint(_upsample, lambda strips, dy: 4 * _down(strips, dy))
_down = _linear_with_adjoint(_downsample, lambda strips, dy: _up(strips, dy) / 4)


# TPUs: depthwise convolutions with the 4x4 filter. With a halo, x has rows
# beyond the image, in place of padding.


def _fir_convolution(
    x: jax.Array,
    gain: float,
    strides: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: int,
) -> jax.Array:
    channels = x.shape[-1]
    taps = gain * np.outer(_FILTER_1D, _FILTER_1D)
    kernel = jnp.asarray(np.tile(taps[:, :, None, None], channels), x.dtype)
    return lax.conv_general_dilated(
        x,
        kernel,  # [4, 4, 1, C]
        window_strides=(strides, strides),
        padding=padding,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
        precision=full_precision(x),
    )


def _up_convolution(x: jax.Array, halo: int = 0) -> jax.Array:
    rows = 2 - 2 * halo
    return _fir_convolution(x, 4, strides=1, padding=((rows,) * 2, (2, 2)), dilation=2)


def _down_convolution(x: jax.Array, halo: int = 0) -> jax.Array:
    rows = 1 - halo
    return _fir_convolution(x, 1, strides=2, padding=((rows,) * 2, (1, 1)), dilation=1)


def _filter_convolution(x: jax.Array, padding: int, halo: int = 0) -> jax.Array:
    rows = padding - halo
    edges = (rows, rows), (padding, padding)
    return _fir_convolution(x, 1, strides=1, padding=edges, dilation=1)


# CPUs and GPUs: sums of shifted slices.


def pad_images(x: jax.Array, margin: int) -> jax.Array:
    """Pad images [N, H, W, ...] with zeros, to slice windows from.

    On a CPU, the barrier keeps XLA from turning slices of a padded array into padded
    slices, whose bounds checks do not vectorise (6 to 14 times slower). A GPU would
    store the padded array.
    """
    edges = margin, margin
    padded = jnp.pad(x, ((0, 0), edges, edges, *[(0, 0)] * (x.ndim - 3)))
    return lax.platform_dependent(
        padded, cpu=lax.optimization_barrier, default=lambda padded: padded
    )


def _up_phases(x: jax.Array) -> jax.Array:
    _, h, w, _ = x.shape
    padded = at_least_float32(pad_images(x, 1))

    def weighted(dy: int, dx: int, weight: float) -> jax.Array:
        return weight * padded[:, dy : dy + h, dx : dx + w]

    total = 0.0
    for row in (0, 1):
        for column in (0, 1):
            # Output pixels of one parity. Per axis: .75 of the pixel, .25 of the next.
            phase = (
                weighted(1, 1, 0.5625)
                + weighted(2 * row, 1, 0.1875)
                + weighted(1, 2 * column, 0.1875)
                + weighted(2 * row, 2 * column, 0.0625)
            )
            # Interleave by adding zero-stuffed phases: stacking them fuses badly with
            # the operations that follow.
            stuffing = [
                (0, 0, 0),
                (row, 1 - row, 1),
                (column, 1 - column, 1),
                (0, 0, 0),
            ]
            total += lax.pad(phase, jnp.zeros((), phase.dtype), stuffing)
    return total.astype(x.dtype)


def _down_slices(x: jax.Array) -> jax.Array:
    padded = at_least_float32(pad_images(x, 1))
    _, h, w, _ = x.shape
    total = 0.0
    for i, wy in enumerate(_FILTER_1D):
        for j, wx in enumerate(_FILTER_1D):
            total += float(wy * wx) * padded[:, i : i + h : 2, j : j + w : 2]
    return total.astype(x.dtype)


def _filter_shifts(x: jax.Array, padding: int, halo: int = 0) -> jax.Array:
    rows, columns = padding - halo, padding
    edges = (0, 0), (rows, rows), (columns, columns), (0, 0)
    padded = jnp.pad(at_least_float32(x), edges)
    for axis in (1, 2):
        size = padded.shape[axis] - 3
        padded = sum(
            float(weight) * lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i, weight in enumerate(_FILTER_1D)
        )
    return padded.astype(x.dtype)
