"""Strips of rows, as TPUs convolve them, give the same results as whole images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import use_accelerator_forms, use_tpu_forms
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from migan_jax.ops import conv, partition, resample
from migan_jax.ops.depthwise import depthwise_kernel_gradient
from migan_jax.ops.partition import Strips

COLUMNS, CHANNELS = 4, 3
DENSE = (3, 3, CHANNELS, 5)
OPERATIONS = {  # with the shapes of their kernels
    "depthwise": (conv.conv_depthwise, (3, 3, 1, CHANNELS)),
    "same": (conv.conv3x3, DENSE),
    "down": (conv.conv_down, DENSE),
    "up": (conv.conv_up, DENSE),
    "fir_down": (lambda x, kernel: resample.downsample2x(x) * kernel, ()),
    "fir_up": (lambda x, kernel: resample.upsample2x(x) * kernel, ()),
}
# Images and rows, and a mesh (data, space).
MESHES = {
    "alone": (2, 64, 1, 1),
    "strips": (2, 64, 2, 2),  # 32 rows, when they are halved, are still split
    "neighbours": (8, 64, 1, 8),
    "small": (8, 16, 4, 2),  # strips that both devices of `space` hold
}

BOTH = "strips", "small"  # several strips, with and without neighbours


def mesh_of(data, space):
    grid = np.array(jax.devices()[: data * space]).reshape(data, space)
    return Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)


def derivatives(operation):
    """The value, the gradients, and those of a gradient as in R1."""

    def in_strips(x, kernel):
        return partition.in_strips(lambda x: operation(x, kernel), x)

    def along(x, kernel, dy, v):
        _, pullback = jax.vjp(in_strips, x, kernel)
        dx, dkernel = pullback(dy)
        return jnp.sum(dx * v) + jnp.sum(dkernel**2), (
            operation(x, kernel),
            dx,
            dkernel,
        )

    return jax.jit(jax.grad(along, (0, 1, 2), has_aux=True))


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(mesh, marks=() if mesh in BOTH else pytest.mark.full)
        for mesh in MESHES
    ],
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_strips_change_no_result(name, mesh, float64, monkeypatch):
    operation, kernel_shape = OPERATIONS[name]
    images, rows, data, space = MESHES[mesh]
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((2, images, rows, COLUMNS, CHANNELS))
    kernel = rng.standard_normal(kernel_shape)
    dy = rng.standard_normal(jax.eval_shape(operation, x, kernel).shape)
    expected = derivatives(operation)(x, kernel, dy, v)

    use_tpu_forms(monkeypatch)
    axes = ("data",) if mesh == "small" else ("data", "space")
    sharding = NamedSharding(mesh_of(data, space), PartitionSpec(*axes))
    x, dy, v = jax.device_put((x, dy, v), sharding)
    with jax.set_mesh(sharding.mesh):
        program = derivatives(operation).lower(x, kernel, dy, v).compile()
    results = program(x, kernel, dy, v)

    for ours, theirs in zip(*map(jax.tree.leaves, (results, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-11)
    text = program.as_text()
    assert ("collective-permute" in text) == (space > 1 and mesh != "small")
    assert "all-gather" not in text and "all-to-all" not in text


def test_accelerators_without_strips_sum_small_images_once(monkeypatch):
    """XLA would double the kernel gradient of images that two devices hold."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 8, 16, 4, 3)).astype(np.float32)
    expected = depthwise_kernel_gradient(x, dy)
    use_accelerator_forms(monkeypatch, "tpu")
    sharding = NamedSharding(mesh_of(4, 2), PartitionSpec("data"))
    arrays = jax.device_put((x, dy), sharding)
    with jax.set_mesh(sharding.mesh):
        gradient = jax.jit(depthwise_kernel_gradient)(*arrays)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "shape, data, space, expected",
    [
        ((8, 64), 1, 1, None),  # enough images
        ((2, 64), 1, 1, Strips(4, 1)),
        ((3, 64), 1, 1, Strips(4, 1)),  # twelve strips
        ((8, 64), 4, 2, Strips(4, 2)),
        ((4, 64), 4, 2, Strips(8, 2)),
        ((32, 64), 4, 2, Strips(1, 2)),
        ((1, 16), 1, 1, Strips(8, 1)),
        ((1, 8), 1, 1, None),  # strips would have one row
        ((1, 40), 1, 1, None),  # strips would have five rows
        ((4, 16), 4, 2, Strips(8, 1)),  # too small to be split over devices
        ((6, 64), 4, 2, None),  # not a multiple of the devices
        ((8, 36), 1, 2, Strips(1, 2)),  # 18 rows on each
        ((8, 34), 1, 2, None),  # they would have 17, which cannot be halved
        ((8, 32), 1, 8, Strips(1, 8)),
    ],
)
def test_each_device_gets_a_batch_of_strips(shape, data, space, expected, monkeypatch):
    use_tpu_forms(monkeypatch)
    with jax.set_mesh(mesh_of(data, space)):
        assert Strips.of(jax.ShapeDtypeStruct((*shape, 4, 3), jnp.float32)) == expected


def test_only_tpus_get_strips():
    with jax.set_mesh(mesh_of(1, 1)):
        assert Strips.of(jax.ShapeDtypeStruct((1, 64, 4, 3), jnp.float32)) is None
    assert Strips.of(jax.ShapeDtypeStruct((1, 64, 4, 3), jnp.float32)) is None


def test_images_are_split_by_rows_unless_they_are_small():
    assert partition.MIN_ROWS == 32
    for rows, split in ((16, False), (32, True), (34, False), (36, True)):
        with jax.set_mesh(mesh_of(4, 2)):
            x = jnp.zeros((4, rows, 3, 1))
            y = jax.jit(partition.split_images)(x)
        shard = y.addressable_shards[0].data.shape
        assert shard == (1, rows // 2 if split else rows, 3, 1)
