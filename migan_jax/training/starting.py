"""Beginning with weights that there are already: released ones, or another run's."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from migan_jax.errors import UserError
from migan_jax.systems.base import Params, Stats, System
from migan_jax.training.building import NO_DISCRIMINATOR
from migan_jax.training.checkpoint import read_networks
from migan_jax.training.step import TrainState
from migan_jax.weights import fusing
from migan_jax.weights.checkpoint import load_checkpoint, to_form
from migan_jax.weights.families import GENERATORS, Network, family_of, has_kernels


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights that fit a run's networks, by network; and what to say of them."""

    params: Params
    stats: Stats
    sentence: str


def read_start(
    source: Path, system: System, shapes: TrainState, levels_stay: bool = False
) -> Start:
    """The weights of `source`; UserError if the run cannot begin with them.

    Args:
      source: a `.pt`, a `.safetensors` or a workdir. Of a run's workdir the
        discriminator is taken too.
      shapes: of the run's state, which need not have been computed.
      levels_stay: refuse a source without a discriminator, some of which shall stay.
    """
    loaded = to_form(load_checkpoint(source), "training")
    is_generator = family_of(loaded.network) in GENERATORS
    name = "generator" if is_generator else "discriminator"
    _check_kind(source, loaded.network, getattr(system, name))
    found = {name: loaded.params}
    if os.path.isdir(source) and (networks := read_networks(source)) is not None:
        found["discriminator"] = fusing.collapse(networks["discriminator"])
    if levels_stay and "discriminator" not in found:
        raise UserError(NO_DISCRIMINATOR)
    params = {
        part: _in_form_of(getattr(system, part), weights)
        for part, weights in found.items()
    }
    stats = {name: loaded.stats} if is_generator else {}
    for ours, theirs in ((shapes.params, params), (shapes.stats, stats)):
        for part in theirs:
            _check_sizes(ours[part], theirs[part], source, part)
    cold = [part for part in shapes.params if part not in found] + ["both optimisers"]
    return Start(
        params,
        stats,
        f"starting from {source}: {' and '.join(sorted(found, reverse=True))}; "
        f"starting cold: {' and '.join(cold)}",
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


def _check_kind(source: Path, theirs: Network, ours: Network) -> None:
    mine, its = ((family_of(n), n.resolution) for n in (ours, theirs))
    if mine != its:
        raise UserError(
            f"{source} is a {its[0]} of {its[1]} pixels, but the configuration trains "
            f"a {mine[0]} of {mine[1]}: choose a recipe for it."
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
            f"{difference}. Set networks.* (of a comodgan, also comodgan.*) as in its "
            f"training."
        )


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
