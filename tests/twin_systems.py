"""A system with random weights beside PyTorch's training of its twins.

Both use stored noise and the same latents. A batch's "sample" holds the latents instead
of sample numbers.
"""

import functools

import jax
import numpy as np
import torch
from parity import by_name, flax_of, inputs_like, randomise
from torch_gan import TorchGAN

from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.systems.base import Inputs
from migan_jax.systems.comodgan import CoModGAN
from migan_jax.systems.migan import MIGAN
from migan_jax.twins import comodgan, migan
from migan_jax.twins.discriminators import (
    TorchCoModGANDiscriminator,
    TorchMIGANDiscriminator,
)

BATCH, SIZE = 4, 32  # one level is distilled
NARROW = {"resolution": SIZE, "channel_base": 512, "channel_max": 16}
CODES = {"z_dim": 12, "w_dim": 10, "encoder_dim": 14}
SAMPLER = SAMPLERS["box"]
L1_WEIGHT = 3.0


class GivenMIGAN(MIGAN):
    def prepare(self, batch, key, progress):
        return batch

    def noise(self, key, samples):
        return "stored"

    def teacher_inputs(self, key, samples):
        return samples, "stored"


class GivenCoModGAN(CoModGAN):
    def prepare(self, batch, key, progress):
        return batch

    def draw(self, key, samples):
        return {"noise": "stored", "z": samples}


class TwinSystems:
    """A system, its twins, and one batch for both.

    Args:
      optimizers: makes optax transformations, by name, from the generator and the
        discriminator.
    """

    def __init__(
        self, family, dtype=np.float64, optimizers=lambda *networks: {}, ema_decay=0.999
    ):
        self.family = family
        self.dtype = dtype
        self.ema_decay = ema_decay
        if family == "migan":
            kernels = {"num_kernels": 3}
            self.twins = {
                "generator": migan.TorchMIGANGenerator(**NARROW, **kernels),
                "discriminator": TorchMIGANDiscriminator(**NARROW, **kernels),
                "teacher": comodgan.TorchCoModGANGenerator(**NARROW, **CODES),
            }
        else:
            self.twins = {
                "generator": comodgan.TorchCoModGANGenerator(**NARROW, **CODES),
                "discriminator": TorchCoModGANDiscriminator(**NARROW),
            }
        torch_dtype = torch.float64 if dtype == np.float64 else torch.float32
        for seed, twin in enumerate(self.twins.values(), 1):
            randomise(twin, torch_dtype, seed)
        ours = {name: flax_of(twin) for name, twin in self.twins.items()}
        teacher = ours.pop("teacher", None)
        self.ours = ours
        networks = [checkpoint.network for checkpoint in self.ours.values()]
        rest = {"optimizers": optimizers(*networks), "l1_weight": L1_WEIGHT}
        if family == "migan":
            self.frozen = {"teacher": teacher.variables}
            rest["teacher"] = teacher.network
            self.system = GivenMIGAN(*networks, SAMPLER, **rest)
        else:
            self.frozen = {}
            self.system = GivenCoModGAN(*networks, SAMPLER, **rest)
        self.params = {name: c.params for name, c in self.ours.items()}
        self.stats = {name: c.stats for name, c in self.ours.items()}
        self.draw_batch(0)

    def draw_batch(self, seed):
        image, their_image = inputs_like((BATCH, SIZE, SIZE, 3), self.dtype, seed, 0.5)
        rng = np.random.default_rng(seed)
        mask = (rng.random((BATCH, SIZE, SIZE, 1)) < 0.5).astype(self.dtype)
        their_mask = torch.from_numpy(np.moveaxis(mask, -1, 1).copy())
        z, their_z = inputs_like((BATCH, CODES["z_dim"]), self.dtype, seed)
        self.batch = {"image": image, "mask": mask, "sample": z}
        self.theirs = TorchGAN(
            self.twins,
            their_image,
            their_mask,
            z=their_z,
            l1_weight=L1_WEIGHT,
            ema_decay=self.ema_decay,
        )

    # A turn is "generator", "discriminator" or "penalty".

    def ours_in(self, turn):
        """Return loss, metrics and gradient of a turn, under the released names."""
        name = "generator" if turn == "generator" else "discriminator"
        run = self.compiled(turn, name)
        (value, metrics), gradient = run(self.params[name], self.batch)
        return value, metrics, by_name(self.ours[name].network, gradient)

    @functools.cache  # noqa: B019  # lives as long as its test
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
        """Return the loss and gradient of the twins."""
        value = self.theirs.backward(turn)
        twin = self.twins["generator" if turn == "generator" else "discriminator"]
        gradient = {
            name: np.zeros(p.shape) if p.grad is None else p.grad.numpy()
            for name, p in twin.named_parameters()
        }
        return value, gradient
