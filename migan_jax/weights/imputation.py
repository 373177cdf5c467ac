"""Checkpoints of learnable feature imputation: names of tensors, networks from them.

The authors' files, `fdf_E.ckpt` and `places_E.ckpt`, are training checkpoints. Their
generators number levels by resolution, their discriminators from 0. Networks that grew
have names of ours, and averages that are weighted by certainty a mark of ours.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from migan_jax.errors import UserError
from migan_jax.models.channels import LOWEST_RESOLUTION, channels_at, levels
from migan_jax.models.imputation import (
    POSE_CHANNELS,
    ImputationDiscriminator,
    ImputationGenerator,
)
from migan_jax.weights.architecture import (
    MAX_RESOLUTION,
    UnknownNetwork,
    fit_channels,
    infer_widths,
)
from migan_jax.weights.kinds import Network, Rules
from migan_jax.weights.names import entries_by
from migan_jax.weights.tensor_files import Tensors

# Names that no other family has.
GENERATOR_BLOCK = r"(?:en|de)coder\.basic_block[0-9]{1,4}\..*"
DISCRIMINATOR_BLOCK = r"layers\.basic_block[0-9]{1,2}\..*"

_POSE = [
    ("/pose/fc0/", "/pose_fcnn/pose_preprocessor/1/"),
    ("/pose/fc1/", "/pose_fcnn/pose_preprocessor/3/"),
]
_WEIGHTED = "encoder.weighted_down"
_DENSE = re.compile(r"((?:pose_preprocessor\.[13]|output_layer)\.)(weight|bias)$")


# Names.


def generator_rules(network: ImputationGenerator) -> Rules:
    """Return the rules for the names of a generator's parameters."""
    read = r"/from_rgb/\1/" if network.grows else "/from_rgb/0/"
    return [
        (r"^/encoder/b(\d+)/from_rgb/", read),
        (r"^/decoder/b(\d+)/to_rgb/", r"/rgb_convolutions/\1/"),
        (r"/b(\d+)/skip/encoder$", r"/skip_connection\1/beta0"),
        (r"/b(\d+)/skip/decoder$", r"/skip_connection\1/beta1"),
        (r"/b(\d+)/skip/", r"/skip_connection\1/conv/layers/0/"),
        (r"/b(\d+)/conv0/", r"/basic_block\1/layers/0/"),
        (r"/b(\d+)/conv1/", r"/basic_block\1/layers/3/"),
        ("/estimator/", "/expected_value_updater/input_updater/"),
        ("/certainty/", "/mask_updater/"),
        *_POSE,
    ]


def discriminator_rules(network: ImputationDiscriminator) -> Rules:
    """Return the rules for the names of a discriminator's parameters."""
    read = (
        r"/layers/from_rgb/\1/" if network.grows else "/layers/from_rgb/conv/layers/0/"
    )
    return [
        (r"^/b(\d+)/from_rgb/", read),
        *(
            (f"^/b{r}/", f"/layers/basic_block{place}/")
            for place, r in enumerate(levels(network.resolution))
        ),
        ("/conv0/", "/layers/0/"),
        ("/conv1/", "/layers/2/"),
        ("/shortcut/", "/residual_conv/"),
        ("^/pose/", "/layers/pose/"),
        *_POSE,
        ("^/output/", "/output_layer/"),
    ]


def generator_constants(network: ImputationGenerator) -> Tensors:
    """Return the tensors of a generator's file that are not parameters."""
    mark = {_WEIGHTED: np.ones((), np.float32)} if network.weighted_down else {}
    return mark | _unused_copies(network, generator_rules)


def discriminator_constants(network: ImputationDiscriminator) -> Tensors:
    """Return the tensors of a discriminator's file that are not parameters."""
    return _unused_copies(network, discriminator_rules)


def _unused_copies(network: Network, rules: Callable[[Network], Rules]) -> Tensors:
    """Return the copies of dense layers that the authors' networks hold for no use."""
    if network.fades or network.grown not in (None, network.resolution):
        raise UserError(
            "A network that still grows cannot be written to a file, which does not "
            "say how far it is. Train to the end, or keep the workdir."
        )
    names = {
        name: entry.tensor_shape
        for entry in entries_by(network, rules(network))
        for name in entry.names
    }
    return {
        _DENSE.sub(r"\1linear.\2", name): np.zeros(shape, np.float32)
        for name, shape in names.items()
        if _DENSE.search(name)
    }


def rename_generator(tensors: Tensors) -> Tensors:
    """Name a generator's tensors as newer files of sums do.

    Older files number levels from 0, and have an output layer that is not used. So do
    files of grown networks (A to D), with two input and two output layers.
    """
    if not any(re.match(r"(en|de)coder\.basic_block0\.", name) for name in tensors):
        return tensors
    places = _numbers(tensors, r"encoder\.basic_block")
    heads = [(r"^encoder\.from_rgb\.conv\.layers\.", "from_rgb.")]
    has_grown = not any(name.startswith("rgb_convolutions.") for name in tensors)
    if has_grown:
        top = LOWEST_RESOLUTION << min(max(places, default=0), 16)
        heads = [
            (r"^encoder\.from_rgb\.conv\.layers\.0\.", f"from_rgb.{top}."),
            (r"^encoder\.from_rgb\.old_conv\.1\.layers\.0\.", f"from_rgb.{top // 2}."),
            (r"^decoder\.to_rgb\.conv\.", f"rgb_convolutions.{top}."),
            (r"^decoder\.to_rgb\.old_conv\.", f"rgb_convolutions.{top // 2}."),
        ]

    def rename(name: str) -> str:
        for pattern, replacement in heads:
            name = re.sub(pattern, replacement, name)
        return re.sub(
            r"^((?:en|de)coder\.(?:basic_block|skip_connection))([0-9]{1,2})\.",
            lambda match: f"{match[1]}{LOWEST_RESOLUTION << int(match[2])}.",
            name,
        )

    renamed = {rename(name): array for name, array in tensors.items()}
    if has_grown:  # what these files do not say
        renamed["fade"] = np.ones((), np.float32)
        if any(".expected_value_updater." in name for name in tensors):  # row D
            renamed[_WEIGHTED] = np.ones((), np.float32)
    return {n: x for n, x in renamed.items() if not n.startswith("decoder.to_rgb")}


def rename_discriminator(tensors: Tensors) -> Tensors:
    """Name the input layers of a grown discriminator by resolution."""
    old = "layers.from_rgb.old_conv.1.layers.0."
    if not any(name.startswith(old) for name in tensors):
        return tensors
    places = _numbers(tensors, r"layers\.basic_block")
    top = LOWEST_RESOLUTION << min(max(places, default=0), 16)
    heads = {"layers.from_rgb.conv.layers.0.": top, old: top // 2}

    def rename(name: str) -> str:
        for prefix, r in heads.items():
            name = name.replace(prefix, f"layers.from_rgb.{r}.")
        return name

    return {rename(name): array for name, array in tensors.items()}


# Networks from tensors.


def infer_generator(tensors: Tensors) -> ImputationGenerator:
    """Infer a generator."""
    blocks = _levels(tensors, r"(?:en|de)coder\.basic_block")
    images = _levels(tensors, r"rgb_convolutions\.")
    heads = _levels(tensors, r"from_rgb\.")
    sizes = _infer_sizes(
        tensors,
        max(images | heads | blocks, default=0),
        lambda r: [
            (f"rgb_convolutions.{r}.weight", 1),
            (f"decoder.basic_block{r}.layers.3.bias", 0),
            (f"encoder.basic_block{r}.layers.0.bias", 0),
            (f"encoder.basic_block{2 * r}.layers.3.bias", 0),
        ],
    )
    low, above = (factor * LOWEST_RESOLUTION for factor in (1, 2))
    starts = infer_widths(
        tensors, {r: _start(f"decoder.basic_block{r}.layers", 3) for r in (low, above)}
    )
    width = channels_at(low, sizes["channel_base"], sizes["channel_max"])
    pose = _infer_pose(tensors, "decoder", starts.get(above, width) - width)
    banks = POSE_CHANNELS if pose["pose"] == "scalars" else pose["points"]
    latents = starts.get(low, 0) - width - (banks if pose["points"] else 0)
    imputes = any(".expected_value_updater." in name for name in tensors)
    has_biases = any(name.endswith(".input_updater.bias") for name in tensors)
    return ImputationGenerator(
        **sizes,
        **pose,
        **_infer_growth(heads),
        latents=latents if latents > 0 else ImputationGenerator.latents,
        imputes=imputes,
        form="paper" if imputes and not has_biases else "code",
        weighted_down=_WEIGHTED in tensors,
        sums=bool(heads) or len(images) > 1,
    )


def infer_discriminator(tensors: Tensors) -> ImputationDiscriminator:
    """Infer a discriminator, and the widths of a generator that it may belong to."""
    places = _numbers(tensors, r"layers\.basic_block")
    resolutions = {LOWEST_RESOLUTION << place for place in places if place < 16}
    heads = _levels(tensors, r"layers\.from_rgb\.")
    top = max(resolutions & _LEVELS | heads, default=0)

    def widths(r: int) -> list[tuple[str, int]]:
        block, above = (f"layers.basic_block{_place(r) + n}" for n in (0, 1))
        found = [(f"{above}.layers.2.bias", 0), (f"{above}.residual_conv.bias", 0)]
        found += [(f"layers.from_rgb.{r}.bias", 0), (f"{block}.layers.0.bias", 0)]
        if r == top:
            found.insert(0, ("layers.from_rgb.conv.layers.0.bias", 0))
        if r == LOWEST_RESOLUTION:
            found += [(f"{block}.layers.2.bias", 0), ("output_layer.weight", 1)]
        return found

    sizes = _infer_sizes(tensors, top, widths, _generator_widths)
    network = ImputationDiscriminator(**sizes)
    block = "layers.basic_block0.layers"
    width = network.channels(LOWEST_RESOLUTION)
    start = infer_widths(tensors, {"start": _start(block, 2)}).get("start", width)
    return network.clone(
        **_infer_pose(tensors, "layers", start - width),
        **_infer_growth(heads),
        shortcuts=any(".residual_conv." in name for name in tensors),
    )


_LEVELS = set(levels(MAX_RESOLUTION))


def _numbers(tensors: Tensors, prefix: str) -> set[int]:
    """Return the numbers after a prefix of names."""
    pattern = re.compile(prefix + r"([0-9]{1,4})\.")
    return {int(match[1]) for name in tensors if (match := pattern.match(name))}


def _levels(tensors: Tensors, prefix: str) -> set[int]:
    return _numbers(tensors, prefix) & _LEVELS


def _place(resolution: int) -> int:
    """Return a level's number in files that number levels from 0."""
    return (resolution // LOWEST_RESOLUTION).bit_length() - 1


def _infer_sizes(
    tensors: Tensors,
    resolution: int,
    sources: Callable[[int], Sequence[tuple[str, int]]],
    choices: Callable[[int], Iterable[int]] = lambda width: [width],
) -> dict[str, int]:
    """Infer resolution and channels.

    Args:
      sources: returns the tensors, and their axes, that tell a level's width.
      choices: returns the generator's channels that give a width.
    """
    if resolution not in _LEVELS or resolution < 2 * LOWEST_RESOLUTION:
        raise UnknownNetwork
    widths = infer_widths(tensors, {r: sources(r) for r in levels(resolution)})
    pairs = [(r, c) for r, width in widths.items() for c in choices(width)]
    base, maximum = fit_channels(pairs)
    if not channels_at(resolution, base, maximum):
        raise UnknownNetwork
    return {"resolution": resolution, "channel_base": base, "channel_max": maximum}


def _generator_widths(width: int) -> range:
    """Return the generator's channels for which the discriminator has this width."""
    lowest, highest = (math.floor(w / math.sqrt(2)) for w in (width - 8, width))
    return range(max(lowest + 1, 1), highest + 1)


def _start(layers: str, second: int) -> list[tuple[str, int]]:
    """Return the tensors, and their axes, that tell a block's number of inputs."""
    first, second = (f"{layers}.{place}" for place in (0, second))
    weights = [(f"{first}.weight", 0), (f"{first}.weight", 1), (f"{second}.weight", 1)]
    return [(f"{first}.bias", 0), *weights]


def _infer_pose(tensors: Tensors, part: str, maps: int) -> dict[str, Any]:
    """Infer the keypoints from the first layer that reads them, or from added maps."""
    layer = f"{part}.pose_fcnn.pose_preprocessor.1"
    sources = [(f"{layer}.weight", 1), (f"{layer}.linear.weight", 1)]
    inputs = infer_widths(tensors, {"inputs": sources})
    if inputs:
        return {"points": inputs["inputs"] // 2, "pose": "scalars"}
    return {"points": max(maps, 0), "pose": "maps" if maps > 0 else "scalars"}


def _infer_growth(heads: set[int]) -> dict[str, Any]:
    """Infer from the resolutions of input layers that a network has grown."""
    return {"grows": True, "smallest": min(heads)} if heads else {}
