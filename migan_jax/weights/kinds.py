"""What files need to be told of a kind of network, and a network as plain data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from migan_jax.models.layers import Reparam
from migan_jax.weights.reading import Tensors

# linen's own fields, and how to compute, which a checkpoint does not decide.
_NOT_STORED = ("parent", "name", "dtype", "remat")


class Network(Protocol):
    """A linen module of any kind; its own fields say its sizes."""

    resolution: int

    def inputs(self) -> list[Any]:
        """Shapes of one sample's inputs."""

    def init(self, *args: Any) -> Any: ...

    def apply(self, *args: Any, **kwargs: Any) -> Any: ...

    def clone(self, **fields: Any) -> "Network": ...


# Patterns in the paths of our trees, joined by "/", and what files have instead.
Rules = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of network, and its files.

    Attributes:
      name: what workdirs and messages call it.
      role: what systems call it, such as "generator".
      module: its class.
      sign: the pattern of a tensor's name that no other kind has.
      infer: the network that has such tensors.
      rules: how its parameters are named in files.
      constants: what its files hold besides, which is no parameter.
    """

    name: str
    role: str
    module: type[Network]
    sign: str
    infer: Callable[[Tensors], Network]
    rules: Callable[[Network], Rules]
    constants: Callable[[Network], Tensors]


Kinds = Sequence[Kind]


def kind_of(network: Network, kinds: Kinds) -> Kind:
    """The kind of a network, among those given."""
    for kind in kinds:
        if type(network) is kind.module:
            return kind
    raise LookupError(f"there is no kind of network for {type(network).__name__}")


def kind_named(name: str, kinds: Kinds) -> Kind:
    """The kind that workdirs call so."""
    for kind in kinds:
        if kind.name == name:
            return kind
    raise LookupError(f"there is no kind of network named {name}")


def describe(network: Network, kinds: Kinds) -> dict[str, Any]:
    """The network as JSON-ready data."""
    fields = {
        field.name: getattr(network, field.name)
        for field in dataclasses.fields(network)
        if field.name not in _NOT_STORED
    }
    if has_kernels(network):
        fields["reparam"] = dataclasses.asdict(fields["reparam"])
    return {"family": kind_of(network, kinds).name, **fields}


def build(description: Mapping[str, Any], kinds: Kinds) -> Network:
    """The network that `describe` gave the data of."""
    # JSON has lists only, and networks have to be hashable.
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    kind = kind_named(fields.pop("family"), kinds)
    if "reparam" in fields:
        fields["reparam"] = Reparam(**fields["reparam"])
    return kind.module(**fields)


def has_kernels(network: Network) -> bool:
    """Whether it has re-parametrised kernels, in one of their forms."""
    return hasattr(network, "reparam")
