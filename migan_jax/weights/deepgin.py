"""DeepGIN's checkpoints: the names of its tensors, and its networks from them.

The authors' files, `latest_net_G.pth` and `latest_net_D.pth`, hold the full model. Rows
of the ladder without SPD blocks have names of ours for their residual blocks.
"""

from migan_jax.models.deepgin import (
    LADDER,
    DeepGINDiscriminator,
    DeepGINGenerator,
)
from migan_jax.weights.architecture import UnknownNetwork
from migan_jax.weights.kinds import Rules
from migan_jax.weights.tensor_files import Tensors

GENERATOR_SIGNATURE = r"lr_coarse_tinker\.1\.weight"
DISCRIMINATOR_SIGNATURE = r"layer1\.0\.module\.weight_bar"

# Of G1: places in the reference's list of layers.
_COARSE = {
    **{f"enc{index}": place for index, place in enumerate((1, 4, 7, 10), 1)},
    **{f"spd{index}": 11 + index for index in range(1, 7)},
    **{f"dec{index}": place for index, place in enumerate((20, 24, 28), 1)},
    "out": 31,
}
# Of G2. Its residual blocks are numbered in another order than that of their use.
_REFINEMENT = {
    **{f"enc{index}": f"r_en_conv{index}" for index in range(1, 6)},
    **{
        f"spd{index}": f"r_md_mres{number}"
        for index, number in enumerate((1, 2, 5, 3, 4, 6), 1)
    },
    **{f"dec{index}": f"r_de_conv{index}" for index in range(1, 5)},
    **{f"mix{index}": f"r_de_mix_conv{index}" for index in range(1, 3)},
    **{
        f"sa{16 * 2**i}": f"r_{part}_satn{i + 1}"
        for i, part in enumerate(("md", "de", "de"))
    },
    "skip64": "r_en_skp_conv3",
    "skip32": "r_en_skp_conv4",
    "out": "r_de_conv5",
    "lr1": "r_de_conv2_lr",
    "lr2": "r_de_conv3_lr",
    "alpha": "r_de_conv5_lr_alpha",
}
_SCALES = {"full": "layer1", "half": "layer0"}


def generator_rules(network: DeepGINGenerator) -> Rules:
    """Return the rules for the names of a generator's parameters."""
    branches = [(r"/(branch|dilated)(\d)/", r"/\1\2/conv/")]
    fusions = [
        (rf"^/{part}/(spd\d)/fuse/", rf"/{part}/\1/fusion{len(dilations) + 1}/conv/")
        for part, dilations in zip(
            ("coarse", "refinement"), LADDER[network.variant].dilations, strict=True
        )
    ]
    layers = [
        *((f"^/coarse/{n}/", f"/lr_coarse_tinker/{at}/") for n, at in _COARSE.items()),
        *((f"^/refinement/{n}/", f"/{name}/") for n, name in _REFINEMENT.items()),
    ]
    return [*branches, *fusions, *layers]


def discriminator_rules(network: DeepGINDiscriminator) -> Rules:
    """Return the rules for the names of the discriminators' parameters and vectors."""
    return [
        *((f"^/{scale}/", f"/{name}/") for scale, name in _SCALES.items()),
        *((f"/conv{i}/", f"/{2 * (i - 1)}/module/") for i in range(1, 5)),
        ("/weight$", "/weight_bar"),
        ("/([uv])$", r"/weight_\1"),
    ]


def infer_generator(tensors: Tensors) -> DeepGINGenerator:
    """Infer a generator. Files do not state its resolution: it is the authors'."""
    channels = 2 * _length(tensors, "lr_coarse_tinker.1.weight")

    def has(name: str) -> bool:
        return any(tensor.startswith(name) for tensor in tensors)

    if not has("r_en_conv1."):
        variant = "coarse_only"
    elif has("r_de_conv5_lr_alpha."):
        variant = "full"
    elif has("r_de_satn2."):
        blocks = "lr_coarse_tinker.12."
        variant = "std_mssa"
        if has(f"{blocks}branch2."):
            variant = "spd_mssa"
        elif has(f"{blocks}dilated1."):
            variant = "dil_mssa"
    else:
        variant = "std_sa" if has("r_md_satn1.") else "std"
    return DeepGINGenerator(variant=variant, channels=channels)


def infer_discriminator(tensors: Tensors) -> DeepGINDiscriminator:
    """Infer both discriminators. Files do not state their resolution."""
    channels = _length(tensors, "layer1.0.module.weight_bar")
    return DeepGINDiscriminator(channels=channels)


def _length(tensors: Tensors, name: str) -> int:
    """Return the length of a tensor's first axis."""
    tensor = tensors[name]
    if not tensor.ndim or not len(tensor):
        raise UnknownNetwork
    return len(tensor)
