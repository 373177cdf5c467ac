"""Adversarial losses and penalties: logistic, hinge, Wasserstein; R1, gradient norms.

Each returns one value per sample, so that any share of a batch can be averaged rightly.
Scores are [N, ...]: one of a whole image, or one of each patch, which are averaged.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Judge = Callable[[jax.Array], jax.Array]  # images -> scores


def logistic_generator_loss(fake: jax.Array) -> jax.Array:
    """How little a discriminator takes fakes for real: softplus(-D(fake)), [N]."""
    return _per_sample(jax.nn.softplus(-fake))


def logistic_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """softplus(D(fake)) + softplus(-D(real)), [N] (Goodfellow et al. 2014)."""
    return _per_sample(jax.nn.softplus(fake) + jax.nn.softplus(-real))


def hinge_generator_loss(fake: jax.Array) -> jax.Array:
    """-D(fake), [N]; that of Wasserstein's game, too."""
    return _per_sample(-fake)


def hinge_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """relu(1 - D(real)) + relu(1 + D(fake)), [N] (Lim and Ye 2017)."""
    return _per_sample(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake))


wasserstein_generator_loss = hinge_generator_loss


def wasserstein_critic_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """D(fake) - D(real), [N] (Arjovsky et al. 2017); the gradient needs a penalty."""
    return _per_sample(fake - real)


def r1_penalty(discriminator: Judge, real: jax.Array) -> jax.Array:
    """Half the squared gradient of D at real inputs, [N] (Mescheder et al. 2018).

    The gradient is with respect to all of D's input, a mask's channel included: so did
    MI-GAN's and Co-Mod-GAN's released networks train.
    """
    return 0.5 * jnp.sum(_gradient(discriminator, real) ** 2, axis=(1, 2, 3))


def gradient_norm(
    critic: Judge, points: jax.Array, where: jax.Array | float = 1.0
) -> jax.Array:
    """The length of the critic's gradient at some images, [N].

    Args:
      points: such as random ones between real and fake.
      where: weights of pixels, such as 1 in a hole and 0 around it.
    """
    squares = jnp.sum((_gradient(critic, points) * where) ** 2, axis=(1, 2, 3))
    # The root of zero has no derivative; there the penalty below is flat or pushes up.
    nonzero = jnp.where(squares > 0, squares, 1)
    return jnp.where(squares > 0, jnp.sqrt(nonzero), 0)


def between(real: jax.Array, fake: jax.Array, share: jax.Array) -> jax.Array:
    """Points on the lines from fakes (share 0) to real images (1); share is [N]."""
    share = share[:, None, None, None]
    return share * real + (1 - share) * fake


def two_sided_penalty(norm: jax.Array) -> jax.Array:
    """(norm - 1)^2, which asks for a slope of 1 (Gulrajani et al. 2017, eq. 3)."""
    return (norm - 1) ** 2


def one_sided_penalty(norm: jax.Array) -> jax.Array:
    """What a slope is above 1 (Hukkelas et al. 2020, eq. 11)."""
    return jax.nn.relu(norm - 1)


def _gradient(judge: Judge, images: jax.Array) -> jax.Array:
    return jax.grad(lambda x: jnp.sum(judge(x)))(images)


def _per_sample(scores: jax.Array) -> jax.Array:
    return jnp.mean(scores, axis=tuple(range(1, scores.ndim)))
