"""Infer networks from named tensors: kind, resolution, widths, kernel form."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from migan_jax.models.channels import channels_at, levels
from migan_jax.models.layers import Reparam
from migan_jax.weights.kinds import Kinds, Network, kind_of
from migan_jax.weights.tensor_files import Tensors

MAX_RESOLUTION = 4096

_LEVEL = re.compile(r"(?:^|\.)b([0-9]{1,4})\.(fromrgb\.)?")


def infer_networks(tensors: Tensors, kinds: Kinds) -> list[Network]:
    """Infer the networks that have these tensors from names and shapes alone."""
    networks = [
        kind.infer(tensors)
        for kind in kinds
        if any(re.fullmatch(kind.signature, name) for name in tensors)
    ]
    if not networks:
        raise UnknownNetwork
    return networks


def infer_by_levels(
    tensors: Tensors,
    module: type[Network],
    *,
    width: str,
    axis: int,
    other_widths: Mapping[str, Sequence[tuple[str, int]]] | None = None,
    with_kernels: bool = False,
) -> Network:
    """Infer a network with levels b4, b8, ... named as in StyleGAN2.

    Args:
      width: pattern of the tensors whose `axis` is a level's width; {} is the level.
      axis: the axis of the width in these tensors.
      other_widths: for each other field, tensors and the axes that give its value.
      with_kernels: whether the network has re-parametrised kernels.

    If tensors contradict each other, the majority decides, so that errors name the few
    bad tensors instead of all others.
    """
    resolution = _infer_resolution(tensors)
    if resolution < 8:
        raise UnknownNetwork
    matches = [
        (level, name)
        for level in levels(resolution)
        for name in tensors
        if re.fullmatch(width.format(level), name)
    ]
    widths = [
        (level, tensors[name].shape[axis])
        for level, name in matches
        if tensors[name].ndim > axis and tensors[name].size
    ]
    channel_base, channel_max = fit_channels(widths)
    if not channels_at(resolution, channel_base, channel_max):
        raise UnknownNetwork
    fields: dict[str, Any] = infer_widths(tensors, other_widths or {})
    if with_kernels:
        fields["reparam"] = _infer_reparam([name for _, name in matches])
    return module(
        resolution=resolution,
        channel_base=channel_base,
        channel_max=channel_max,
        **fields,
    )


def _infer_resolution(tensors: Tensors) -> int:
    """Return the input level if a tensor names it, otherwise the highest level."""
    matches = [match for name in tensors for match in _LEVEL.findall(name)]
    inputs = [match for match in matches if match[1]]
    named = {int(level) for level, _ in inputs or matches}
    return max(named.intersection(levels(MAX_RESOLUTION)), default=0)


def fit_channels(widths: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the base and maximum that fit most of the (level, width) pairs.

    Of several, the multiples of the highest powers of 2.
    """
    candidates = {
        (level * width, maximum) for level, width in widths for _, maximum in widths
    }

    def rank(channels: tuple[int, int]) -> tuple[int, ...]:
        fits = [channels_at(level, *channels) == width for level, width in widths]
        return sum(fits), *(number & -number for number in channels)

    return max(sorted(candidates), key=rank, default=(0, 0))


def infer_widths(
    tensors: Tensors, sources: Mapping[Any, Sequence[tuple[str, int]]]
) -> dict[Any, int]:
    """Infer fields from tensors; fields without any tensor keep their defaults."""
    counts = {
        field: Counter(
            tensors[name].shape[axis]
            for name, axis in candidates
            if name in tensors and tensors[name].ndim > axis and tensors[name].size
        )
        for field, candidates in sources.items()
    }
    return {
        field: sizes.most_common(1)[0][0] for field, sizes in counts.items() if sizes
    }


def _infer_reparam(names: list[str]) -> Reparam:
    """Infer form and number of kernels from the kernel names of some layers."""
    layers = Counter(
        name.rpartition(".")[0] for name in names if not name.endswith(".weight")
    )
    if sum(name.endswith("torgb.weight") for name in names) >= len(layers):
        return Reparam(form="fused")
    kernels = Counter(layers.values()).most_common(1)[0][0]
    return Reparam(form="expanded", kernels=kernels)


class UnknownNetwork(Exception):
    """The tensors belong to no known network."""

    def __str__(self) -> str:
        return (
            "its tensors match no known network (released names are like "
            "synthesis.b4.torgb.weight). Check which network the file holds."
        )


class NetworkMismatch(Exception):
    """All differences between a file's tensors and the networks inferred from them."""

    def __init__(self, networks: list[Network], kinds: Kinds, problems: list[str]):
        count = "1 tensor" if len(problems) == 1 else f"{len(problems)} tensors"
        names = " and a ".join(kind_of(network, kinds).name for network in networks)
        head = (
            f"it looks like a {names} at {networks[0].resolution} px, except for "
            f"{count}:"
        )
        super().__init__("\n  ".join([head, *problems]))
        self.problems = problems
