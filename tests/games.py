"""A system with random weights beside its PyTorch twins, and one batch for both.

Noise is stored and latents are fixed, so that both compute the same.
"""

import jax
import numpy as np
import torch
from parity import by_name, flax_of, inputs_like, randomise
from torch.nn.functional import softplus

from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.systems.comodgan import CoModGAN
from migan_jax.systems.migan import MIGAN
from migan_jax.twins import comodgan, migan
from migan_jax.twins.discriminators import CoModGANDiscriminator, MIGANDiscriminator

BATCH, SIZE = 4, 32  # one level is distilled
NARROW = {"resolution": SIZE, "channel_base": 512, "channel_max": 16}
CODES = {"z_dim": 12, "w_dim": 10, "encoder_dim": 14}
SAMPLER = SAMPLERS["box"]


class Game:
    """A system with random weights, its twins, and one batch for both."""

    def __init__(self, family):
        self.family = family
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
        if family == "migan":
            self.frozen = {"teacher": flax_of(self.teacher).variables}
            teacher = flax_of(self.teacher).network
            self.system = MIGAN(*networks, SAMPLER, teacher=teacher)
        else:
            self.frozen = {}
            self.system = CoModGAN(*networks, SAMPLER, l1_weight=3.0)
        self.params = {name: c.params for name, c in self.ours.items()}
        self.stats = {name: c.stats for name, c in self.ours.items()}
        rng = np.random.default_rng(0)
        image, self.image = inputs_like((BATCH, SIZE, SIZE, 3), np.float64, 1, 0.5)
        mask = (rng.random((BATCH, SIZE, SIZE, 1)) < 0.5).astype(np.float64)
        self.mask = torch.from_numpy(np.moveaxis(mask, -1, 1).copy())
        self.batch = {"image": image, "mask": mask}
        self.z, self.their_z = inputs_like((BATCH, CODES["z_dim"]), np.float64, 5)

    @staticmethod
    def make(twin, seed):
        return randomise(twin, torch.float64, seed)

    @property
    def drawn(self):
        if self.family == "migan":
            return {"noise": "stored", "teacher_noise": "stored", "z": self.z}
        return {"noise": "stored", "z": self.z}

    def value_and_gradient(self, player, loss):
        """Of one of the system's losses, in the parameters of one player."""

        def of(own):
            value, (_, metrics) = loss({**self.params, player: own})
            return value, metrics

        run = jax.jit(jax.value_and_grad(of, has_aux=True))
        (value, metrics), gradient = run(self.params[player])
        return value, metrics, by_name(self.ours[player].network, gradient)

    # The same with the twins.

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
        if self.family == "comodgan":
            distance = (completion - self.image).abs() * (1 - self.mask)
            return loss + 3 * distance.mean()
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
