"""Which network a set of named tensors is: family, resolution, widths, kernel form."""

import re
from collections import Counter

from migan_jax.models import comodgan, discriminators, migan
from migan_jax.models.channels import channels_at, levels
from migan_jax.models.layers import Reparam
from migan_jax.weights.families import Network, family_of
from migan_jax.weights.reading import Tensors

HIGHEST_RESOLUTION = 4096

_LEVEL = re.compile(r"(?:^|\.)b([0-9]{1,4})\.(fromrgb\.)?")

# What tells the families apart: a tensor that only they have, and the tensors (and
# their axis) where a level's width can be read off. The first that matches counts.
_SIGNS = (
    (comodgan.Generator, r"mapping\..*", r"synthesis\.b{}\.torgb\.weight", 1),
    (
        migan.Generator,
        r"synthesis\..*",
        r"synthesis\.b{}\.torgb\.(?:weight|w[0-9]+)",
        1,
    ),
    (
        discriminators.MIGANDiscriminator,
        r"b[0-9]+\.conv1\.conv1\.w[0-9]+",
        r"b{}\.(?:conv1\.conv1\.w[0-9]+|fc\.weight)",
        0,
    ),
    (
        discriminators.CoModGANDiscriminator,
        r"b[0-9]+\.conv0\.weight",
        r"b{}\.(?:conv0|fc)\.weight",
        0,
    ),
)

# Where Co-Mod-GAN's other widths can be read off: tensors and their axis.
_DENSE_WIDTHS = {
    "z_dim": [("mapping.fc0.weight", 1)],
    "w_dim": [
        (f"mapping.fc{index}.bias", 0) for index in range(comodgan.MAPPING_LAYERS)
    ],
    "encoder_dim": [
        ("encoder.b4.fc.weight", 0),
        ("encoder.b4.fc.bias", 0),
        ("synthesis.b4.fc.weight", 1),
    ],
}


def infer_network(tensors: Tensors) -> Network:
    """The network that has these tensors, from names and shapes alone.

    Where tensors contradict each other the majority counts, so that a few bad ones
    are reported as such, and not all the others.
    """
    resolution = _resolution(tensors)
    signs = [s for s in _SIGNS if any(re.fullmatch(s[1], name) for name in tensors)]
    if not signs or resolution < 8:
        raise Misfit(None, [])
    kind, _, width_name, axis = signs[0]
    # (level, name) of the tensors that tell a level's width.
    telling = [
        (level, name)
        for level in levels(resolution)
        for name in tensors
        if re.fullmatch(width_name.format(level), name)
    ]
    widths = [
        (level, tensors[name].shape[axis])
        for level, name in telling
        if tensors[name].ndim > axis and tensors[name].size
    ]
    base, widest = _channels(widths)
    if not channels_at(resolution, base, widest):
        raise Misfit(None, [])
    sizes = dict(resolution=resolution, channel_base=base, channel_max=widest)
    if kind is comodgan.Generator:
        return kind(**sizes, **_dense_widths(tensors))
    if kind is discriminators.CoModGANDiscriminator:
        return kind(**sizes)
    return kind(**sizes, reparam=_file_form([name for _, name in telling]))


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


def _dense_widths(tensors: Tensors) -> dict[str, int]:
    """Co-Mod-GAN's latent and style widths; the defaults where tensors are missing."""
    found = {
        field: Counter(
            tensors[name].shape[axis]
            for name, axis in where
            if name in tensors and tensors[name].ndim > axis and tensors[name].size
        )
        for field, where in _DENSE_WIDTHS.items()
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


class Misfit(Exception):
    """Everything in which a file's tensors differ from the network they name."""

    def __init__(self, network: Network | None, problems: list[str]):
        if network is None:
            text = (
                "its tensors are not those of a MI-GAN or Co-Mod-GAN network "
                "(released names, such as synthesis.b4.torgb.weight): check which "
                "network the file holds."
            )
        else:
            count = "1 tensor" if len(problems) == 1 else f"{len(problems)} tensors"
            text = (
                f"it looks like a {family_of(network)} at {network.resolution} px, "
                f"but for {count}:"
            )
            text = "\n  ".join([text, *problems])
        super().__init__(text)
        self.problems = problems
