"""Adversarial training of the twins in PyTorch, as the reference does it.

MI-GAN and Co-Mod-GAN: logistic losses, lazy R1, distillation, Adam and an EMA. Tests
compare our systems with it, and `train_step.py` its speed with ours.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from migan_jax.losses.distillation import MIN_DISTILLED_RESOLUTION

LEARNING_RATE, B1, B2 = 1e-3, 0.0, 0.99
INTERVALS = {"generator": 4, "discriminator": 16}  # of lazy penalties
R1_GAMMA, DISTILLATION_WEIGHT = 10.0, 2.0


class TorchGAN:
    """Losses and updates of a generator and a discriminator on one batch.

    Args:
      networks: twins "generator" and "discriminator"; "teacher" if it is distilled.
      image: [N, 3, H, W] in [-1, 1].
      mask: [N, 1, H, W], 1 where known.
      z: latents [N, z_dim] of Co-Mod-GANs; None draws new ones for each use.
      noise: of the generators, "stored" or "random".
      keep_graph: keep the graph of the teacher's forward pass, as the reference does.
      autocast: run in bfloat16, except for R1.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        image: Tensor,
        mask: Tensor,
        *,
        z: Tensor | None = None,
        noise: str = "stored",
        l1_weight: float = 0.0,
        ema_decay: float = 0.999,
        keep_graph: bool = False,
        compiled: bool = False,
        autocast: bool = False,
    ):
        self.networks, self.image, self.mask, self.z = networks, image, mask, z
        self._noise, self._l1_weight, self._ema_decay = noise, l1_weight, ema_decay
        self._keep_graph, self._autocast = keep_graph, autocast
        self._run = {
            name: torch.compile(network, dynamic=False) if compiled else network
            for name, network in networks.items()
        }
        self.ema = copy.deepcopy(networks["generator"])
        self._optimizers = {}
        for name, interval in INTERVALS.items():
            lazy = interval / (interval + 1)
            self._optimizers[name] = torch.optim.Adam(
                networks[name].requires_grad_(False).parameters(),
                LEARNING_RATE * lazy,
                (B1**lazy, B2**lazy),
                1e-8,
            )
        # By turn: the network that it trains, and its losses.
        self._turns: dict[str, tuple[str, Callable[[], Iterator[Tensor]]]] = {
            "generator": ("generator", self._generator_losses),
            "discriminator": ("discriminator", self._discriminator_losses),
            "penalty": ("discriminator", self._penalty_losses),
        }

    def step(self) -> dict[str, float]:
        """Update both networks and the EMA; return their losses."""
        losses = {turn: self.update(turn) for turn in ("generator", "discriminator")}
        with torch.no_grad():
            trained = self.networks["generator"].parameters()
            for average, value in zip(self.ema.parameters(), trained, strict=True):
                average.lerp_(value, 1 - self._ema_decay)
        return losses

    def update(self, turn: str) -> float:
        """Take one turn; return the sum of its losses."""
        total = self.backward(turn)
        name, _ = self._turns[turn]
        for parameter in self.networks[name].parameters():
            if (gradient := parameter.grad) is not None:
                torch.nan_to_num(gradient, nan=0, posinf=1e5, neginf=-1e5, out=gradient)
        self._optimizers[name].step()
        return total

    def backward(self, turn: str) -> float:
        """Leave a turn's gradient in its network; return the sum of its losses.

        Each loss is back-propagated as soon as it is computed, with the other network's
        parameters left out of the graph.
        """
        name, losses = self._turns[turn]
        network, total = self.networks[name], 0.0
        network.zero_grad()
        network.requires_grad_(True)
        for loss in losses():
            loss.backward()
            total += loss.item()
        network.requires_grad_(False)
        return total

    def _generator_losses(self) -> Iterator[Tensor]:
        completion, pyramid = self._complete("generator")
        loss = softplus(-self._logits(self._composite(completion))).mean()
        if self._l1_weight:
            distance = (completion - self.image).abs() * (1 - self.mask)
            loss = loss + self._l1_weight * distance.mean()
        if "teacher" in self.networks:
            with contextlib.nullcontext() if self._keep_graph else torch.no_grad():
                _, target = self._complete("teacher")
            for resolution, rgb in pyramid.items():
                if resolution >= MIN_DISTILLED_RESOLUTION:
                    stride = self.mask.shape[-1] // resolution
                    hole = 1 - self.mask[:, :, ::stride, ::stride]
                    distance = (rgb - target[resolution].detach()).abs() * hole
                    loss = loss + DISTILLATION_WEIGHT * distance.mean()
        # `target` is alive until the backward pass is done, and its graph, if any, too.
        yield loss

    def _discriminator_losses(self) -> Iterator[Tensor]:
        with torch.no_grad():
            completion, _ = self._complete("generator")
        yield softplus(self._logits(self._composite(completion))).mean()
        yield softplus(-self._logits(self.image)).mean()

    def _penalty_losses(self) -> Iterator[Tensor]:
        x = torch.cat([self.mask - 0.5, self.image], dim=1).requires_grad_()
        # Not compiled, since that has no second derivative, and not in bfloat16.
        logits = self.networks["discriminator"](x)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        r1 = gradient.square().sum(dim=(1, 2, 3)).mean() / 2
        # With the zero all parameters have a gradient, for Adam to see.
        yield INTERVALS["discriminator"] * R1_GAMMA * r1 + 0 * logits.sum()

    def _complete(self, name: str) -> tuple[Tensor, dict[int, Tensor]]:
        x = torch.cat([self.mask - 0.5, self.image * self.mask], dim=1)
        latents = []
        if mapping := getattr(self.networks[name], "mapping", None):
            z_dim = mapping.fc0.weight.shape[1]
            drawn = self.z is None
            latents = [x.new_empty(len(x), z_dim).normal_() if drawn else self.z]
        return self._apply(name, x, *latents, noise=self._noise, pyramid=True)

    def _composite(self, completion: Tensor) -> Tensor:
        return self.image * self.mask + completion * (1 - self.mask)

    def _logits(self, image: Tensor) -> Tensor:
        x = torch.cat([self.mask - 0.5, image], dim=1)
        return self._apply("discriminator", x)

    def _apply(self, name: str, *inputs: Tensor, **options: Any) -> Any:
        with torch.autocast("cuda", torch.bfloat16, enabled=self._autocast):
            return self._run[name](*inputs, **options)
