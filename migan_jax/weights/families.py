"""The network families by name, and their constructor arguments as plain data."""

import dataclasses
from typing import Any

from migan_jax.models import comodgan, discriminators, migan
from migan_jax.models.layers import Reparam

Network = (
    migan.Generator
    | comodgan.Generator
    | discriminators.MIGANDiscriminator
    | discriminators.CoModGANDiscriminator
)

FAMILIES: dict[str, type[Network]] = {
    "migan": migan.Generator,
    "comodgan": comodgan.Generator,
    "migan_discriminator": discriminators.MIGANDiscriminator,
    "comodgan_discriminator": discriminators.CoModGANDiscriminator,
}
GENERATORS = ("migan", "comodgan")

# linen's own fields, and how to compute, which a checkpoint does not decide.
_NOT_STORED = ("parent", "name", "dtype", "remat")


def family_of(network: Network) -> str:
    """The family's name."""
    return next(name for name, kind in FAMILIES.items() if type(network) is kind)


def describe(network: Network) -> dict[str, Any]:
    """The network as JSON-ready data."""
    fields = {
        field.name: getattr(network, field.name)
        for field in dataclasses.fields(network)
        if field.name not in _NOT_STORED
    }
    if "reparam" in fields:
        fields["reparam"] = dataclasses.asdict(fields["reparam"])
    return {"family": family_of(network), **fields}


def build(description: dict[str, Any]) -> Network:
    """The network that `describe` gave the data of."""
    fields = dict(description)
    kind = FAMILIES[fields.pop("family")]
    if "reparam" in fields:
        fields["reparam"] = Reparam(**fields["reparam"])
    return kind(**fields)


def has_kernels(network: Network) -> bool:
    """Whether the network has re-parametrised kernels, and so can be fused."""
    return hasattr(network, "reparam")
