"""Which network a set of named tensors is: family, resolution, widths, kernel form."""

import re

from migan_jax.models import comodgan, discriminators, migan
from migan_jax.models.layers import Reparam
from migan_jax.weights.families import Network
from migan_jax.weights.reading import Tensors

MISFITS_SHOWN = 40
HIGHEST_RESOLUTION = 4096


_LEVEL = re.compile(r"(?:^|\.)b(\d+)\.")

# What tells the families apart: a tensor that only they have, and the tensor (and its
# axis) where a level's width can be read off. The first that matches counts.
_SIGNS = (
    (comodgan.Generator, r"mapping\..*", r"synthesis\.b{}\.torgb\.weight", 1),
    (migan.Generator, r"synthesis\..*", r"synthesis\.b{}\.torgb\.(?:weight|w0)", 1),
    (
        discriminators.MIGANDiscriminator,
        r"b\d+\.conv1\.conv1\.w0",
        r"b{}\.conv1\.conv1\.w0",
        0,
    ),
    (
        discriminators.CoModGANDiscriminator,
        r"b\d+\.conv0\.weight",
        r"b{}\.conv0\.weight",
        0,
    ),
)


def infer_network(tensors: Tensors) -> Network:
    """The network that has these tensors, from names and shapes alone."""
    named = {int(level) for name in tensors for level in _LEVEL.findall(name)}
    resolution = max(named, default=0)
    signs = [s for s in _SIGNS if any(re.fullmatch(s[1], name) for name in tensors)]
    if not signs or not 8 <= resolution <= HIGHEST_RESOLUTION:
        raise Misfit(None, [])
    if resolution & (resolution - 1):
        raise Misfit(None, [])
    kind, _, width_name, axis = signs[0]
    widths = {
        level: array.shape[axis]
        for level in named
        for name, array in tensors.items()
        if re.fullmatch(width_name.format(level), name) and array.ndim > axis
    }
    widest = max(widths.values(), default=0)
    if not widest:
        raise Misfit(None, [])
    narrower = [width * level for level, width in widths.items() if width < widest]
    sizes = dict(
        resolution=resolution,
        # Where every level is as wide as the widest, any large enough base will do.
        channel_base=max(narrower, default=widest * resolution),
        channel_max=widest,
    )
    if kind is comodgan.Generator:
        return kind(**sizes, **_dense_widths(tensors))
    if kind is discriminators.CoModGANDiscriminator:
        return kind(**sizes)
    return kind(**sizes, reparam=_file_form(tensors))


def _dense_widths(tensors: Tensors) -> dict[str, int]:
    """Co-Mod-GAN's latent and style widths; the defaults where a tensor is missing."""
    where = {
        "z_dim": ("mapping.fc0.weight", 1),
        "w_dim": ("mapping.fc0.weight", 0),
        "encoder_dim": ("encoder.b4.fc.weight", 0),
    }
    return {
        field: tensors[name].shape[axis]
        for field, (name, axis) in where.items()
        if name in tensors and tensors[name].ndim == 2
    }


def _file_form(tensors: Tensors) -> Reparam:
    indices = [
        int(match.group(1))
        for name in tensors
        if (match := re.search(r"\.w(\d+)$", name))
    ]
    if not indices:
        return Reparam(form="fused")
    return Reparam(form="expanded", kernels=max(indices) + 1)


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
            shown = problems[:MISFITS_SHOWN]
            more = len(problems) - len(shown)
            text = "\n  ".join(
                [
                    f"it looks like {type(network).__name__} at "
                    f"{network.resolution} px, but {len(problems)} tensors differ.",
                    *shown,
                    *([f"and {more} more"] if more else []),
                ]
            )
        super().__init__(text)
        self.problems = problems
