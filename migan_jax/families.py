"""The table of families, one record each. No other file lists them.

Higher levels (training, inpainting, the verbs) look families up here; lower levels
(data, metrics, weights) get what they need as arguments. `docs/add_a_family.md` says
how to add one.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from migan_jax.config import RELEASED
from migan_jax.errors import UserError
from migan_jax.models import (
    comodgan,
    deepgin,
    discriminators,
    distillation,
    imputation,
    migan,
    vgg,
)
from migan_jax.systems import comodgan as comodgan_system
from migan_jax.systems import deepgin as deepgin_system
from migan_jax.systems import distillation as distillation_system
from migan_jax.systems import images, logistic
from migan_jax.systems import imputation as imputation_system
from migan_jax.systems import migan as migan_system
from migan_jax.systems.base import Frozen, System
from migan_jax.weights import checkpoint as checkpoints
from migan_jax.weights import deepgin as deepgin_files
from migan_jax.weights import distillation as distillation_files
from migan_jax.weights import feature_networks
from migan_jax.weights import imputation as imputation_files
from migan_jax.weights.architecture import infer_by_levels
from migan_jax.weights.checkpoint import Checkpoint, KernelForm
from migan_jax.weights.kinds import Kind, Kinds, Network, kind_of
from migan_jax.weights.names import (
    abstract_variables,
    filter_buffers,
    fused_constants,
    reference_rules,
)
from migan_jax.weights.tensor_files import Tensors

if TYPE_CHECKING:
    from ml_collections import ConfigDict

logger = logging.getLogger(__name__)

Latents = dict[str, jax.Array]  # a network's random inputs, by name


class Panel(NamedTuple):
    """Curves of a run that share one plot."""

    title: str
    lines: tuple[tuple[str, str, str], ...]  # metric, label, line style
    logarithmic: bool = False


class Published(NamedTuple):
    """A paper's numbers for a network."""

    multiply_adds: float | None = None  # G
    parameters: float | None = None  # M, including the filter taps in its files


@dataclasses.dataclass(frozen=True)
class Family:
    """All that the trainer, the verbs and `migan_jax.load` know about a family.

    Attributes:
      name: the value of `config.system`.
      title: its name in messages.
      kinds: its networks and their files.
      exported: roles of the networks that inpaint and are exported, as in the system.
      system: makes the system from a configuration, frozen networks by name, and the
        dtype of activations. Called without the frozen networks, which load slowly,
        when only network sizes or stages are needed.
      check_settings: raises UserError if no system can be made from a configuration.
      check_init: raises UserError if a run cannot start from networks of these roles.
      predict: completes images in [-1, 1], [N, H, W, 3], with masks that are 1 where
        known, given networks and variables by role. Returns completed images, and
        those of intermediate stages by name.
      draw: returns latents for a number of images from a seed, an int, in the order in
        which `model.forward` passes them to the first network; none if the family has
        no latents. Seed 0 (the default) gives the family's usual completion: a family
        may use its mean latent there instead of drawing.
      frozen: by name of a frozen network, the setting that names its weights.
      load_frozen: loads the frozen networks whose settings name a file.
      outline_frozen: the same for plans, with shapes for weights. If a file does not
        exist, its network has the authors' size. None: plans load the files.
      architecture: settings that determine which arrays exist.
      labels: metrics in the progress output, in order, and their labels there.
      panels: a run's curves, beside that of the held-out images.
      published: the paper's numbers for an exported network, if it has any.
      is_exportable: whether it can be exported to ONNX.
      points: the number of keypoints of each image (`data.points`) that it needs.
    """

    name: str
    title: str
    kinds: tuple[Kind, ...]
    exported: tuple[str, ...]
    system: Callable[["ConfigDict", Mapping[str, Frozen], Any], System]
    check_settings: Callable[["ConfigDict"], None]
    check_init: Callable[["ConfigDict", Collection[str]], None]
    predict: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    draw: Callable[[Mapping[str, Network], int, int], Latents]
    architecture: tuple[str, ...]
    labels: Mapping[str, str]
    panels: tuple[Panel, ...]
    frozen: Mapping[str, str] = dataclasses.field(default_factory=dict)
    load_frozen: Callable[["ConfigDict"], dict[str, Frozen]] = lambda config: {}
    outline_frozen: Callable[["ConfigDict"], dict[str, Frozen]] | None = None
    published: Callable[[Network], Published | None] = lambda network: None
    is_exportable: bool = False
    points: Callable[["ConfigDict"], int] = lambda config: 0


# Shared by the families with a generator and a logistic GAN loss.

_GAN_SIZES = "resolution", "networks.channel_base", "networks.channel_max"
_GAN_LABELS = {
    "g/adversarial": "G",
    "g/distillation": "KD",
    "g/l1": "L1",
    "d/adversarial": "D",
    "d/r1": "R1",
    "g/hole_psnr": "hole dB",
}
_GAN_PANELS = (
    Panel("hole PSNR, dB", (("g/hole_psnr", "training batches", "--"),)),
    Panel(
        "generator's losses",
        (
            ("g/adversarial", "adversarial", "-"),
            ("g/distillation", "distillation", "--"),
            ("g/l1", "L1", ":"),
        ),
    ),
    Panel(
        "discriminator's mean logits",
        (("d/real", "real", "-"), ("d/fake", "fake", "--")),
    ),
    Panel("R1 before its weight", (("d/r1", "R1", "-"),), logarithmic=True),
)


# Shared by the families whose encoder can be guided.

_GUIDANCE = (
    "distillation.cross_distillation",
    "distillation.self_distillation",
    "distillation.attention_transfer",
)
_GUIDANCE_LABELS = {
    "a/l1": "auxiliary L1",
    "g/cross": "CD",
    "g/deeper": "SD",
    "g/attention": "AT",
    "meta/hypergradient": "meta",
}
_GUIDANCE_PANELS = (
    Panel("auxiliary network's L1", (("a/l1", "L1", "-"),)),
    Panel(
        "guidance",
        (
            ("g/cross", "cross-distillation", "-"),
            ("g/deeper", "self-distillation", "--"),
            ("g/attention", "attention transfer", ":"),
        ),
        logarithmic=True,
    ),
    Panel("norm of the hypergradient", (("meta/hypergradient", "norm", "-"),)),
)


def _predict(
    networks: Mapping[str, Network],
    variables: Mapping[str, Any],
    image: jax.Array,
    mask: jax.Array,
    latents: Latents,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    x = images.generator_input(image, mask)
    codes = latents.values()
    rgb, _ = networks["generator"].apply(variables["generator"], x, *codes)
    return rgb, {}


def _make_level_kind(
    name: str,
    role: str,
    module: type[Network],
    signature: str,
    constants: Callable[[Network], Tensors],
    infer: Callable[..., Network] = infer_by_levels,
    **infer_options: Any,
) -> Kind:
    """Make a kind whose files name levels as in StyleGAN2, to infer sizes from."""
    infer = functools.partial(infer, module=module, **infer_options)
    return Kind(name, role, module, signature, infer, reference_rules, constants)


# MI-GAN.


def _migan_constants(network: migan.MIGANGenerator) -> Tensors:
    if network.reparam.form == "fused":
        return fused_constants(network)
    owners = (
        "synthesis.b{}",
        "synthesis.b{}.conv1.conv2",
        "encoder.b{}.conv2.conv2",
        "encoder.b4.conv2.conv2",
    )
    return filter_buffers(network, owners)


def _infer_migan(tensors: Tensors, **options: Any) -> migan.MIGANGenerator:
    network = infer_by_levels(tensors, **options)
    completes = any(name.startswith("encoder.completion.") for name in tensors)
    return network.clone(completes=completes)


_RELEASED_SIZES = 256, 512  # of the authors' teachers
# Recipes for teachers, by resolution.
_TEACHERS = {64: "scenes64:teacher"} | {
    size: f"comodgan_places{size}" for size in _RELEASED_SIZES
}


def _load_teacher(config: "ConfigDict") -> dict[str, Frozen]:
    """Load the Co-Mod-GAN that `config.teacher` names, if any."""
    if not config.teacher:
        return {}
    try:
        loaded = load_checkpoint(config.teacher)
    except UserError as error:
        size = config.resolution
        workdir = "runs/teacher" if Path(config.teacher).suffix else config.teacher
        recipe = _TEACHERS.get(size, f"comodgan_folder256 --config.resolution={size}")
        released = f"Get the authors' from {RELEASED}, or train"
        raise UserError(
            f"The teacher cannot be loaded: {error} "
            f"{released if size in _RELEASED_SIZES else 'Train'} one (python -m "
            f"migan_jax.train --config={recipe} --workdir={workdir} "
            f"--config.data.source={config.data.source}) and name it "
            f"(--config.teacher={workdir}), or train without (--config.teacher=none)."
        ) from error
    network = loaded.network
    if (name := kind_of(network, all_kinds()).name) != "comodgan":
        raise UserError(
            f"The teacher {config.teacher} holds {name}, but must hold comodgan."
        )
    if network.resolution != config.resolution:
        raise UserError(
            f"The teacher {config.teacher} works at {network.resolution} pixels, but "
            f"resolution is {config.resolution}. Choose a teacher of that size, or "
            f"train at the teacher's resolution."
        )
    return {"teacher": Frozen.of(network, loaded.variables)}


@functools.cache  # plans outline a recipe several times
def _warn_of_missing_teacher(path: str) -> None:
    logger.warning("teacher=%s does not exist: assuming one of the authors' size", path)


def _outline_teacher(config: "ConfigDict") -> dict[str, Frozen]:
    if not config.teacher:
        return {}
    if Path(config.teacher).exists():
        network = _load_teacher(config)["teacher"].network
    else:
        _warn_of_missing_teacher(config.teacher)
        network = comodgan.CoModGANGenerator(config.resolution)
    return {"teacher": Frozen(network, abstract_variables(network), digest="")}


MIGAN_FAMILY = Family(
    name="migan",
    title="MI-GAN",
    kinds=(
        _make_level_kind(
            name="migan",
            role="generator",
            module=migan.MIGANGenerator,
            infer=_infer_migan,
            signature=r"(?:encoder|synthesis)\.b[0-9]+\.conv[12]\.conv[12]\..*",
            width=r"synthesis\.b{}\.torgb\.(?:weight|w[0-9]+)",
            axis=1,
            with_kernels=True,
            constants=_migan_constants,
        ),
        _make_level_kind(
            name="migan_discriminator",
            role="discriminator",
            module=discriminators.MIGANDiscriminator,
            signature=r"b[0-9]+\.conv1\.conv1\.w[0-9]+",
            width=r"b{}\.(?:conv1\.conv1\.w[0-9]+|fc\.weight)",
            axis=0,
            with_kernels=True,
            constants=functools.partial(
                filter_buffers, owners=("b{}.conv2.conv2", "b{}.skip")
            ),
        ),
    ),
    exported=migan_system.MIGAN.exported,
    system=migan_system.MIGAN.from_config,
    check_settings=migan_system.check_settings,
    check_init=logistic.check_init,
    predict=_predict,
    draw=lambda networks, seed, count: {},
    frozen={"teacher": "teacher"},
    load_frozen=_load_teacher,
    outline_frozen=_outline_teacher,
    architecture=(
        *_GAN_SIZES,
        *("reparam.kernels", "reparam.expanded", "distillation.completion"),
        *_GUIDANCE,
    ),
    labels={**_GAN_LABELS, **_GUIDANCE_LABELS},
    panels=(
        *_GAN_PANELS,
        # With the generator's other losses.
        _GUIDANCE_PANELS[1]._replace(title=_GAN_PANELS[1].title, logarithmic=False),
    ),
    published=lambda network: {
        256: Published(11.19, 5.95),
        512: Published(15.69, 5.98),
    }.get(network.resolution),
    is_exportable=True,
)


# Co-Mod-GAN.


def _draw_z(
    networks: Mapping[str, comodgan.CoModGANGenerator], seed: int, count: int
) -> Latents:
    shape = count, networks["generator"].z_dim
    return {"z": jax.random.normal(jax.random.key(seed), shape, jnp.float32)}


COMODGAN_FAMILY = Family(
    name="comodgan",
    title="Co-Mod-GAN",
    kinds=(
        _make_level_kind(
            name="comodgan",
            role="generator",
            module=comodgan.CoModGANGenerator,
            signature=r"mapping\..*",
            width=r"synthesis\.b{}\.torgb\.weight",
            axis=1,
            other_widths={
                "z_dim": [("mapping.fc0.weight", 1)],
                "w_dim": [
                    (f"mapping.fc{index}.bias", 0)
                    for index in range(comodgan.MAPPING_LAYERS)
                ],
                "encoder_dim": [
                    ("encoder.b4.fc.weight", 0),
                    ("encoder.b4.fc.bias", 0),
                    ("synthesis.b4.fc.weight", 1),
                ],
            },
            constants=functools.partial(
                filter_buffers,
                owners=(
                    "synthesis.b4.conv",
                    "synthesis.b{}",
                    "synthesis.b{}.conv0",
                    "encoder.b{}",
                    "encoder.b{}.conv1",
                ),
            ),
        ),
        _make_level_kind(
            name="comodgan_discriminator",
            role="discriminator",
            module=discriminators.CoModGANDiscriminator,
            signature=r"b[0-9]+\.conv0\.weight",
            width=r"b{}\.(?:conv0|fc)\.weight",
            axis=0,
            constants=functools.partial(
                filter_buffers, owners=("b{}", "b{}.conv1", "b{}.skip")
            ),
        ),
    ),
    exported=comodgan_system.CoModGAN.exported,
    system=comodgan_system.CoModGAN.from_config,
    check_settings=comodgan_system.check_settings,
    check_init=logistic.check_init,
    predict=_predict,
    draw=_draw_z,
    architecture=(
        *_GAN_SIZES,
        "comodgan.z_dim",
        "comodgan.w_dim",
        "comodgan.encoder_dim",
    ),
    labels=_GAN_LABELS,
    panels=_GAN_PANELS,
    published=lambda network: {
        256: Published(91.21),
        512: Published(121.09),
    }.get(network.resolution),
)


# Feature networks of losses.


def _load_features(
    name: str, network: str, source: str, losses: tuple[str, ...], section: str
) -> dict[str, Frozen]:
    """Load the public weights of a feature network, or make a small random one."""
    if source == "random":
        return {name: Frozen.of(*feature_networks.random_features(network))}
    try:
        path = feature_networks.find(network)
        variables = feature_networks.load_features(network, path)
    except UserError as error:
        plural = "losses" if len(losses) > 1 else "loss"
        without = " ".join(f"--config.{section}.{loss}=0" for loss in losses)
        raise UserError(
            f"The network of the {' and '.join(losses)} {plural} cannot be loaded: "
            f"{error} Or train without ({without})."
        ) from error
    return {name: Frozen.of(vgg.NETWORKS[network], variables)}


def _outline_features(name: str, network: str, source: str) -> dict[str, Frozen]:
    if source == "random":
        return _load_features(name, network, source, (), "")
    shapes = feature_networks.outline_features(network)
    return {name: Frozen(vgg.NETWORKS[network], shapes, digest="")}


# DeepGIN.


def _predict_deepgin(
    networks: Mapping[str, Network],
    variables: Mapping[str, Any],
    image: jax.Array,
    mask: jax.Array,
    latents: Latents,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    x = deepgin_system.pack(image, mask)
    rgb, stages = networks["generator"].apply(variables["generator"], x)
    return 2 * rgb - 1, {name: 2 * stage - 1 for name, stage in stages.items()}


def _uses_vgg(config: "ConfigDict") -> bool:
    return config.deepgin.perceptual > 0 or config.deepgin.style > 0


def _load_vgg(config: "ConfigDict") -> dict[str, Frozen]:
    """Load the VGG-19 of the perceptual and style losses, if they have a weight."""
    if not _uses_vgg(config):
        return {}
    losses = "perceptual", "style"
    name = deepgin_system.VGG
    return _load_features(name, name, config.deepgin.vgg, losses, "deepgin")


def _outline_vgg(config: "ConfigDict") -> dict[str, Frozen]:
    if not _uses_vgg(config):
        return {}
    name = deepgin_system.VGG
    return _outline_features(name, name, config.deepgin.vgg)


def _published_deepgin(network: Network) -> Published | None:
    row = deepgin.LADDER[network.variant]
    is_full_size = network.channels == deepgin.DeepGINGenerator.channels
    return Published(parameters=float(row.parameters)) if is_full_size else None


DEEPGIN_FAMILY = Family(
    name="deepgin",
    title="DeepGIN",
    kinds=(
        Kind(
            name="deepgin",
            role="generator",
            module=deepgin.DeepGINGenerator,
            signature=deepgin_files.GENERATOR_SIGNATURE,
            infer=deepgin_files.infer_generator,
            rules=deepgin_files.generator_rules,
            constants=lambda network: {},
        ),
        Kind(
            name="deepgin_discriminator",
            role="discriminator",
            module=deepgin.DeepGINDiscriminator,
            signature=deepgin_files.DISCRIMINATOR_SIGNATURE,
            infer=deepgin_files.infer_discriminator,
            rules=deepgin_files.discriminator_rules,
            constants=lambda network: {},
        ),
    ),
    exported=deepgin_system.DeepGIN.exported,
    system=deepgin_system.DeepGIN.from_config,
    check_settings=deepgin_system.check_settings,
    check_init=lambda config, pretrained: None,
    predict=_predict_deepgin,
    draw=lambda networks, seed, count: {},
    frozen={deepgin_system.VGG: "deepgin.vgg"},
    load_frozen=_load_vgg,
    outline_frozen=_outline_vgg,
    architecture=(
        "deepgin.variant",
        "deepgin.channels",
        "deepgin.discriminator_channels",
    ),
    labels={
        "g/l1": "L1",
        "g/adversarial": "G",
        "d/adversarial": "D",
        "g/hole_psnr": "hole dB",
    },
    panels=(
        _GAN_PANELS[0],
        Panel(
            "generators' losses",
            (
                ("g/l1", "L1", "-"),
                ("g/adversarial", "adversarial", "--"),
                ("g/perceptual", "perceptual", ":"),
                ("g/style", "style", "-."),
            ),
        ),
        Panel(
            "discriminators' mean scores",
            (("d/real", "real", "-"), ("d/fake", "fake", "--")),
        ),
    ),
    published=_published_deepgin,
)


# Learnable feature imputation.


def _predict_imputation(
    networks: Mapping[str, Network],
    variables: Mapping[str, Any],
    image: jax.Array,
    mask: jax.Array,
    latents: Latents,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    rgb, _ = imputation_system.apply_generator(
        networks["generator"], variables["generator"], image, mask, **latents
    )
    return rgb, {}


def _published_imputation(network: Network) -> Published | None:
    final = imputation.ImputationGenerator()
    return Published(parameters=11.5) if network == final else None


def _draw_imputation(networks: Mapping[str, Network], seed: int, count: int) -> Latents:
    """Return the mean latents for seed 0, and drawn ones for others."""
    latents = imputation_system.mean_latents(networks["generator"], count)
    if seed:
        shape = latents["z"].shape
        latents["z"] = jax.random.normal(jax.random.key(seed), shape, jnp.float32)
    return latents


IMPUTATION_FAMILY = Family(
    name="imputation",
    title="imputation network",
    kinds=(
        Kind(
            name="imputation",
            role="generator",
            module=imputation.ImputationGenerator,
            signature=imputation_files.GENERATOR_BLOCK,
            infer=imputation_files.infer_generator,
            rules=imputation_files.generator_rules,
            constants=imputation_files.generator_constants,
            rename=imputation_files.rename_generator,
        ),
        Kind(
            name="imputation_discriminator",
            role="discriminator",
            module=imputation.ImputationDiscriminator,
            signature=imputation_files.DISCRIMINATOR_BLOCK,
            infer=imputation_files.infer_discriminator,
            rules=imputation_files.discriminator_rules,
            constants=imputation_files.discriminator_constants,
            rename=imputation_files.rename_discriminator,
        ),
    ),
    exported=imputation_system.Imputation.exported,
    system=imputation_system.Imputation.from_config,
    check_settings=imputation_system.check_settings,
    check_init=lambda config, pretrained: None,
    predict=_predict_imputation,
    draw=_draw_imputation,
    architecture=(
        *_GAN_SIZES,
        *(
            f"imputation.{field}"
            for field in (
                *("latents", "points", "generator_pose", "discriminator_pose"),
                *("imputes", "form", "sums", "shortcuts", "grows"),
            )
        ),
    ),
    labels={
        "g/adversarial": "G",
        "g/l1": "L1",
        "d/adversarial": "D",
        "d/penalty": "penalty",
        "g/hole_psnr": "hole dB",
    },
    panels=(
        _GAN_PANELS[0],
        Panel(
            "generator's losses",
            (("g/adversarial", "adversarial", "-"), ("g/l1", "L1", ":")),
        ),
        Panel(
            "discriminator's mean scores",
            (("d/real", "real", "-"), ("d/fake", "fake", "--")),
        ),
        Panel(
            "norm of the discriminator's gradient",
            (("d/gradient_norm", "norm", "-"), ("d/penalty", "penalty", "--")),
            logarithmic=True,
        ),
    ),
    published=_published_imputation,
    points=lambda config: config.imputation.points,
)


# Distillation-guided inpainting.


def _predict_distillation(
    networks: Mapping[str, Network],
    variables: Mapping[str, Any],
    image: jax.Array,
    mask: jax.Array,
    latents: Latents,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    x = distillation_system.pack(image, mask)
    rgb, _ = networks["generator"].apply(variables["generator"], x)
    return 2 * rgb - 1, {}


def _load_style_vgg(config: "ConfigDict") -> dict[str, Frozen]:
    """Load the VGG-16 of the style loss, if it has a weight."""
    settings = config.distillation
    if not settings.style:
        return {}
    names = distillation_system.STYLE_NETWORK, "vgg"
    return _load_features(*names, settings.vgg, ("style",), "distillation")


def _outline_style_vgg(config: "ConfigDict") -> dict[str, Frozen]:
    if not config.distillation.style:
        return {}
    return _outline_features(
        distillation_system.STYLE_NETWORK, "vgg", config.distillation.vgg
    )


DISTILLATION_FAMILY = Family(
    name="distillation",
    title="distillation-guided network",
    kinds=(
        Kind(
            name="distillation",
            role="generator",
            module=distillation.DistillationGenerator,
            signature=distillation_files.SIGNATURE,
            infer=distillation_files.infer_generator,
            rules=lambda network: (),
            constants=distillation_files.check_settings_in_files,
        ),
    ),
    exported=distillation_system.Distillation.exported,
    system=distillation_system.Distillation.from_config,
    check_settings=distillation_system.check_settings,
    check_init=lambda config, pretrained: None,
    predict=_predict_distillation,
    draw=lambda networks, seed, count: {},
    frozen={distillation_system.STYLE_NETWORK: "distillation.vgg"},
    load_frozen=_load_style_vgg,
    outline_frozen=_outline_style_vgg,
    architecture=(
        *_GUIDANCE,
        *(
            f"distillation.{field}"
            for field in (
                *("completion", "attention", "fusion", "matched"),
                *("channels", "kernel_size"),
            )
        ),
    ),
    labels={
        "g/reconstruction": "L1",
        **_GUIDANCE_LABELS,
        "g/hole_psnr": "hole dB",
    },
    panels=(
        _GAN_PANELS[0],
        Panel(
            "generator's losses",
            (
                ("g/reconstruction", "reconstruction", "-"),
                ("g/style", "style", "--"),
                ("g/adversarial", "adversarial", ":"),
            ),
        ),
        *_GUIDANCE_PANELS,
    ),
    published=lambda network: (
        Published(parameters=13)
        if network == distillation.DistillationGenerator()
        else None
    ),
)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(MIGAN_FAMILY, COMODGAN_FAMILY, DEEPGIN_FAMILY),
        *(IMPUTATION_FAMILY, DISTILLATION_FAMILY),
    )
}


# Lookups.


def family_named(name: str) -> Family:
    """Return the family of this name, or raise UserError."""
    if name not in FAMILIES:
        raise UserError(
            f"system must be {' or '.join(sorted(FAMILIES))}, not {name!r}."
        )
    return FAMILIES[name]


def all_kinds() -> Kinds:
    """Return the kinds of all families; in each, those that inpaint come first."""
    return [kind for family in FAMILIES.values() for kind in family.kinds]


def family_of(network: Network) -> Family:
    """Return the family of a network."""
    return next(
        family
        for family in FAMILIES.values()
        if any(type(network) is kind.module for kind in family.kinds)
    )


def name_of(network: Network) -> str:
    """Return the name of a network's kind, or else of its class."""
    names = (kind.name for kind in all_kinds() if type(network) is kind.module)
    return next(names, type(network).__name__.lower())


def can_inpaint(network: Network) -> bool:
    """Return whether the network is one that inpaints."""
    return any(
        type(network) is kind.module and kind.role in family.exported
        for family in FAMILIES.values()
        for kind in family.kinds
    )


# Reading and writing networks of any family.


def load_checkpoints(path: str | Path) -> dict[str, Checkpoint]:
    """Read a `.pt`, a `.safetensors` or a workdir by role, with kernels collapsed."""
    return checkpoints.load_checkpoints(path, all_kinds())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of one network; raise UserError if it holds several."""
    (first, *others) = (found := load_checkpoints(path)).values()
    if others:
        raise UserError(
            f"{path} holds several networks ({', '.join(found)}), but one is needed."
        )
    return first


def load_file(path: Path) -> dict[str, Checkpoint]:
    """Read a `.pt` or a `.safetensors` by role; keep the file's kernel form."""
    return checkpoints.load_file(path, all_kinds())


def save_checkpoint(
    checkpoint: Checkpoint, path: str | Path, form: KernelForm, *others: Checkpoint
) -> None:
    """Write a `.pt`, a `.safetensors` or, without an extension, a workdir."""
    checkpoints.save_checkpoints((checkpoint, *others), path, form, all_kinds())


def from_tensors(tensors: Tensors) -> Checkpoint:
    """Build the network that has these tensors; keep the kernel form."""
    (checkpoint,) = checkpoints.from_tensors(tensors, all_kinds()).values()
    return checkpoint


def to_tensors(checkpoint: Checkpoint) -> Tensors:
    """Return the tensors with the reference's names, including constants."""
    return checkpoints.to_tensors(checkpoint, all_kinds())
