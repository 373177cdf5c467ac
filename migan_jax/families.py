"""The table of families: one record each. No other file lists them.

What stands above (training, inpainting, the verbs) asks the table; what stands below
(data, metrics, weights) is given what it needs. `docs/add_a_family.md` says how another
one moves in.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from migan_jax.config import RELEASED
from migan_jax.errors import UserError
from migan_jax.models import comodgan, discriminators, migan
from migan_jax.systems import comodgan as comodgan_system
from migan_jax.systems import images, logistic
from migan_jax.systems import migan as migan_system
from migan_jax.systems.base import Frozen, System
from migan_jax.weights import checkpoint as checkpoints
from migan_jax.weights.checkpoint import Checkpoint, Form
from migan_jax.weights.inference import infer_by_levels
from migan_jax.weights.kinds import Kind, Kinds, Network, kind_of
from migan_jax.weights.names import filter_buffers, fused_constants, reference_rules
from migan_jax.weights.reading import Tensors

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Latents = dict[str, jax.Array]  # what a family draws for its pictures, by name


class Panel(NamedTuple):
    """Some curves of a run in one picture."""

    title: str
    lines: tuple[tuple[str, str, str], ...]  # a metric, its label, the line's style
    logarithmic: bool = False


class Published(NamedTuple):
    """What a paper says of its network at a size."""

    multiply_adds: float  # G
    parameters: float | None = None  # M, with the filter taps of its files


@dataclasses.dataclass(frozen=True)
class Family:
    """What the trainer, the verbs and `migan_jax.load` know of a family.

    Attributes:
      name: the value of `config.system`.
      title: what sentences call it.
      kinds: its networks and their files.
      exported: the system's: roles of those that complete pictures, and are shipped.
      system: what is trained, of a configuration, frozen networks by name, and the
        dtype of activations. It is also asked without the frozen ones, which take long
        to read, for what does not depend on them: networks' sizes, stages.
      check_settings: UserError for a configuration of which no system can be made.
      check_start: UserError if a run cannot begin with the networks of the given roles.
      predict: complete pictures in [-1, 1], [N, H, W, 3], of which masks are 1 where
        known; by networks and variables, by role. Returns the whole picture, and those
        that came before by name.
      draw: latents of networks for so many pictures, of a key; in the order in which
        `model.forward` gives them to the first network.
      frozen: settings that name the files of frozen networks, by the networks' names.
      load_frozen: these networks, of those settings that name one.
      architecture: settings that decide which arrays there are.
      labels: metrics that progress shows, in this order, and what it calls them.
      panels: the curves of a run, beside that of the held-out pictures.
      published: figures of the paper's network, by resolution.
      is_exportable: whether it has a way to ONNX.
    """

    name: str
    title: str
    kinds: tuple[Kind, ...]
    exported: tuple[str, ...]
    system: Callable[["ConfigDict", Mapping[str, Frozen], Any], System]
    check_settings: Callable[["ConfigDict"], None]
    check_start: Callable[["ConfigDict", Collection[str]], None]
    predict: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    draw: Callable[[Mapping[str, Network], jax.Array, int], Latents]
    architecture: tuple[str, ...]
    labels: Mapping[str, str]
    panels: tuple[Panel, ...]
    frozen: Mapping[str, str] = dataclasses.field(default_factory=dict)
    load_frozen: Callable[["ConfigDict"], dict[str, Frozen]] = lambda config: {}
    published: Mapping[int, Published] = dataclasses.field(default_factory=dict)
    is_exportable: bool = False


# What one generator of the logistic game is asked and shows.

_GAME_SIZES = "resolution", "networks.channel_base", "networks.channel_max"
_GAME_LABELS = {
    "g/adversarial": "G",
    "g/distillation": "KD",
    "g/l1": "L1",
    "d/adversarial": "D",
    "d/r1": "R1",
    "g/hole_psnr": "hole dB",
}
_GAME_PANELS = (
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


def _kind_of_levels(
    name: str,
    role: str,
    module: type[Network],
    sign: str,
    constants: Callable[[Network], Tensors],
    **read_off: Any,
) -> Kind:
    """One whose files name levels as StyleGAN2's do, from which sizes are read off."""
    infer = functools.partial(infer_by_levels, module=module, **read_off)
    return Kind(name, role, module, sign, infer, reference_rules, constants)


# MI-GAN.


def _migan_constants(network: migan.Generator) -> Tensors:
    if network.reparam.form == "fused":
        return fused_constants(network)
    owners = (
        "synthesis.b{}",
        "synthesis.b{}.conv1.conv2",
        "encoder.b{}.conv2.conv2",
        "encoder.b4.conv2.conv2",
    )
    return filter_buffers(network, owners)


_RELEASED_SIZES = 256, 512  # of the authors' teachers
# Recipes for teachers of a resolution.
_TEACHERS = {64: "scenes64:teacher"} | {
    size: f"comodgan_places{size}" for size in _RELEASED_SIZES
}


def _load_teacher(config: "ConfigDict") -> dict[str, Frozen]:
    """The Co-Mod-GAN that `config.teacher` names, if it names one."""
    if not config.teacher:
        return {}
    try:
        loaded = load_checkpoint(config.teacher)
    except UserError as error:
        size = config.resolution
        own = "runs/teacher" if Path(config.teacher).suffix else config.teacher
        recipe = _TEACHERS.get(size, f"comodgan_folder256 --config.resolution={size}")
        released = f"Get the authors' from {RELEASED}, or train"
        raise UserError(
            f"The teacher cannot be loaded: {error} "
            f"{released if size in _RELEASED_SIZES else 'Train'} one (python -m "
            f"migan_jax.train --config={recipe} --workdir={own} "
            f"--config.data.source={config.data.source}) and name it "
            f"(--config.teacher={own}), or do without (--config.teacher=none)."
        ) from error
    network = loaded.network
    if (name := kind_of(network, all_kinds()).name) != "comodgan":
        raise UserError(
            f"The teacher {config.teacher} is a {name}, but must be a comodgan: MI-GAN "
            f"is distilled from its levels."
        )
    if network.resolution != config.resolution:
        raise UserError(
            f"The teacher {config.teacher} works at {network.resolution} pixels, but "
            f"resolution is {config.resolution}: choose a teacher of that size, or "
            f"train at the teacher's."
        )
    return {"teacher": Frozen.of(network, loaded.variables)}


MIGAN = Family(
    name="migan",
    title="MI-GAN",
    kinds=(
        _kind_of_levels(
            name="migan",
            role="generator",
            module=migan.Generator,
            sign=r"(?:encoder|synthesis)\.b[0-9]+\.conv[12]\.conv[12]\..*",
            width=r"synthesis\.b{}\.torgb\.(?:weight|w[0-9]+)",
            axis=1,
            with_kernels=True,
            constants=_migan_constants,
        ),
        _kind_of_levels(
            name="migan_discriminator",
            role="discriminator",
            module=discriminators.MIGANDiscriminator,
            sign=r"b[0-9]+\.conv1\.conv1\.w[0-9]+",
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
    check_start=logistic.check_start,
    predict=_predict,
    draw=lambda networks, key, count: {},
    frozen={"teacher": "teacher"},
    load_frozen=_load_teacher,
    architecture=(*_GAME_SIZES, "reparam.kernels", "reparam.expanded"),
    labels=_GAME_LABELS,
    panels=_GAME_PANELS,
    published={256: Published(11.19, 5.95), 512: Published(15.69, 5.98)},
    is_exportable=True,
)


# Co-Mod-GAN.


def _draw_z(
    networks: Mapping[str, comodgan.Generator], key: jax.Array, count: int
) -> Latents:
    shape = count, networks["generator"].z_dim
    return {"z": jax.random.normal(key, shape, jnp.float32)}


COMODGAN = Family(
    name="comodgan",
    title="Co-Mod-GAN",
    kinds=(
        _kind_of_levels(
            name="comodgan",
            role="generator",
            module=comodgan.Generator,
            sign=r"mapping\..*",
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
        _kind_of_levels(
            name="comodgan_discriminator",
            role="discriminator",
            module=discriminators.CoModGANDiscriminator,
            sign=r"b[0-9]+\.conv0\.weight",
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
    check_start=logistic.check_start,
    predict=_predict,
    draw=_draw_z,
    architecture=(
        *_GAME_SIZES,
        "comodgan.z_dim",
        "comodgan.w_dim",
        "comodgan.encoder_dim",
    ),
    labels=_GAME_LABELS,
    panels=_GAME_PANELS,
    published={256: Published(91.21), 512: Published(121.09)},
)


FAMILIES: dict[str, Family] = {family.name: family for family in (MIGAN, COMODGAN)}


# Asking the table.


def family_named(name: str) -> Family:
    """UserError for a system that is none."""
    if name not in FAMILIES:
        raise UserError(f"system is {' or '.join(sorted(FAMILIES))}, not {name!r}.")
    return FAMILIES[name]


def all_kinds() -> Kinds:
    """All networks; in a family, first what completes pictures."""
    return [kind for family in FAMILIES.values() for kind in family.kinds]


def family_of(network: Network) -> Family:
    """The family that a network belongs to."""
    return next(
        family
        for family in FAMILIES.values()
        if any(type(network) is kind.module for kind in family.kinds)
    )


def name_of(network: Network) -> str:
    """What workdirs and messages call its kind; one without files, by its class."""
    names = (kind.name for kind in all_kinds() if type(network) is kind.module)
    return next(names, type(network).__name__.lower())


def inpaints(network: Network) -> bool:
    """Whether it is one of those that complete pictures."""
    return any(
        type(network) is kind.module and kind.role in family.exported
        for family in FAMILIES.values()
        for kind in family.kinds
    )


# Reading and writing networks of any family.


def load_checkpoints(path: str | Path) -> dict[str, Checkpoint]:
    """Of a `.pt`, a `.safetensors` or a workdir, by role."""
    return checkpoints.load_checkpoints(path, all_kinds())


def load_checkpoint(path: str | Path) -> Checkpoint:
    """The same where there is one network; UserError where there are several."""
    (first, *others) = (found := load_checkpoints(path)).values()
    if others:
        raise UserError(
            f"{path} holds several networks ({', '.join(found)}), where one is needed."
        )
    return first


def load_file(path: Path) -> dict[str, Checkpoint]:
    """Of a `.pt` or a `.safetensors`, kernels in the form that the file has."""
    return checkpoints.load_file(path, all_kinds())


def save_checkpoint(
    checkpoint: Checkpoint, path: str | Path, form: Form, *others: Checkpoint
) -> None:
    """As a `.pt`, a `.safetensors` or, for a name without ending, a workdir."""
    checkpoints.save_checkpoints((checkpoint, *others), path, form, all_kinds())


def from_tensors(tensors: Tensors) -> Checkpoint:
    """The network that named tensors belong to, kernels in the form they come in."""
    (checkpoint,) = checkpoints.from_tensors(tensors, all_kinds()).values()
    return checkpoint


def to_tensors(checkpoint: Checkpoint) -> Tensors:
    """Named tensors as the reference has them, constants included."""
    return checkpoints.to_tensors(checkpoint, all_kinds())
