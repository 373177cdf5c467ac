"""The PyTorch side of `train_step.py`: the twins, and how the reference steps them."""

import contextlib
import copy
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from inpaint import resident_megabytes
from torch import Tensor, nn
from torch.nn.functional import softplus

from migan_jax.losses.distillation import LOWEST_RESOLUTION
from migan_jax.twins import comodgan, migan
from migan_jax.twins.discriminators import MIGANDiscriminator

KERNELS = 9
LEARNING_RATE, B1, B2, EMA_DECAY = 1e-3, 0.0, 0.99, 0.999
INTERVALS = {"generator": 4, "discriminator": 16}
R1_GAMMA, DISTILLATION_WEIGHT = 10.0, 2.0


def resident_peak(before: float) -> float:
    """Gigabytes beyond `before` megabytes, at most since this was last asked."""
    peak = (resident_megabytes("VmHWM") - before) / 1e3
    Path("/proc/self/clear_refs").write_text("5")  # resets it to what is in use
    return peak


def widths(arguments: Namespace) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes that all networks have, and those of the teacher's codes."""

    def scaled(full: int) -> int:
        return max(int(full * arguments.width), 1)

    channels = {"channel_base": scaled(32768), "channel_max": scaled(512)}
    codes = {name: scaled(512) for name in ("z_dim", "w_dim")}
    codes["encoder_dim"] = scaled(1024)
    return {"resolution": arguments.resolution, **channels}, codes


def build_twins(
    arguments: Namespace, upsampling: str = "reference"
) -> dict[str, nn.Module]:
    """The networks as training begins with them, from one seed."""
    torch.manual_seed(0)
    sizes, codes = widths(arguments)
    form = {"num_kernels": KERNELS}
    return {
        "teacher": comodgan.Generator(**sizes, **codes, upsampling=upsampling).eval(),
        "generator": migan.Generator(**sizes, **form, upsampling=upsampling),
        "discriminator": MIGANDiscriminator(**sizes, **form),
    }


class Theirs:
    """The twins and their training iteration, in one of its variants.

    Like the reference it goes back through each loss as soon as that is computed, with
    the other player's parameters left out of the graph.
    """

    def __init__(
        self,
        arguments: Namespace,
        inputs: dict[str, Any],
        upsampling: str,
        keep_graph: bool = False,
        compiled: bool = False,
        autocast: bool = False,
    ):
        # As exact as ours is asked to be.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.set_num_threads(arguments.threads)
        self._before = resident_megabytes("VmRSS")
        self._device = torch.device("cuda" if arguments.gpu else "cpu")
        self._keep_graph, self._autocast = keep_graph, autocast
        layout = torch.channels_last if autocast else torch.contiguous_format
        self._networks = {
            name: twin.to(self._device, memory_format=layout)
            for name, twin in build_twins(arguments, upsampling).items()
        }
        self._run = {
            name: torch.compile(network, dynamic=False) if compiled else network
            for name, network in self._networks.items()
        }
        self._ema = copy.deepcopy(self._networks["generator"])
        self._optimizers = {}
        for player, interval in INTERVALS.items():
            share = interval / (interval + 1)
            self._optimizers[player] = torch.optim.Adam(
                self._networks[player].requires_grad_(False).parameters(),
                LEARNING_RATE * share,
                (B1**share, B2**share),
                1e-8,
            )
        self._image, self._mask = (
            torch.tensor(inputs["prepared"][name], device=self._device)
            .permute(0, 3, 1, 2)
            .contiguous(memory_format=layout)
            for name in ("image", "mask")
        )
        self._first_z = torch.tensor(inputs["z"], device=self._device)

    # What a worker is asked for.

    def step(self) -> dict[str, float]:
        """Both players and the EMA; returns their losses."""
        losses = {
            "generator": self._turn("generator", self._generator_losses()),
            "discriminator": self._turn("discriminator", self._discriminator_losses()),
        }
        with torch.no_grad():
            pairs = zip(
                self._ema.parameters(),
                self._networks["generator"].parameters(),
                strict=True,
            )
            for average, value in pairs:
                average.lerp_(value, 1 - EMA_DECAY)
        self._wait()
        return losses

    def penalty(self) -> dict[str, float]:
        """The R1 step; returns the penalty without its weights."""
        weighted = self._turn("discriminator", self._weighted_penalty())
        self._wait()
        return {"r1": weighted / (INTERVALS["discriminator"] * R1_GAMMA)}

    def peak_gigabytes(self) -> float:
        """The most memory since this was last asked."""
        if self._device.type == "cpu":
            return resident_peak(self._before)
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return peak

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    # The iteration.

    def _turn(self, player: str, losses: Iterator[Tensor]) -> float:
        """One player's update; returns the sum of its losses."""
        network, optimizer = self._networks[player], self._optimizers[player]
        optimizer.zero_grad()
        network.requires_grad_(True)
        total = 0.0
        for loss in losses:
            loss.backward()
            total += loss.item()
        network.requires_grad_(False)
        for parameter in network.parameters():
            gradient = parameter.grad
            torch.nan_to_num(gradient, nan=0, posinf=1e5, neginf=-1e5, out=gradient)
        optimizer.step()
        return total

    def _generator_losses(self) -> Iterator[Tensor]:
        completion, pyramid = self._complete()
        loss = softplus(-self._judge(self._fake(completion))).mean()
        z = self._first_z
        if z is None:
            size = self._networks["teacher"].mapping.fc0.weight.shape[1]
            z = torch.randn(len(self._image), size, device=self._device)
        self._first_z = None
        with contextlib.nullcontext() if self._keep_graph else torch.no_grad():
            _, target = self._apply("teacher", self._masked(), z)
        for resolution, rgb in pyramid.items():
            if resolution >= LOWEST_RESOLUTION:
                stride = self._mask.shape[-1] // resolution
                hole = 1 - self._mask[:, :, ::stride, ::stride]
                distance = (rgb - target[resolution].detach()).abs() * hole
                loss = loss + DISTILLATION_WEIGHT * distance.mean()
        # While the generator's backward pass runs, `target` keeps its graph, if any.
        yield loss

    def _discriminator_losses(self) -> Iterator[Tensor]:
        with torch.no_grad():
            completion, _ = self._complete()
        yield softplus(self._judge(self._fake(completion))).mean()
        yield softplus(-self._judge(self._image)).mean()

    def _weighted_penalty(self) -> Iterator[Tensor]:
        x = torch.cat([self._mask - 0.5, self._image], dim=1).requires_grad_()
        # Neither compiled, which has no second derivative, nor in bfloat16.
        logits = self._networks["discriminator"](x)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        r1 = gradient.square().sum(dim=(1, 2, 3)).mean() / 2
        # The zero lets all parameters have a gradient, which Adam then sees.
        yield INTERVALS["discriminator"] * R1_GAMMA * r1 + 0 * logits.sum()

    def _apply(self, name: str, *inputs: Tensor) -> Any:
        """A generator's picture and levels, noise drawn anew; or logits."""
        options = {} if name == "discriminator" else {"noise": "random"}
        if name != "discriminator":
            options["pyramid"] = True
        with torch.autocast("cuda", torch.bfloat16, enabled=self._autocast):
            return self._run[name](*inputs, **options)

    def _complete(self) -> tuple[Tensor, dict[int, Tensor]]:
        return self._apply("generator", self._masked())

    def _masked(self) -> Tensor:
        return torch.cat([self._mask - 0.5, self._image * self._mask], dim=1)

    def _fake(self, completion: Tensor) -> Tensor:
        return self._image * self._mask + completion * (1 - self._mask)

    def _judge(self, image: Tensor) -> Tensor:
        return self._apply("discriminator", torch.cat([self._mask - 0.5, image], dim=1))
