"""Detection of accelerators, and the dtype to compute in."""

import collections
import importlib.util
import os
from pathlib import Path

import jax

from migan_jax.errors import UserError, how_to_install
from migan_jax.files import reason

DEV, PCI = Path("/dev"), Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"  # PCI vendor ID
AMPERE = 8.0  # minimum compute capability of NVIDIA GPUs with bfloat16


def has_tpu() -> bool:
    """Return whether this host's device files show a TPU."""
    if any(DEV.glob("accel[0-9]*")):
        return True
    vendors = (path.read_text().strip() for path in PCI.glob("*/vendor"))
    return (DEV / "vfio/0").exists() and GOOGLE in vendors


def on_tpu() -> bool:
    """Return whether JAX will use this host's TPUs, without initialising JAX."""
    allowed = os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    return allowed and has_tpu() and importlib.util.find_spec("libtpu") is not None


def check_devices() -> None:
    """Raise UserError if JAX has no devices, or processes differ in their number."""
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter without a plugin
        platforms = os.environ.get("JAX_PLATFORMS")
        setting = f" with JAX_PLATFORMS={platforms}" if platforms else ""
        raise UserError(
            f"JAX finds no device{setting}: {reason(error)}. Install the extra for the "
            f"machine (cuda12, cuda13 or tpu), or set JAX_PLATFORMS=cpu."
        ) from error
    counts = collections.Counter(device.process_index for device in devices)
    kinds = {device.process_index: device.device_kind for device in devices}
    first = counts[0], kinds[0]
    for process in sorted(counts):
        if (counts[process], kinds[process]) != first:
            raise UserError(
                f"All processes must have the same devices, but process {process} has "
                f"{counts[process]} {kinds[process]}, and process 0 {first[0]} "
                f"{first[1]}. Check JAX_PLATFORMS and CUDA_VISIBLE_DEVICES there."
            )


def idle_accelerator() -> str | None:
    """Describe an accelerator that JAX does not use, unless JAX_PLATFORMS is set."""
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return None
    if any(DEV.glob("nvidia[0-9]*")):
        found, extra = "an NVIDIA GPU", "cuda12"
    elif has_tpu():
        found, extra = "a TPU", "tpu"
    else:
        return None
    return (
        f"this machine has {found}, but JAX runs on the CPU. To use it: "
        f"{how_to_install(extra, f'jax[{extra}]')}"
    )


def has_bfloat16(device: jax.Device) -> bool:
    """Return whether the device computes in bfloat16; most CPUs emulate it."""
    if device.platform == "cpu":
        return False
    try:
        return float(getattr(device, "compute_capability", AMPERE)) >= AMPERE
    except ValueError:  # AMD, such as gfx90a: all that JAX supports have it
        return True


def resolve_dtype(
    dtype: str, previous: str | None = None, device: jax.Device | None = None
) -> str:
    """Return float32 or bfloat16 for the setting networks.dtype, which may be "auto".

    Args:
      previous: the dtype of the run that is resumed.
      device: None for JAX's first.
    """
    if dtype != "auto":
        return dtype
    if previous is not None:
        return previous
    return "bfloat16" if has_bfloat16(device or jax.devices()[0]) else "float32"


def describe_dtype(dtype: str, is_auto: bool) -> str:
    """Describe the dtype of activations, and why if it was chosen automatically."""
    device = jax.devices()[0]
    sentence = f"activations: {dtype}"
    if has_bfloat16(device):
        return sentence
    why = f"{device.device_kind} has no bfloat16 hardware"
    if dtype == "bfloat16":
        hint = "--config.networks.dtype=float32 may be faster"
        return f"{sentence}, but {why}: {hint}"
    return f"{sentence}, because {why}" if is_auto else sentence
