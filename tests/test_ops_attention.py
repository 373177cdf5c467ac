"""Attention in blocks of queries equals attention at once, on any devices."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from migan_jax.ops import attention

SHAPE = 2, 32, 4, 6


def draw(count=3, shape=SHAPE):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape)) for _ in range(count)]


def loss(arrays):
    return jnp.sum(jnp.sin(attention.attend(*arrays)))


def run(arrays):
    """Trace it every time: MAX_SCORES may have changed."""
    return jax.jit(lambda arrays: jax.value_and_grad(loss)(arrays))(arrays)


def lower(arrays):
    return jax.jit(lambda arrays: loss(arrays)).lower(arrays)


@pytest.mark.usefixtures("float64")
def test_attention_equals_loops():
    arrays = draw()
    queries, keys, values = (np.asarray(x).reshape(2, 128, 6) for x in arrays)
    expected = np.zeros_like(values)
    for n in range(2):
        for i in range(128):
            scores = [queries[n, i] @ keys[n, j] for j in range(128)]
            weights = np.exp(scores) / np.sum(np.exp(scores))
            expected[n, i] = sum(w * v for w, v in zip(weights, values[n], strict=True))
    ours = jax.jit(attention.attend)(*arrays)
    np.testing.assert_allclose(ours.reshape(2, 128, 6), expected, rtol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rows", [8, 1, 0.5])
def test_blocks_do_not_change_values_and_gradients(rows, monkeypatch):
    expected = run(draw())
    monkeypatch.setattr(attention, "MAX_SCORES", int(rows * 4 * 128))
    text = lower(draw()).as_text()
    assert "while" in text and f"2x{math.ceil(rows)}x4x128xf64" in text
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        run(draw()),
        expected,
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("max_scores", [1 << 22, 8 * 4 * 128])
def test_devices_do_not_change_values_and_gradients(max_scores, monkeypatch):
    """Two samples, each split over four devices by rows."""
    monkeypatch.setattr(attention, "MAX_SCORES", max_scores)
    expected = run(draw())
    grid = np.array(jax.devices()).reshape(2, 4)
    mesh = Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec("data", "space"))
    with jax.set_mesh(mesh):
        ours = run(jax.device_put(draw(), split))
        text = lower(jax.device_put(draw(), split)).compile().as_text()
    # A device fetches keys and values, but no queries.
    rows = {int(r) for r in re.findall(r"f64\[1,(\d+),4,6\]\S* all-gather", text)}
    assert rows <= {32}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        ours,
        expected,
    )


def test_weights_sum_to_one():
    queries, keys = draw(2)
    ones = jnp.ones(SHAPE)
    np.testing.assert_allclose(attention.attend(queries, keys, ones), ones, rtol=1e-5)


@pytest.mark.usefixtures("float64")
def test_attention_and_its_distance_equal_the_golden_arrays():
    golden = np.load(Path(__file__).parent / "golden" / "distillation_ops.npz")
    d, *scores = (
        jnp.asarray(golden[f"att/{name}"]).reshape(2, 4, 5, -1)
        for name in ("d", "q", "k", "qA", "kA")
    )
    out = jax.jit(attention.attend)(*scores[:2], d)
    np.testing.assert_allclose(out.reshape(2, 20, 6), golden["att/out"], atol=1e-12)
    expected = np.sum((golden["att/r"] - golden["att/rA"]) ** 2, axis=-1)
    distance = jax.jit(attention.attention_distance)(*scores)
    np.testing.assert_allclose(distance.reshape(2, 20), expected, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_fewer_keys_and_blocks_of_distances(monkeypatch):
    """Keys may be pooled; alike queries give the mean, and alike attentions 0."""
    (queries,) = draw(1)
    keys, values = draw(2, (2, 8, 1, 6))
    mean = jax.jit(attention.attend)(0 * queries, keys, values)
    expected = np.broadcast_to(values.mean(axis=(1, 2), keepdims=True), mean.shape)
    np.testing.assert_allclose(mean, expected, atol=1e-12)

    def compare(a, b, keys):
        return jnp.sum(attention.attention_distance(a, keys, b, keys))

    assert jax.jit(compare)(queries, queries, keys) == 0
    compute = jax.value_and_grad(compare)
    expected = jax.jit(compute)(queries, 2 * queries, keys)
    monkeypatch.setattr(attention, "MAX_SCORES", 4 * 4 * 8)  # four rows at a time
    blocks = jax.jit(lambda *arrays: compute(*arrays))(queries, 2 * queries, keys)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), blocks, expected
    )
