"""Adversarial losses and penalties: logistic, hinge, Wasserstein; R1, gradient norms.

Each returns one value per sample, so that any part of a batch can be averaged.
Scores are [N, ...]: one per image or one per patch; patches are averaged.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Discriminator = Callable[[jax.Array], jax.Array]  # images -> scores


def logistic_generator_loss(fake: jax.Array) -> jax.Array:
    """softplus(-D(fake)), [N]: the non-saturating loss (Goodfellow et al. 2014)."""
    return _per_sample(jax.nn.softplus(-fake))


def logistic_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """softplus(D(fake)) + softplus(-D(real)), [N] (Goodfellow et al. 2014)."""
    return _per_sample(jax.nn.softplus(fake) + jax.nn.softplus(-real))


def hinge_generator_loss(fake: jax.Array) -> jax.Array:
    """-D(fake), [N]; also the Wasserstein generator loss."""
    return _per_sample(-fake)


def hinge_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """relu(1 - D(real)) + relu(1 + D(fake)), [N] (Lim and Ye 2017)."""
    return _per_sample(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake))


wasserstein_generator_loss = hinge_generator_loss


def wasserstein_critic_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """D(fake) - D(real), [N] (Arjovsky et al. 2017); use it with a gradient penalty."""
    return _per_sample(fake - real)


def drift(real: jax.Array) -> jax.Array:
    """D(real)^2, [N]: keeps the critic's scores near 0 (Karras et al. 2018)."""
    return _per_sample(real**2)


def r1_penalty(discriminator: Discriminator, real: jax.Array) -> jax.Array:
    """Half the squared gradient norm of D at real inputs, [N] (Mescheder et al. 2018).

    The gradient is with respect to all input channels, including the mask, as in the
    training of the released MI-GAN and Co-Mod-GAN.
    """
    return 0.5 * jnp.sum(_gradient(discriminator, real) ** 2, axis=(1, 2, 3))


def gradient_norm(
    critic: Discriminator, points: jax.Array, weights: jax.Array | float = 1.0
) -> jax.Array:
    """Return the norm of the critic's gradient at some images, [N].

    Args:
      points: images, such as random interpolations of real and fake ones.
      weights: of the gradient's pixels, such as 1 in a hole and 0 around it.
    """
    squares = jnp.sum((_gradient(critic, points) * weights) ** 2, axis=(1, 2, 3))
    # sqrt has an infinite derivative at 0: use 0 there.
    nonzero = jnp.where(squares > 0, squares, 1)
    return jnp.where(squares > 0, jnp.sqrt(nonzero), 0)


def interpolate(real: jax.Array, fake: jax.Array, fraction: jax.Array) -> jax.Array:
    """Interpolate from fake (fraction 0) to real images (1); fraction is [N]."""
    fraction = fraction[:, None, None, None]
    return fraction * real + (1 - fraction) * fake


def two_sided_penalty(norm: jax.Array) -> jax.Array:
    """(norm - 1)^2, minimal at a norm of 1 (Gulrajani et al. 2017, eq. 3).

    With weights in `gradient_norm`, it is what Hukkelas et al. reject (eq. 9).
    """
    return (norm - 1) ** 2


def one_sided_penalty(norm: jax.Array) -> jax.Array:
    """max(norm - 1, 0) (Hukkelas et al. 2020, eq. 11)."""
    return jax.nn.relu(norm - 1)


def _gradient(discriminator: Discriminator, images: jax.Array) -> jax.Array:
    return jax.grad(lambda x: jnp.sum(discriminator(x)))(images)


def _per_sample(scores: jax.Array) -> jax.Array:
    return jnp.mean(scores, axis=tuple(range(1, scores.ndim)))
