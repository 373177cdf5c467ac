"""Beginning with weights that there are already: released ones, or another run's."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from migan_jax.errors import UserError
from migan_jax.families import load_checkpoints, name_of
from migan_jax.systems.base import Params, Stats, System, TrainState
from migan_jax.training.checkpoint import read_networks
from migan_jax.weights import fusing
from migan_jax.weights.checkpoint import to_form
from migan_jax.weights.kinds import Network, has_kernels


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights that fit a run's networks, by network; and what to say of them."""

    params: Params
    stats: Stats
    sentence: str


def read_start(source: Path, system: System, shapes: TrainState) -> Start:
    """The weights of `source`; UserError if the run cannot begin with them.

    Args:
      source: a `.pt`, a `.safetensors` or a workdir. Of a run's workdir networks that
        are not shipped are taken too.
      shapes: of the run's state, which need not have been computed.
    """
    found: Params = {}
    stats: Stats = {}
    for role, loaded in load_checkpoints(source).items():
        loaded = to_form(loaded, "training")
        _check_kind(source, loaded.network, system.networks.get(role))
        found[role], stats[role] = loaded.params, loaded.stats
    if os.path.isdir(source):
        networks = read_networks(source) or {"params": {}, "stats": {}}
        for role in networks["params"].keys() & system.networks.keys() - found.keys():
            found[role] = fusing.collapse(networks["params"][role])
            stats[role] = networks["stats"].get(role, {})
    stats = {role: tree for role, tree in stats.items() if tree}
    params = {
        role: _in_form_of(system.networks[role], weights)
        for role, weights in found.items()
    }
    for ours, theirs in ((shapes.params, params), (shapes.stats, stats)):
        for role in theirs:
            _check_sizes(ours[role], theirs[role], source, role)
    cold = [role for role in shapes.params if role not in found] + ["all optimisers"]
    return Start(
        params,
        stats,
        f"starting from {source}: {' and '.join(found)}; starting cold: "
        f"{' and '.join(cold)}",
    )


def begin_with(start: Start, state: TrainState) -> TrainState:
    """The first state with these weights, on the devices of those they replace."""

    def onto(ours: Any, theirs: Any) -> Any:
        return jax.tree.map(
            lambda x, y: jax.device_put(np.asarray(y, x.dtype), x.sharding),
            ours,
            theirs,
        )

    params = {n: onto(state.params[n], tree) for n, tree in start.params.items()}
    stats = {n: onto(state.stats[n], tree) for n, tree in start.stats.items()}
    params, stats = {**state.params, **params}, {**state.stats, **stats}
    ema = {part: jax.tree.map(lambda x: x + 0, params[part]) for part in state.ema}
    return dataclasses.replace(state, params=params, stats=stats, ema=ema)


def _check_kind(source: Path, theirs: Network, ours: Network | None) -> None:
    its = f"{source} is a {name_of(theirs)} of {theirs.resolution} pixels"
    if ours is None:
        raise UserError(
            f"{its}, but the configuration trains none: choose a recipe for it."
        )
    if (type(ours), ours.resolution) != (type(theirs), theirs.resolution):
        raise UserError(
            f"{its}, but the configuration trains a {name_of(ours)} of "
            f"{ours.resolution}: choose a recipe for it."
        )


def _in_form_of(network: Network, collapsed: Any) -> Any:
    if has_kernels(network) and network.reparam.form == "expanded":
        return fusing.expand(collapsed, network.reparam.kernels)
    return collapsed


def _check_sizes(ours: Any, theirs: Any, source: Path, part: str) -> None:
    mine, its = ({k: v for k, v in _leaves(tree)} for tree in (ours, theirs))
    shapes, others = ({k: v.shape for k, v in leaves.items()} for leaves in (mine, its))
    if shapes != others:
        odd = sorted(k for k in shapes | others if shapes.get(k) != others.get(k))[0]
        if odd in shapes and odd in others:
            difference = f"{odd} is {others[odd]}, not {shapes[odd]}"
        else:
            difference = f"{odd} is only in {'one' if odd in shapes else 'the other'}"
        raise UserError(
            f"The {part} of {source} has other sizes than the configuration's: "
            f"{difference}. Set networks.* and the family's own settings as in its "
            f"training."
        )


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
