"""The logistic adversarial losses and R1 (MI-GAN, section 3.3; Co-Mod-GAN alike).

Each returns one value per sample, so that any share of a batch can be averaged rightly.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def generator_loss(fake_logits: jax.Array) -> jax.Array:
    """How little a discriminator takes fakes for real: softplus(-D(fake)), [N]."""
    return jax.nn.softplus(-fake_logits[:, 0])


def discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """softplus(D(fake)) + softplus(-D(real)), [N]."""
    return jax.nn.softplus(fake_logits[:, 0]) + jax.nn.softplus(-real_logits[:, 0])


def r1_penalty(
    discriminator: Callable[[jax.Array], jax.Array], real: jax.Array
) -> jax.Array:
    """Half the squared gradient of D at real inputs, [N].

    The gradient is with respect to all of D's input, the mask's channel included: so
    did the released networks train.
    """
    gradient = jax.grad(lambda x: jnp.sum(discriminator(x)))(real)
    return 0.5 * jnp.sum(gradient**2, axis=(1, 2, 3))
