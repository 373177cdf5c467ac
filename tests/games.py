"""A system with random weights beside its PyTorch twins, and one batch for both.

Noise is stored and latents are given, so that both compute the same: what stands for
the numbers of the samples are their latents.
"""

import functools

import jax
import numpy as np
import torch
from parity import by_name, flax_of, inputs_like, randomise
from torch.nn.functional import softplus

from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.systems.base import Inputs
from migan_jax.systems.comodgan import CoModGAN
from migan_jax.systems.migan import MIGAN
from migan_jax.twins import comodgan, migan
from migan_jax.twins.discriminators import CoModGANDiscriminator, MIGANDiscriminator

BATCH, SIZE = 4, 32  # one level is distilled
NARROW = {"resolution": SIZE, "channel_base": 512, "channel_max": 16}
CODES = {"z_dim": 12, "w_dim": 10, "encoder_dim": 14}
SAMPLER = SAMPLERS["box"]


class GivenMIGAN(MIGAN):
    def prepare(self, batch, key, progress):
        return batch

    def noise(self, key, samples):
        return "stored"

    def teachers_latents(self, key, samples):
        return samples, "stored"


class GivenCoModGAN(CoModGAN):
    def prepare(self, batch, key, progress):
        return batch

    def draw(self, key, samples):
        return {"noise": "stored", "z": samples}


class Game:
    """A system with random weights, its twins, and one batch for both.

    Args:
      optimizers: from the generator's and the discriminator's network to optax's
        transformations by name.
    """

    def __init__(self, family, dtype=np.float64, optimizers=lambda *networks: {}):
        self.family = family
        self.dtype = dtype
        self.teacher = self.make(comodgan.Generator(**NARROW, **CODES), 1)
        if family == "migan":
            self.generator = self.make(migan.Generator(**NARROW, num_kernels=3), 2)
            self.judge = self.make(MIGANDiscriminator(**NARROW, num_kernels=3), 3)
        else:
            self.generator = self.make(comodgan.Generator(**NARROW, **CODES), 2)
            self.judge = self.make(CoModGANDiscriminator(**NARROW), 3)
        self.ours = {
            "generator": flax_of(self.generator),
            "discriminator": flax_of(self.judge),
        }
        networks = [checkpoint.network for checkpoint in self.ours.values()]
        rest = {"optimizers": optimizers(*networks), "l1_weight": 3.0}
        if family == "migan":
            self.frozen = {"teacher": flax_of(self.teacher).variables}
            teacher = flax_of(self.teacher).network
            self.system = GivenMIGAN(*networks, SAMPLER, **rest, teacher=teacher)
        else:
            self.frozen = {}
            self.system = GivenCoModGAN(*networks, SAMPLER, **rest)
        self.params = {name: c.params for name, c in self.ours.items()}
        self.stats = {name: c.stats for name, c in self.ours.items()}
        self.draw_batch(0)

    def draw_batch(self, seed):
        image, self.image = inputs_like((BATCH, SIZE, SIZE, 3), self.dtype, seed, 0.5)
        rng = np.random.default_rng(seed)
        mask = (rng.random((BATCH, SIZE, SIZE, 1)) < 0.5).astype(self.dtype)
        self.mask = torch.from_numpy(np.moveaxis(mask, -1, 1).copy())
        z, self.their_z = inputs_like((BATCH, CODES["z_dim"]), self.dtype, seed)
        self.batch = {"image": image, "mask": mask, "sample": z}

    def make(self, twin, seed):
        is_double = self.dtype == np.float64
        return randomise(twin, torch.float64 if is_double else torch.float32, seed)

    # What a turn is about: "generator", "discriminator" or the lazy "penalty".

    def ours_in(self, turn):
        """Loss, metrics and gradient in the turn's parameters, under their names."""
        name = "generator" if turn == "generator" else "discriminator"
        run = self.compiled(turn, name)
        (value, metrics), gradient = run(self.params[name], self.batch)
        return value, metrics, by_name(self.ours[name].network, gradient)

    @functools.cache  # noqa: B019  # games end with their tests
    def compiled(self, turn, name):
        minimised = {
            "generator": self.system.generator_loss,
            "discriminator": self.system.discriminator_loss,
            "penalty": self.system.r1_loss,
        }[turn]

        def loss(own, batch):
            params = {**self.params, name: own}
            inputs = Inputs(self.frozen, batch, jax.random.key(0), 0.0, 0.0)
            value, (_, metrics) = minimised(params, self.stats, inputs)
            return value, metrics

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    def theirs_in(self, turn):
        """The same with the twins: the loss, and the gradient of each parameter."""
        losses = {
            "generator": self.their_generator_loss,
            "discriminator": self.their_discriminator_loss,
            "penalty": self.their_penalty,
        }
        twin = self.generator if turn == "generator" else self.judge
        parameters = dict(twin.named_parameters())
        value = losses[turn]()
        gradient = torch.autograd.grad(
            value, list(parameters.values()), materialize_grads=True
        )
        named = zip(parameters, gradient, strict=True)
        return value.detach().numpy(), {name: g.numpy() for name, g in named}

    def their_completion(self):
        x = torch.cat([self.mask - 0.5, self.image * self.mask], dim=1)
        codes = [] if self.family == "migan" else [self.their_z]
        return self.generator(x, *codes, pyramid=True)

    def their_logits(self, image):
        return self.judge(torch.cat([self.mask - 0.5, image], dim=1))

    def their_fake(self, completion):
        return self.image * self.mask + completion * (1 - self.mask)

    def their_generator_loss(self):
        completion, pyramid = self.their_completion()
        loss = softplus(-self.their_logits(self.their_fake(completion))).mean()
        distance = (completion - self.image).abs() * (1 - self.mask)
        loss = loss + 3 * distance.mean()
        if self.family == "comodgan":
            return loss
        x = torch.cat([self.mask - 0.5, self.image * self.mask], dim=1)
        with torch.no_grad():
            _, target = self.teacher(x, self.their_z, pyramid=True)
        distance = (pyramid[SIZE] - target[SIZE]).abs() * (1 - self.mask)
        return loss + 2 * distance.mean()

    def their_discriminator_loss(self):
        with torch.no_grad():
            completion, _ = self.their_completion()
        fake = self.their_logits(self.their_fake(completion))
        return softplus(fake).mean() + softplus(-self.their_logits(self.image)).mean()

    def their_penalty(self):
        x = torch.cat([self.mask - 0.5, self.image], dim=1).detach().requires_grad_()
        logits = self.judge(x)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        r1 = gradient.square().sum(dim=(1, 2, 3)).mean()
        # Like the reference: all parameters have a gradient, so that Adam sees a zero.
        return 16 * 10 / 2 * r1 + 0 * logits.sum()
