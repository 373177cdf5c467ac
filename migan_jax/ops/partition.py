"""How batches are split: over a mesh `(data, space)`, and on TPUs into strips.

A batch is sharded by samples over `data`, and its images by rows over `space`. Outside
of a mesh, nothing is split.

A TPU's arrays have tiles of 8 by 128, of which 8 are samples. So with fewer samples per
device, it would waste most of its work. Then a block of layers gets strips of rows as
its samples (`in_strips`). Operations that look at neighbouring rows exchange them
(`Strips.add_halo`); for all others, a batch is a batch.
"""

import contextvars
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

DATA, SPACE = "data", "space"
# Smaller images are not split by rows: exchanging border rows would cost more.
MIN_ROWS = 32
TPU_BATCH = 8


def split_samples(x: jax.Array) -> jax.Array:
    """Shard an array of samples, [N, ...]."""
    return _constrain(x, PartitionSpec(DATA))


def split_images(x: jax.Array) -> jax.Array:
    """Shard images or feature maps, [N, H, W, C]."""
    return _constrain(x, _image_spec(x))


def split_microbatches(x: jax.Array) -> jax.Array:
    """Shard a batch of microbatches, [microbatches, N, ...]."""
    inner = _image_spec(x[0]) if x.ndim == 5 else PartitionSpec(DATA)
    return _constrain(x, PartitionSpec(None, *inner))


def split_like(x: jax.Array, images: jax.Array) -> jax.Array:
    """Shard some rows of images as `split_images` shards the images."""
    by_rows = is_split_by_rows(images) and x.shape[1] % _mesh_shape()[SPACE] == 0
    return _constrain(x, PartitionSpec(DATA, SPACE) if by_rows else PartitionSpec(DATA))


def _image_spec(x: jax.Array) -> PartitionSpec:
    # An even number of rows on each device, which a layer may halve.
    rows = x.shape[1]
    if rows < MIN_ROWS or rows % (2 * _mesh_shape()[SPACE]):
        return PartitionSpec(DATA)
    return PartitionSpec(DATA, SPACE)


def map_samples(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Run a function of [n, ...] on each device, for its samples of [N, ...].

    So that loops need not agree over devices on when to end. If there are enough
    samples, devices that share images share them out.
    """
    mesh = _mesh_shape()
    if jax.sharding.get_abstract_mesh().empty or len(x) % mesh[DATA]:
        return function(x)
    axes = (DATA, SPACE) if len(x) % math.prod(mesh.values()) == 0 else DATA
    spec = PartitionSpec(axes)
    # Loops start from constants, which are the same on all devices.
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(x)


def sum_samples(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Add up a function of [n, ...] that sums over samples, over devices.

    For what XLA would add wrongly if devices that share images hold the same ones.
    """
    mesh = _mesh_shape()
    if mesh[SPACE] == 1 or len(arrays[0]) % mesh[DATA]:
        return function(*arrays)
    return jax.shard_map(
        lambda *arrays: lax.psum(function(*arrays), DATA),
        in_specs=PartitionSpec(DATA),
        out_specs=PartitionSpec(),
        check_vma=False,  # for loops that start from constants
    )(*arrays)


def is_split_by_rows(images: jax.Array) -> bool:
    """Return whether `split_images` splits images by rows."""
    return _mesh_shape()[SPACE] > 1 and SPACE in _image_spec(images)


# Strips.


@dataclasses.dataclass(frozen=True)
class Strips:
    """A split of images [N, H, W, C] into strips of rows, [N * count, H / count, W, C].

    Attributes:
      count: strips per image, on each device.
      devices: number of devices that share an image.
    """

    count: int
    devices: int

    @classmethod
    def of(cls, images: jax.Array) -> "Strips | None":
        """Choose strips for a block that may also halve the rows, or None for images.

        Devices get a batch of at least TPU_BATCH, unless strips would not have an even
        number of rows.
        """
        mesh = _mesh_shape()
        samples, rows = images.shape[:2]
        if not on_tpus() or samples % mesh[DATA]:
            return None
        devices = mesh[SPACE] if is_split_by_rows(images) else 1
        count = 1
        while samples // mesh[DATA] * count < TPU_BATCH:
            count *= 2
        if rows % (2 * count * devices):
            count = 1
        return cls(count, devices) if count * devices > 1 else None

    def split(self, images: jax.Array) -> jax.Array:
        """Split images into strips."""

        def split(x: jax.Array) -> jax.Array:
            n, h, *rest = x.shape
            return x.reshape(n * self.count, h // self.count, *rest)

        return jax.shard_map(split, in_specs=self._images, out_specs=self._batch)(
            images
        )

    def join(self, strips: jax.Array) -> jax.Array:
        """Join strips to images."""

        def join(x: jax.Array) -> jax.Array:
            n, h, *rest = x.shape
            return x.reshape(n // self.count, h * self.count, *rest)

        return jax.shard_map(join, in_specs=self._batch, out_specs=self._images)(strips)

    def repeat(self, values: jax.Array) -> jax.Array:
        """Repeat values of each sample for its strips: [N, ...] -> [N * count, ...]."""
        repeat = partial(jnp.repeat, repeats=self.count, axis=0)
        return jax.shard_map(
            repeat, in_specs=PartitionSpec(DATA), out_specs=self._batch, check_vma=False
        )(values)

    def add_halo(self, strips: jax.Array, halo: int) -> jax.Array:
        """Add `halo` rows of both neighbours to each strip; at image edges, zeros."""

        def add(x: jax.Array) -> jax.Array:
            images = x.reshape(-1, self.count, *x.shape[1:])
            above = self._exchange(images[:, -1:, -halo:], 1), images[:, :-1, -halo:]
            below = images[:, 1:, :halo], self._exchange(images[:, :1, :halo], -1)
            above, below = (jnp.concatenate(rows, axis=1) for rows in (above, below))
            images = jnp.concatenate([above, images, below], axis=2)
            return images.reshape(len(x), *images.shape[2:])

        return jax.shard_map(add, in_specs=self._batch, out_specs=self._batch)(strips)

    def _exchange(self, rows: jax.Array, shift: int) -> jax.Array:
        """Return rows of the device before (shift 1) or after; zeros at the ends."""
        if self.devices == 1:
            return jnp.zeros_like(rows)
        devices = range(self.devices)
        pairs = [(i, i + shift) for i in devices if i + shift in devices]
        return lax.ppermute(rows, SPACE, pairs)

    @property
    def _images(self) -> PartitionSpec:
        return PartitionSpec(DATA, SPACE) if self.devices > 1 else PartitionSpec(DATA)

    @property
    def _batch(self) -> PartitionSpec:
        return PartitionSpec((DATA, SPACE)) if self.devices > 1 else PartitionSpec(DATA)


_strips: contextvars.ContextVar[Strips | None] = contextvars.ContextVar(
    "strips", default=None
)


def current_strips() -> Strips | None:
    """Return the strips that a block's feature maps are; None if they are images."""
    return _strips.get()


def in_strips(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Run a function of images and other arrays on strips, and join what it returns.

    Only the images [N, H, W, C] are split; the function returns nothing else. Within,
    use the operations of this package, and `per_strip` for what belongs to a sample.
    """
    images = [x for x in arrays if x.ndim == 4]
    strips = Strips.of(max(images, key=lambda x: x.shape[1]))
    if strips is None:
        return function(*arrays)
    token = _strips.set(strips)
    try:
        results = function(*(strips.split(x) if x.ndim == 4 else x for x in arrays))
    finally:
        _strips.reset(token)
    return jax.tree.map(strips.join, results)


def per_strip(values: jax.Array) -> jax.Array:
    """Return values of each strip, [B, ...], given those of its sample, [N, ...]."""
    strips = current_strips()
    return values if strips is None else strips.repeat(values)


def image_size(x: jax.Array) -> tuple[int, int]:
    """Return height and width of the images that feature maps are, or are strips of."""
    strips = current_strips()
    _, h, w, _ = x.shape
    return (h, w) if strips is None else (h * strips.count * strips.devices, w)


def like_feature_maps(images: jax.Array, x: jax.Array) -> jax.Array:
    """Split images [N, H, W, C], or one for all samples, as feature maps x are."""
    strips = current_strips()
    if strips is None:
        return images
    samples = len(x) // (strips.count * strips.devices)
    return strips.split(jnp.broadcast_to(images, (samples, *images.shape[1:])))


# Sharding.


def _mesh_shape() -> dict[str, int]:
    """Return the sizes of both axes of the mesh; 1 outside of a mesh."""
    return {DATA: 1, SPACE: 1} | dict(jax.sharding.get_abstract_mesh().shape)


def on_tpus() -> bool:
    """Return whether the mesh is one of TPUs."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform == "tpu"


def _constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return lax.with_sharding_constraint(x, spec)
