"""The PyTorch side of `train_step.py`: the twins and their training iteration."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from inpaint import resident_megabytes
from torch import nn
from torch_gan import INTERVALS, R1_GAMMA, TorchGAN

from migan_jax.twins import comodgan, migan
from migan_jax.twins.discriminators import TorchMIGANDiscriminator

KERNELS = 9
EMA_DECAY = 0.999


def resident_peak(before: float) -> float:
    """Return the peak memory since the last call, in GB beyond `before` MB."""
    peak = (resident_megabytes("VmHWM") - before) / 1e3
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    return peak


def widths(arguments: Namespace) -> tuple[dict[str, int], dict[str, int]]:
    """Return the sizes of all networks, and those of the teacher's latents."""

    def scaled(full: int) -> int:
        return max(int(full * arguments.width), 1)

    channels = {"channel_base": scaled(32768), "channel_max": scaled(512)}
    codes = {name: scaled(512) for name in ("z_dim", "w_dim")}
    codes["encoder_dim"] = scaled(1024)
    return {"resolution": arguments.resolution, **channels}, codes


def build_twins(
    arguments: Namespace, upsampling: str = "reference"
) -> dict[str, nn.Module]:
    """Make the networks with their initial weights, from one seed."""
    torch.manual_seed(0)
    sizes, codes = widths(arguments)
    form = {"num_kernels": KERNELS}
    return {
        "teacher": comodgan.TorchCoModGANGenerator(
            **sizes, **codes, upsampling=upsampling
        ).eval(),
        "generator": migan.TorchMIGANGenerator(**sizes, **form, upsampling=upsampling),
        "discriminator": TorchMIGANDiscriminator(**sizes, **form),
    }


class Theirs:
    """The twins' training iteration on one device, in one of its variants."""

    def __init__(
        self,
        arguments: Namespace,
        inputs: dict[str, Any],
        upsampling: str,
        keep_graph: bool = False,
        compiled: bool = False,
        autocast: bool = False,
    ):
        # As exact as ours.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.set_num_threads(arguments.threads)
        self._before = resident_megabytes("VmRSS")
        self._device = torch.device("cuda" if arguments.gpu else "cpu")
        layout = torch.channels_last if autocast else torch.contiguous_format
        image, mask = (
            torch.tensor(inputs["prepared"][name], device=self._device)
            .permute(0, 3, 1, 2)
            .contiguous(memory_format=layout)
            for name in ("image", "mask")
        )
        self._gan = TorchGAN(
            {
                name: twin.to(self._device, memory_format=layout)
                for name, twin in build_twins(arguments, upsampling).items()
            },
            image,
            mask,
            z=torch.tensor(inputs["z"], device=self._device),
            noise="random",
            ema_decay=EMA_DECAY,
            keep_graph=keep_graph,
            compiled=compiled,
            autocast=autocast,
        )

    def step(self) -> dict[str, float]:
        """Update both networks and the EMA; return their losses."""
        losses = self._gan.step()
        self._gan.z = None  # ours, too, draws new latents after the first step
        self._wait()
        return losses

    def penalty(self) -> dict[str, float]:
        """Take the R1 step; return the penalty without its weights."""
        weighted = self._gan.update("penalty")
        self._wait()
        return {"r1": weighted / (INTERVALS["discriminator"] * R1_GAMMA)}

    def peak_gigabytes(self) -> float:
        """Return the peak memory since the last call."""
        if self._device.type == "cpu":
            return resident_peak(self._before)
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return peak

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
