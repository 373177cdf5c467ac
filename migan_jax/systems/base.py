"""The contract between families and the trainer: systems, their stages and their turns.

A system holds its networks and the weights of its losses, and nothing that changes:
parameters, statistics, batches and keys are arguments. A run is a sequence of stages,
an iteration of a stage is a sequence of turns, and a turn is one update of some
networks. What a turn minimises is one function, which can be read alone.

Randomness comes from one key a step. Every turn has a stream of its own in it, and
every sample a key of its own in that, so that a batch that is split over devices draws
what the whole batch would.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = dict[str, Any]  # by network
Stats = dict[str, Any]  # by network: what is kept beside parameters, and not trained
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Inputs(NamedTuple):
    """What turns and losses are given beside parameters and statistics."""

    frozen: Mapping[str, Any]  # variables of networks that never change
    batch: Batch  # of turns, in microbatches: [microbatches, N, ...]
    key: jax.Array  # the turn's own
    progress: jax.Array  # the share of the stage that is done
    kimg: jax.Array  # thousands of images since the stage began


# The scalar to minimise, and beside it the statistics afterwards and metrics to report.
Value = tuple[jax.Array, tuple[Stats, Metrics]]
Loss = Callable[[Params, Stats, Inputs], Value]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes in a run."""

    step: jax.Array
    params: Params
    stats: Stats
    opt_state: dict[str, Any]  # by optimizer
    ema: Params  # of the exported networks; empty in runs without


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What moves the parameters of some networks.

    `transformation.update` is given `kimg`, thousands of images since the stage began,
    if it takes more than gradient, state and parameters.
    """

    networks: tuple[str, ...]
    transformation: optax.GradientTransformation


Optimizers = Mapping[str, Optimizer]
Update = Callable[["Turn", Optimizers, TrainState, Inputs], tuple[TrainState, Metrics]]


def gradient_update(
    turn: "Turn", optimizers: Optimizers, state: TrainState, inputs: Inputs
) -> tuple[TrainState, Metrics]:
    """A step down the gradient of the turn's loss: what a turn usually is."""
    own = {name: state.params[name] for name in turn.trains(optimizers)}

    def loss(own: Params, batch: Batch) -> Value:
        params = {**state.params, **own}
        return turn.loss(params, state.stats, inputs._replace(batch=batch))

    def of_microbatch(batch: Batch) -> tuple[tuple[Params, Metrics], Stats]:
        gradient, (stats, metrics) = jax.grad(loss, has_aux=True)(own, batch)
        return (gradient, metrics), stats

    (gradient, metrics), stats = mean_over_microbatches(of_microbatch, inputs.batch)
    state = dataclasses.replace(state, stats=stats)
    for name in turn.optimizers:
        state = apply_gradient(name, optimizers[name], gradient, state, inputs.kimg)
    return state, metrics


def mean_over_microbatches(
    compute: Callable[[Batch], tuple[Any, Any]], batch: Batch
) -> tuple[Any, Any]:
    """Of two trees: the mean of the first over microbatches, and the last one's second.

    All begin with the same statistics, so those that do not depend on the batch, such
    as spectral norm's, are those of the whole batch.
    """
    first = jax.tree.map(lambda x: x[0], batch)
    microbatches = len(jax.tree.leaves(batch)[0])
    if microbatches == 1:
        return compute(first)

    def add(carry: tuple[Any, Any], batch: Batch) -> tuple[tuple[Any, Any], None]:
        total, _ = carry
        value, last = compute(batch)
        return (jax.tree.map(jnp.add, total, value), last), None

    shapes = jax.eval_shape(compute, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, last), _ = jax.lax.scan(add, zeros, batch)
    return jax.tree.map(lambda x: x / microbatches, total), last


def apply_gradient(
    name: str,
    optimizer: Optimizer,
    gradient: Params,
    state: TrainState,
    kimg: jax.Array,
) -> TrainState:
    """The state after an optimizer has moved its networks."""
    own, down = (
        {network: tree[network] for network in optimizer.networks}
        for tree in (state.params, gradient)
    )
    update = optax.with_extra_args_support(optimizer.transformation).update
    updates, opt_state = update(down, state.opt_state[name], own, kimg=kimg)
    return dataclasses.replace(
        state,
        params={**state.params, **optax.apply_updates(own, updates)},
        opt_state={**state.opt_state, name: opt_state},
    )


@dataclasses.dataclass(frozen=True)
class Turn:
    """One update of some networks, with the others as they are.

    Attributes:
      name: what it is called in messages.
      loss: what it minimises.
      optimizers: which it uses; their networks are those that it changes.
      stream: the number of its random numbers, from 1 on, its own in the system. So
        they stay what they are when turns come and go around it.
      every: a lazy turn is taken after every n-th step, on its batch.
      update: what is done with the loss, such as a bilevel turn's unrolled steps.
    """

    name: str
    loss: Loss
    optimizers: tuple[str, ...]
    stream: int
    every: int = 1
    update: Update = gradient_update

    def trains(self, optimizers: Optimizers) -> tuple[str, ...]:
        """The networks that it changes."""
        return tuple(n for name in self.optimizers for n in optimizers[name].networks)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a run with turns, batches and optimizers of its own: one program.

    Attributes:
      name: what it is called in messages.
      turns: in groups. Turns of a group differentiate at the same parameters, each
        group at those that the one before has left; statistics go from turn to turn.
        Lazy turns form groups of their own.
      optimizers: by name, by which their state goes from stage to stage.
      until_kimg: thousands of images of the run at which it ends; None: with the run,
        so that `progress` falls when a run is made longer, and `kimg` does not.
      batch_size, resolution: its own, or None for the run's.
    """

    name: str
    turns: tuple[tuple[Turn, ...], ...]
    optimizers: Optimizers
    until_kimg: float | None = None
    batch_size: int | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"{self.name}: a stage has turns")
        streams = [turn.stream for group in self.turns for turn in group]
        if len(set(streams)) < len(streams) or min(streams) < 1:
            raise ValueError(f"{self.name}: turns need streams of their own, from 1 on")
        for group in self.turns:
            if len({turn.every for turn in group}) > 1:
                raise ValueError(f"{self.name}: a group has turns of different `every`")
            trained = [n for turn in group for n in turn.trains(self.optimizers)]
            if len(set(trained)) < len(trained):
                raise ValueError(f"{self.name}: two turns of a group train one network")

    @property
    def lazy(self) -> tuple[int, ...]:
        """After how many steps its lazy turns come, each once."""
        intervals = {group[0].every for group in self.turns}
        return tuple(sorted(intervals - {1}))


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A network that is used and never changed: neither trained nor saved."""

    network: nn.Module
    variables: Any
    digest: str  # of its weights, by which a run knows it again

    @classmethod
    def of(cls, network: nn.Module, variables: Any) -> "Frozen":
        """With the digest of its arrays."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(variables):
            digest.update(np.asarray(leaf).tobytes())
        return cls(network, variables, digest.hexdigest())


class System(Protocol):
    """Networks, and the losses that their turns minimise."""

    networks: Mapping[str, nn.Module]  # that are trained
    exported: tuple[str, ...]  # networks that get an EMA, and are shipped
    batch_multiple: int  # images that losses compare; a larger batch is a multiple

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        """Parameters and statistics of all networks that are trained."""

    def stages(self) -> Sequence[Stage]:
        """What a run is made of, in order."""

    def prepare(self, batch: Batch, key: jax.Array, progress: jax.Array) -> Batch:
        """Flip, normalise, draw masks, repeat: once an iteration, for all its turns."""

    def inpaint(
        self,
        params: Params,
        stats: Stats,
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        """Complete the hole: [N, R, R, 3] in [-1, 1], known pixels as they are."""

    def references(
        self,
        frozen: Mapping[str, Any],
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """What frozen networks make of it, by name, to be shown beside."""
