"""Which network a set of named tensors is: kind, resolution, widths, kernel form."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from migan_jax.models.channels import channels_at, levels
from migan_jax.models.layers import Reparam
from migan_jax.weights.kinds import Kinds, Network, kind_of
from migan_jax.weights.reading import Tensors

HIGHEST_RESOLUTION = 4096

_LEVEL = re.compile(r"(?:^|\.)b([0-9]{1,4})\.(fromrgb\.)?")


def infer_networks(tensors: Tensors, kinds: Kinds) -> list[Network]:
    """The networks that have these tensors, from names and shapes alone."""
    found = [
        kind.infer(tensors)
        for kind in kinds
        if any(re.fullmatch(kind.sign, name) for name in tensors)
    ]
    if not found:
        raise Unknown
    return found


def infer_by_levels(
    tensors: Tensors,
    module: type[Network],
    *,
    width: str,
    axis: int,
    other_widths: Mapping[str, Sequence[tuple[str, int]]] | None = None,
    with_kernels: bool = False,
) -> Network:
    """A network of levels b4, b8, ... as StyleGAN2 names them.

    Args:
      width: the pattern of tensors where a level's width can be read off, the level
        being {}; and their axis.
      other_widths: by field, tensors with their axes where it can be read off.
      with_kernels: whether it has re-parametrised kernels.

    Where tensors contradict each other the majority counts, so that a few bad ones
    are reported as such, and not all the others.
    """
    resolution = _resolution(tensors)
    if resolution < 8:
        raise Unknown
    # (level, name) of the tensors that tell a level's width.
    telling = [
        (level, name)
        for level in levels(resolution)
        for name in tensors
        if re.fullmatch(width.format(level), name)
    ]
    widths = [
        (level, tensors[name].shape[axis])
        for level, name in telling
        if tensors[name].ndim > axis and tensors[name].size
    ]
    base, widest = _channels(widths)
    if not channels_at(resolution, base, widest):
        raise Unknown
    fields: dict[str, Any] = _widths(tensors, other_widths or {})
    if with_kernels:
        fields["reparam"] = _file_form([name for _, name in telling])
    return module(
        resolution=resolution, channel_base=base, channel_max=widest, **fields
    )


def _resolution(tensors: Tensors) -> int:
    """The highest level, and where the picture comes in if any tensor says that."""
    found = [match for name in tensors for match in _LEVEL.findall(name)]
    entrances = [match for match in found if match[1]]
    named = {int(level) for level, _ in entrances or found}
    return max(named.intersection(levels(HIGHEST_RESOLUTION)), default=0)


def _channels(widths: list[tuple[int, int]]) -> tuple[int, int]:
    """Base and maximum that agree with the most of the (level, width) given."""
    candidates = {(level * w, widest) for level, w in widths for _, widest in widths}

    def agreement(channels: tuple[int, int]) -> int:
        return sum(channels_at(level, *channels) == width for level, width in widths)

    return max(sorted(candidates), key=agreement, default=(0, 0))


def _widths(
    tensors: Tensors, where: Mapping[str, Sequence[tuple[str, int]]]
) -> dict[str, int]:
    """Fields that can be read off; where tensors are missing, the defaults stay."""
    found = {
        field: Counter(
            tensors[name].shape[axis]
            for name, axis in places
            if name in tensors and tensors[name].ndim > axis and tensors[name].size
        )
        for field, places in where.items()
    }
    return {
        field: sizes.most_common(1)[0][0] for field, sizes in found.items() if sizes
    }


def _file_form(names: list[str]) -> Reparam:
    """Form and number of kernels, from the names of the kernels of some layers."""
    layers = Counter(
        name.rpartition(".")[0] for name in names if not name.endswith(".weight")
    )
    if sum(name.endswith("torgb.weight") for name in names) >= len(layers):
        return Reparam(form="fused")
    kernels = Counter(layers.values()).most_common(1)[0][0]
    return Reparam(form="expanded", kernels=kernels)


class Unknown(Exception):
    """The tensors are those of no network that is known."""

    def __str__(self) -> str:
        return (
            "its tensors are not those of any network known here (released names, such "
            "as synthesis.b4.torgb.weight): check which network the file holds."
        )


class Misfit(Exception):
    """Everything in which a file's tensors differ from the networks they name."""

    def __init__(self, networks: list[Network], kinds: Kinds, problems: list[str]):
        count = "1 tensor" if len(problems) == 1 else f"{len(problems)} tensors"
        names = " and a ".join(kind_of(network, kinds).name for network in networks)
        head = (
            f"it looks like a {names} at {networks[0].resolution} px, but for {count}:"
        )
        super().__init__("\n  ".join([head, *problems]))
        self.problems = problems
