"""The devices of a run: images are split by samples over `data`, by rows over `space`.

A pod has more chips than a batch has images, so several may share one (`space`).
Everything else is the same on all devices.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from migan_jax.errors import UserError
from migan_jax.ops.partition import DATA, SPACE


def make_mesh(
    space: int | str,
    batches: Mapping[str, tuple[int, int]],
    microbatches: int,
    multiple: int,
) -> Mesh:
    """All devices, of which `space` at a time share an image; UserError for misfits.

    "auto" is as few as let all devices have some of each batch, which then stays what
    it is, and with it what is learnt.

    Args:
      batches: their size and resolution, by stage.
      microbatches: in which they are used.
      multiple: samples of a group that stays whole, where a batch is larger.
    """
    # A process's devices stand together, so that it loads as few images as can be.
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )
    count = len(devices)

    def least(batch_size: int, space: int) -> int:
        """What a batch must be a multiple of; a large one also of whole groups."""
        group = multiple if microbatches > 1 or batch_size > multiple else 1
        return microbatches * math.lcm(count // space, group)

    fitting = [
        n
        for n in range(1, count + 1)
        if count % n == 0
        and all(
            side % n == 0 and size % least(size, n) == 0
            for size, side in batches.values()
        )
    ]
    if space == "auto":
        space = next(iter(fitting), 1)
    for stage, (size, side) in batches.items():
        if space < 1 or count % space or side % space:
            raise UserError(
                f"mesh.space is {space}, but must divide the {count} devices and the "
                f"{side} rows of an image."
            )
        if size % least(size, space):
            whose = f" of stage {stage}" if len(batches) > 1 else ""
            what = f"batch_size {size}{whose}"
            needed = least(size, space)
            raise _misfit(
                what, size, count, space, microbatches, multiple, needed, fitting
            )
    shape = np.array(devices).reshape(count // space, space)
    return Mesh(shape, (DATA, SPACE), axis_types=(AxisType.Auto, AxisType.Auto))


def _misfit(
    what: str,
    batch_size: int,
    count: int,
    space: int,
    microbatches: int,
    multiple: int,
    least: int,
    fitting: list[int],
) -> UserError:
    shared = f", {space} to an image" if space > 1 else ""
    turns = f" in {microbatches} parts" if microbatches > 1 else ""
    grouped = multiple > 1 and (microbatches > 1 or batch_size > multiple)
    compared = f", in groups of {multiple} that are compared" if grouped else ""
    keeping = ""
    if fitting:
        keeping = (
            f"let {fitting[0]} share an image (--config.mesh.space={fitting[0]}), or "
        )
    # Above a group's size only whole groups will do.
    needed = math.lcm(least, multiple) if batch_size > least else least
    return UserError(
        f"{what} cannot be split over {count} devices{shared}{turns}"
        f"{compared}: {keeping}make it a multiple of {needed}."
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
