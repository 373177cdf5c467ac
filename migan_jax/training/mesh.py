"""The devices of a run: images are split by samples over `data`, by rows over `space`.

A pod has more chips than a batch has images, so several may share one (`space`).
Everything else is the same on all devices.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from migan_jax.errors import UserError
from migan_jax.ops.minibatch_std import GROUP_SIZE
from migan_jax.ops.partition import DATA, SPACE


def make_mesh(space: int | str, resolution: int, batch_size: int, parts: int) -> Mesh:
    """All devices, of which `space` at a time share an image; UserError for misfits.

    "auto" is as few as let all devices have some of the batch, which then stays what it
    is, and with it what is learnt.
    """
    # A process's devices stand together, so that it loads as few images as can be.
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )
    count = len(devices)
    fitting = [
        n
        for n in range(1, count + 1)
        if count % n == 0
        and resolution % n == 0
        and batch_size % _batch_multiple(count // n, batch_size, parts) == 0
    ]
    if space == "auto":
        space = next(iter(fitting), 1)
    if space < 1 or count % space or resolution % space:
        raise UserError(
            f"mesh.space is {space}, but must divide the {count} devices and the "
            f"{resolution} rows of an image."
        )
    if space not in fitting:
        raise _misfit(count, space, batch_size, parts, fitting)
    shape = np.array(devices).reshape(count // space, space)
    return Mesh(shape, (DATA, SPACE), axis_types=(AxisType.Auto, AxisType.Auto))


def _batch_multiple(lines: int, batch_size: int, parts: int) -> int:
    """What a batch must be a multiple of; a large one also consists of whole groups."""
    group = GROUP_SIZE if parts > 1 or batch_size > GROUP_SIZE else 1
    return parts * math.lcm(lines, group)


def _misfit(
    count: int, space: int, batch_size: int, parts: int, fitting: list[int]
) -> UserError:
    multiple = _batch_multiple(count // space, batch_size, parts)
    shared = f", {space} to an image" if space > 1 else ""
    turns = f" in {parts} parts" if parts > 1 else ""
    grouped = parts > 1 or batch_size > GROUP_SIZE
    compared = f", in groups of {GROUP_SIZE} that are compared" if grouped else ""
    keeping = ""
    if fitting:
        keeping = (
            f"let {fitting[0]} share an image (--config.mesh.space={fitting[0]}), or "
        )
    # Above a group's size only whole groups will do.
    least = math.lcm(multiple, GROUP_SIZE) if batch_size > multiple else multiple
    return UserError(
        f"batch_size {batch_size} cannot be split over {count} devices{shared}{turns}"
        f"{compared}: {keeping}make it a multiple of {least}."
    )


def everywhere(mesh: Mesh) -> NamedSharding:
    """The same on all devices."""
    return NamedSharding(mesh, PartitionSpec())


def images_sharding(mesh: Mesh) -> NamedSharding:
    """Images [N, H, W, C], by samples and rows."""
    return NamedSharding(mesh, PartitionSpec(DATA, SPACE))


def rows_of_process(mesh: Mesh, batch_size: int, resolution: int) -> range:
    """The samples of a batch of which this process's devices need some part."""
    shape = batch_size, resolution, resolution, 1
    places = images_sharding(mesh).addressable_devices_indices_map(shape)
    bounds = [index[0].indices(batch_size)[:2] for index in places.values()]
    return range(min(low for low, _ in bounds), max(high for _, high in bounds))


def put_images(
    arrays: dict[str, np.ndarray], rows: range, mesh: Mesh, batch_size: int
) -> dict[str, jax.Array]:
    """A batch on the devices, of which this process has some rows."""
    sharding = images_sharding(mesh)

    def put(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            low, high, _ = index[0].indices(batch_size)
            return array[(slice(low - rows.start, high - rows.start), *index[1:])]

        shape = (batch_size, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: put(array) for name, array in arrays.items()}
