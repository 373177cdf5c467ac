"""Batches of images with holes: prepared, masked, completed, compared."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from migan_jax.data.mask_samplers import Sampler, masks_on_device
from migan_jax.data.transforms import flip, sample_keys
from migan_jax.ops.partition import split_images, split_samples
from migan_jax.systems.base import Batch

SMALLEST_ERROR = 1e-10  # a mean square, so that no PSNR is above 100 dB


def prepare(batch: Batch, key: jax.Array, sampler: Sampler) -> Batch:
    """Flipped "image" in [-1, 1] and "mask", 1 where known, both float32.

    A batch that comes with its own masks keeps them. "sample" is each one's place in
    the batch, which its random numbers follow into any part of it.
    """
    image = batch["image"].astype(jnp.float32) * (2 / 255) - 1
    samples = split_samples(jnp.arange(len(image)))
    flips, masks = (sample_keys(key, use, samples) for use in range(2))
    if "mask" in batch:
        own = batch["mask"].astype(jnp.float32)
        image, mask = flip(flips, image, own)
    else:
        (image,) = flip(flips, image)
        mask = masks_on_device(sampler, masks, image.shape[1])
    return {
        "image": split_images(image),
        "mask": split_images(mask),
        "sample": samples,
    }


def normal_latents(keys: jax.Array, size: int) -> jax.Array:
    """One latent for each key: [N, size]."""
    return jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)


def generator_input(image: jax.Array, mask: jax.Array) -> jax.Array:
    """What generators see: the mask, and the image without its hole."""
    return jnp.concatenate([mask - 0.5, image * mask], axis=-1)


def discriminator_input(image: jax.Array, mask: jax.Array) -> jax.Array:
    """What discriminators see: the mask, and a whole image."""
    return jnp.concatenate([mask - 0.5, image], axis=-1)


def composite(image: jax.Array, completion: jax.Array, mask: jax.Array) -> jax.Array:
    """The completion in the hole, the image around it."""
    return image * mask + completion * (1 - mask)


def completed(
    generator: nn.Module,
    variables: Any,
    image: jax.Array,
    mask: jax.Array,
    *latents: jax.Array,
) -> jax.Array:
    """Images with their holes filled, by the stored noise."""
    completion, _ = generator.apply(variables, generator_input(image, mask), *latents)
    return composite(image, jnp.clip(completion, -1, 1), mask)


def hole_psnr(image: jax.Array, completion: jax.Array, mask: jax.Array) -> jax.Array:
    """Peak signal to noise ratio over each image's hole, their mean in decibels."""
    axes = (1, 2, 3)
    hole = 1 - mask
    squares = jnp.sum((jnp.clip(completion, -1, 1) - image) ** 2 * hole, axis=axes)
    pixels = jnp.sum(hole, axis=axes)
    error = squares / (4 * image.shape[-1] * jnp.maximum(pixels, 1))
    psnr = -10 * jnp.log10(jnp.maximum(error, SMALLEST_ERROR))
    counted = pixels > 0
    return jnp.sum(jnp.where(counted, psnr, 0)) / jnp.maximum(jnp.sum(counted), 1)
