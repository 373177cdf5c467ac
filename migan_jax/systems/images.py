"""Batches of images with holes: prepare, mask, inpaint, compare."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from migan_jax.data.mask_samplers import Sampler, masks_on_device
from migan_jax.data.transforms import flip, flip_points, sample_keys
from migan_jax.ops.partition import split_images, split_samples
from migan_jax.systems.base import Batch

MIN_HOLE_ERROR = 1e-10  # limits PSNR to 100 dB


@jax.named_scope("prepare")
def prepare(batch: Batch, key: jax.Array, sampler: Sampler) -> Batch:
    """Normalise and flip "image" to [-1, 1], flip or draw "mask"; both are float32.

    Masks are 1 where known; a batch with masks keeps them. "points", if it has them,
    are flipped alike. "sample" is the position in the batch, from which each sample's
    random numbers derive in any microbatch.
    """
    image = batch["image"].astype(jnp.float32) * (2 / 255) - 1
    samples = split_samples(jnp.arange(len(image)))
    flips, masks = (sample_keys(key, use, samples) for use in range(2))
    if "mask" in batch:
        image, mask = flip(flips, image, batch["mask"].astype(jnp.float32))
    else:
        (image,) = flip(flips, image)
        mask = masks_on_device(sampler, masks, image.shape[1])
    prepared = {"image": split_images(image), "mask": split_images(mask)}
    if "points" in batch:
        prepared["points"] = split_samples(flip_points(flips, batch["points"]))
    return prepared | {"sample": samples}


def normal_latents(keys: jax.Array, size: int) -> jax.Array:
    """Draw one latent per key: [N, size]."""
    return jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)


def generator_input(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Concatenate the mask and the image without its hole."""
    return jnp.concatenate([mask - 0.5, image * mask], axis=-1)


def discriminator_input(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Concatenate the mask and the whole image."""
    return jnp.concatenate([mask - 0.5, image], axis=-1)


def composite(image: jax.Array, completion: jax.Array, mask: jax.Array) -> jax.Array:
    """Paste the completion into the hole of the image."""
    return image * mask + completion * (1 - mask)


def inpaint(
    generator: nn.Module,
    variables: Any,
    image: jax.Array,
    mask: jax.Array,
    *latents: jax.Array,
) -> jax.Array:
    """Fill the holes of images, with stored noise."""
    completion, _ = generator.apply(variables, generator_input(image, mask), *latents)
    return composite(image, jnp.clip(completion, -1, 1), mask)


def hole_psnr(image: jax.Array, completion: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the PSNR in decibels over each image's hole, averaged over images."""
    axes = (1, 2, 3)
    hole = 1 - mask
    squares = jnp.sum((jnp.clip(completion, -1, 1) - image) ** 2 * hole, axis=axes)
    pixels = jnp.sum(hole, axis=axes)
    error = squares / (4 * image.shape[-1] * jnp.maximum(pixels, 1))
    psnr = -10 * jnp.log10(jnp.maximum(error, MIN_HOLE_ERROR))
    has_hole = pixels > 0
    return jnp.sum(jnp.where(has_hole, psnr, 0)) / jnp.maximum(jnp.sum(has_hole), 1)
