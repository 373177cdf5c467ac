"""Initialisation from pretrained weights: released files, or another run's workdir."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from migan_jax.errors import UserError
from migan_jax.families import load_checkpoints, name_of
from migan_jax.systems.base import Params, Stats, System, TrainState
from migan_jax.weights import kernel_forms
from migan_jax.weights.checkpoint import to_form
from migan_jax.weights.kinds import Network, has_kernels
from migan_jax.weights.workdir import read_trained


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights in the form of a run's networks, by network."""

    params: Params
    stats: Stats
    summary: str  # for the log


def read_pretrained(source: Path, system: System, shapes: TrainState) -> Pretrained:
    """Read the weights in `source`, or raise UserError if they do not fit.

    Args:
      source: a `.pt`, a `.safetensors` or a workdir. From a run's workdir, networks
        that are not exported are read too, such as discriminators.
      shapes: the run's state, as arrays or jax.ShapeDtypeStruct.
    """
    found: Params = {}
    stats: Stats = {}
    for role, loaded in load_checkpoints(source).items():
        loaded = to_form(loaded, "training")
        _check_kind(source, loaded.network, system.networks.get(role))
        found[role], stats[role] = loaded.params, loaded.stats
    if os.path.isdir(source):
        networks = read_trained(source) or {"params": {}, "stats": {}}
        for role in networks["params"].keys() & system.networks.keys() - found.keys():
            found[role] = kernel_forms.collapse(networks["params"][role])
            stats[role] = networks["stats"].get(role, {})
    stats = {role: tree for role, tree in stats.items() if tree}
    params = {
        role: _to_form_of(system.networks[role], weights)
        for role, weights in found.items()
    }
    for ours, theirs in ((shapes.params, params), (shapes.stats, stats)):
        for role in theirs:
            _check_sizes(ours[role], theirs[role], source, role)
    fresh = [role for role in shapes.params if role not in found] + ["all optimisers"]
    return Pretrained(
        params,
        stats,
        f"loaded from {source}: {' and '.join(found)}; randomly initialised: "
        f"{' and '.join(fresh)}",
    )


def replace_weights(pretrained: Pretrained, state: TrainState) -> TrainState:
    """Replace weights of the initial state; they keep dtype and sharding."""

    def replace(ours: Any, theirs: Any) -> Any:
        return jax.tree.map(
            lambda x, y: jax.device_put(np.asarray(y, x.dtype), x.sharding),
            ours,
            theirs,
        )

    params = {n: replace(state.params[n], w) for n, w in pretrained.params.items()}
    stats = {n: replace(state.stats[n], w) for n, w in pretrained.stats.items()}
    params, stats = {**state.params, **params}, {**state.stats, **stats}
    # Copies, since the step donates its arguments.
    ema = {name: jax.tree.map(lambda x: x + 0, params[name]) for name in state.ema}
    return dataclasses.replace(state, params=params, stats=stats, ema=ema)


def _check_kind(source: Path, theirs: Network, ours: Network | None) -> None:
    found = f"{source} holds {name_of(theirs)} for {theirs.resolution} pixels"
    if ours is None:
        raise UserError(
            f"{found}, which this configuration does not train. Choose a recipe for it."
        )
    if (type(ours), ours.resolution) != (type(theirs), theirs.resolution):
        raise UserError(
            f"{found}, but the configuration trains a {name_of(ours)} for "
            f"{ours.resolution} pixels. Choose a recipe for it."
        )


def _to_form_of(network: Network, collapsed: Any) -> Any:
    if has_kernels(network) and network.reparam.form == "expanded":
        return kernel_forms.expand(collapsed, network.reparam.kernels)
    return collapsed


def _check_sizes(ours: Any, theirs: Any, source: Path, role: str) -> None:
    expected, found = _shapes(ours), _shapes(theirs)
    if expected == found:
        return
    name = min(k for k in expected | found if expected.get(k) != found.get(k))
    if name not in found:
        difference = f"{name} is missing"
    elif name not in expected:
        difference = f"{name} is unexpected"
    else:
        difference = f"{name} is {found[name]}, not {expected[name]}"
    raise UserError(
        f"The {role} in {source} has other sizes than the configuration: {difference}. "
        f"Set networks.* and the family's settings as in its training."
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
