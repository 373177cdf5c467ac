"""The device mesh: batches are split by samples over `data`, by rows over `space`.

A pod may have more chips than a batch has images; then several share one (`space`).
Everything else is replicated.
"""

import math
import operator
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from migan_jax.errors import UserError
from migan_jax.ops.partition import DATA, SPACE


def make_mesh(
    space: int | str,
    batches: Mapping[str, tuple[int, int]],
    microbatches: int,
    multiple: int,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Make a mesh, or raise UserError if the batches do not divide.

    Args:
      space: devices per image. "auto": the fewest with which every device has a part of
        each batch, so that the batch size need not change.
      batches: batch size and resolution, by stage.
      microbatches: number of microbatches per batch.
      multiple: group size; batches larger than a group are split into whole groups.
      devices: None for all of JAX's.
    """
    devices = list(devices or jax.devices())
    count = len(devices)

    def required_multiple(batch_size: int, space: int) -> int:
        group = multiple if microbatches > 1 or batch_size > multiple else 1
        return microbatches * math.lcm(count // space, group)

    choices = [
        n
        for n in range(1, count + 1)
        if count % n == 0
        and all(
            side % n == 0 and size % required_multiple(size, n) == 0
            for size, side in batches.values()
        )
    ]
    if space == "auto":
        space = next(iter(choices), 1)
    for stage, (size, side) in batches.items():
        if space < 1 or count % space or side % space:
            raise UserError(
                f"mesh.space is {space}, but must divide the number of devices "
                f"({count}) and the resolution ({side})."
            )
        required = required_multiple(size, space)
        if size % required:
            which = f" of stage {stage}" if len(batches) > 1 else ""
            label = f"batch_size {size}{which}"
            raise _batch_error(
                label, size, count, space, microbatches, multiple, required, choices
            )
    grid = _arrange(devices, space)
    return Mesh(grid, (DATA, SPACE), axis_types=(AxisType.Auto, AxisType.Auto))


def _arrange(devices: list[jax.Device], space: int) -> np.ndarray:
    """Arrange devices: [data, space]."""
    shape = len(devices) // space, space
    if space > 1 and devices[0].platform == "tpu":
        # Those that share an image are neighbours: where links have few routes, as in
        # large slices of v5e, they could not exchange rows while they compute.
        grid = create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        key = operator.attrgetter("process_index", "id")
        grid = np.array(sorted(devices, key=key)).reshape(shape)
    # Images of one process follow each other, so that it loads as few as possible.
    first = [min(device.process_index for device in row) for row in grid]
    return grid[np.argsort(first, kind="stable")]


def _batch_error(
    label: str,
    batch_size: int,
    count: int,
    space: int,
    microbatches: int,
    multiple: int,
    required: int,
    choices: list[int],
) -> UserError:
    sharing = f", {space} per image" if space > 1 else ""
    splitting = f", in {microbatches} microbatches" if microbatches > 1 else ""
    is_grouped = multiple > 1 and (microbatches > 1 or batch_size > multiple)
    grouping = f", in groups of {multiple}" if is_grouped else ""
    alternative = ""
    if choices:
        alternative = (
            f", or let {choices[0]} devices share an image "
            f"(--config.mesh.space={choices[0]})"
        )
    # Above the size of a group, only whole groups are allowed.
    needed = math.lcm(required, multiple) if batch_size > required else required
    return UserError(
        f"{label} cannot be split over {count} devices{sharing}{splitting}{grouping}. "
        f"Make it a multiple of {needed}{alternative}."
    )


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that all devices hold whole."""
    return NamedSharding(mesh, PartitionSpec())


def images_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of images [N, H, W, C], by samples and rows."""
    return NamedSharding(mesh, PartitionSpec(DATA, SPACE))


def batch_sharding(mesh: Mesh, dimensions: int) -> NamedSharding:
    """Return the sharding of a batch's images, or of other arrays by samples only."""
    if dimensions == 4:
        return images_sharding(mesh)
    return NamedSharding(mesh, PartitionSpec(DATA))


def rows_of_process(mesh: Mesh, batch_size: int, resolution: int) -> range:
    """Return the samples of a batch that this process must load."""
    shape = batch_size, resolution, resolution, 1
    indices = images_sharding(mesh).addressable_devices_indices_map(shape)
    bounds = [index[0].indices(batch_size)[:2] for index in indices.values()]
    return range(min(low for low, _ in bounds), max(high for _, high in bounds))


def put_images(
    arrays: dict[str, np.ndarray], rows: range, mesh: Mesh, batch_size: int
) -> dict[str, jax.Array]:
    """Put a batch on the devices; this process has the samples `rows` of it."""

    def put(array: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            low, high, _ = index[0].indices(batch_size)
            return array[(slice(low - rows.start, high - rows.start), *index[1:])]

        shape = (batch_size, *array.shape[1:])
        sharding = batch_sharding(mesh, array.ndim)
        return jax.make_array_from_callback(shape, sharding, shard)

    return {name: put(array) for name, array in arrays.items()}
