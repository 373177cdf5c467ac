"""What this machine computes on, and in which numbers that can be done."""

import importlib.util
import os
from pathlib import Path

import jax

from migan_jax.errors import how_to_install

DEV, PCI = Path("/dev"), Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"  # as the maker of a PCI device
AMPERE = 8.0  # the compute capability from which NVIDIA's GPUs have bfloat16


def has_tpu() -> bool:
    """Whether this host has TPUs, as far as its files tell."""
    if any(DEV.glob("accel[0-9]*")):
        return True
    makers = (path.read_text().strip() for path in PCI.glob("*/vendor"))
    return (DEV / "vfio/0").exists() and GOOGLE in makers


def on_tpu() -> bool:
    """Whether JAX is going to use TPUs of this host; it need not be started for it."""
    wanted = os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    return wanted and has_tpu() and importlib.util.find_spec("libtpu") is not None


def idle_accelerator() -> str | None:
    """A sentence on an accelerator that JAX leaves alone without being told to."""
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return None
    if any(DEV.glob("nvidia[0-9]*")):
        found, extra = "an NVIDIA GPU", "cuda12"
    elif has_tpu():
        found, extra = "a TPU", "tpu"
    else:
        return None
    return (
        f"this machine has {found}, but JAX runs on the CPU: "
        f"{how_to_install(extra, f'jax[{extra}]')}"
    )


def has_bfloat16(device: jax.Device) -> bool:
    """Whether it computes in bfloat16 itself; CPUs mostly make float32 of it."""
    if device.platform == "cpu":
        return False
    try:
        return float(getattr(device, "compute_capability", AMPERE)) >= AMPERE
    except ValueError:  # of AMD, such as gfx90a: all that JAX supports have it
        return True


def resolved_dtype(wanted: str, earlier: str | None = None) -> str:
    """float32 or bfloat16 for a setting that may be "auto".

    Args:
      wanted: the setting.
      earlier: what the run has computed in until now.
    """
    if wanted != "auto":
        return wanted
    if earlier is not None:
        return earlier
    return "bfloat16" if has_bfloat16(jax.devices()[0]) else "float32"


def describe_dtype(dtype: str, chosen: bool) -> str:
    """What activations are computed in; and why, if that was chosen by the devices."""
    device = jax.devices()[0]
    sentence = f"activations: {dtype}"
    if has_bfloat16(device):
        return sentence
    without = f"{device.device_kind} has no bfloat16 in hardware"
    if dtype == "bfloat16":
        faster = "--config.networks.dtype=float32 may be faster"
        return f"{sentence}, though {without}: {faster}"
    return f"{sentence}, since {without}" if chosen else sentence
