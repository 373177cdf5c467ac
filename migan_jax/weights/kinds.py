"""Kinds of networks with their file names, and networks as JSON-ready data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from migan_jax.models.layers import Reparam
from migan_jax.weights.tensor_files import Tensors

# linen's own fields, and fields that change the computation but not the weights.
_NOT_STORED = ("parent", "name", "dtype", "remat")


class Network(Protocol):
    """A linen module of any kind; its fields define its sizes."""

    resolution: int

    def inputs(self) -> list[Any]:
        """Return the shapes of one sample's inputs."""

    def init(self, *args: Any) -> Any: ...

    def apply(self, *args: Any, **kwargs: Any) -> Any: ...

    def clone(self, **fields: Any) -> "Network": ...


# (pattern, replacement): from paths in our trees, joined by "/", to names in files.
Rules = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of network, and how files store it.

    Attributes:
      name: its name in workdirs and messages.
      role: its name in systems, such as "generator".
      module: its class.
      signature: regular expression for a tensor name that no other kind has.
      infer: returns the network that has the given tensors.
      rules: renames its parameters to the names in files.
      constants: tensors in its files that are not parameters.
      rename: gives a file's tensors their newest names, if there have been others.
    """

    name: str
    role: str
    module: type[Network]
    signature: str
    infer: Callable[[Tensors], Network]
    rules: Callable[[Network], Rules]
    constants: Callable[[Network], Tensors]
    rename: Callable[[Tensors], Tensors] = lambda tensors: tensors


Kinds = Sequence[Kind]


def kind_of(network: Network, kinds: Kinds) -> Kind:
    """Return the kind of a network."""
    for kind in kinds:
        if type(network) is kind.module:
            return kind
    raise LookupError(f"no kind of network for {type(network).__name__}")


def kind_named(name: str, kinds: Kinds) -> Kind:
    """Return the kind with this name."""
    for kind in kinds:
        if kind.name == name:
            return kind
    raise LookupError(f"no kind of network named {name}")


def describe(network: Network, kinds: Kinds) -> dict[str, Any]:
    """Return the network as JSON-ready data."""
    fields = {
        field.name: getattr(network, field.name)
        for field in dataclasses.fields(network)
        if field.name not in _NOT_STORED
    }
    if has_kernels(network):
        fields["reparam"] = dataclasses.asdict(fields["reparam"])
    return {"family": kind_of(network, kinds).name, **fields}


def build(description: Mapping[str, Any], kinds: Kinds) -> Network:
    """Build the network from the data that `describe` returned."""
    # JSON has lists only, and networks have to be hashable.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    kind = kind_named(fields.pop("family"), kinds)
    if "reparam" in fields:
        fields["reparam"] = Reparam(**fields["reparam"])
    return kind.module(**fields)


def has_kernels(network: Network) -> bool:
    """Return whether the network has re-parametrised kernels, in any form."""
    return hasattr(network, "reparam")
