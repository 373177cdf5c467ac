"""The interface between families and the trainer: systems, stages and turns.

A system holds its networks and loss weights, and no state: parameters, statistics,
batches and keys are arguments. A run is a sequence of stages. A step of a stage is a
sequence of turns. A turn updates some networks to minimise one loss function.

Each step has one random key. It is split by turn and then by sample, so that random
numbers do not depend on how a batch is sharded.
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
Stats = dict[str, Any]  # by network: untrained variables
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Inputs(NamedTuple):
    """Arguments of turns and losses besides parameters and statistics."""

    frozen: Mapping[str, Any]  # variables of frozen networks
    batch: Batch  # turns get microbatches: [microbatches, N, ...]
    key: jax.Array  # of this turn
    progress: jax.Array  # completed fraction of the stage
    kimg: jax.Array  # thousands of images since the stage began


# The loss (a scalar), the updated statistics and the metrics to log.
Value = tuple[jax.Array, tuple[Stats, Metrics]]
Loss = Callable[[Params, Stats, Inputs], Value]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The mutable state of a run."""

    step: jax.Array
    params: Params
    stats: Stats
    opt_state: dict[str, Any]  # by optimizer
    ema: Params  # of the exported networks; empty in runs without an EMA


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax transformation for the parameters of some networks.

    If `transformation.update` takes extra arguments, it gets `kimg`: thousands of
    images since the stage began.
    """

    networks: tuple[str, ...]
    transformation: optax.GradientTransformation


Optimizers = Mapping[str, Optimizer]
Update = Callable[["Turn", Optimizers, TrainState, Inputs], tuple[TrainState, Metrics]]


def gradient_update(
    turn: "Turn", optimizers: Optimizers, state: TrainState, inputs: Inputs
) -> tuple[TrainState, Metrics]:
    """Take a gradient step on the turn's loss (the default update)."""
    trained = {name: state.params[name] for name in turn.trained_networks(optimizers)}

    def loss(trained: Params, batch: Batch) -> Value:
        params = {**state.params, **trained}
        return turn.loss(params, state.stats, inputs._replace(batch=batch))

    def compute(batch: Batch) -> tuple[tuple[Params, Metrics], Stats]:
        gradient, (stats, metrics) = jax.grad(loss, has_aux=True)(trained, batch)
        return (gradient, metrics), stats

    (gradient, metrics), stats = mean_over_microbatches(compute, inputs.batch)
    state = dataclasses.replace(state, stats=stats)
    for name in turn.optimizers:
        state = apply_gradient(name, optimizers[name], gradient, state, inputs.kimg)
    return state, metrics


def mean_over_microbatches(
    compute: Callable[[Batch], tuple[Any, Any]], batch: Batch
) -> tuple[Any, Any]:
    """Average the first output over microbatches; return the last one's second output.

    All microbatches start from the same statistics. So statistics that do not depend on
    the batch, such as those of spectral norm, are the same as for the whole batch.
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


@jax.named_scope("optimizer")
def apply_gradient(
    name: str,
    optimizer: Optimizer,
    gradient: Params,
    state: TrainState,
    kimg: jax.Array,
) -> TrainState:
    """Return the state after one update by an optimizer."""
    params, gradient = (
        {network: tree[network] for network in optimizer.networks}
        for tree in (state.params, gradient)
    )
    update = optax.with_extra_args_support(optimizer.transformation).update
    updates, opt_state = update(gradient, state.opt_state[name], params, kimg=kimg)
    return dataclasses.replace(
        state,
        params={**state.params, **optax.apply_updates(params, updates)},
        opt_state={**state.opt_state, name: opt_state},
    )


@dataclasses.dataclass(frozen=True)
class Turn:
    """One update of some networks; the others are constant.

    Attributes:
      name: for messages.
      loss: the function to minimise.
      optimizers: names of its optimizers, whose networks it updates.
      stream: index of its random stream, from 1, unique in the system. Adding or
        removing other turns does not change its random numbers.
      every: a lazy turn runs after every n-th step, on that step's batch.
      update: how to update with the loss, such as with a bilevel turn's unrolled steps.
    """

    name: str
    loss: Loss
    optimizers: tuple[str, ...]
    stream: int
    every: int = 1
    update: Update = gradient_update

    def trained_networks(self, optimizers: Optimizers) -> tuple[str, ...]:
        """Return the names of the networks that it updates."""
        return tuple(n for name in self.optimizers for n in optimizers[name].networks)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A phase of a run with its own turns, batches and optimizers: one program.

    Attributes:
      name: for messages.
      turns: in groups. Turns of a group differentiate at the same parameters; the next
        group uses the updated ones. Statistics pass from turn to turn. Lazy turns form
        separate groups.
      optimizers: by name. Stages pass on the state of optimizers of the same name.
      until_kimg: the end of the stage in thousands of images of the run; None for the
        end of the run. Then extending a run lowers `progress`, but not `kimg`.
      batch_size, resolution: None for the run's.
      system: whose networks the stage trains, prepares images for and inpaints with;
        None for the run's. Its networks may lack some of the run's layers, such as
        those that have not grown yet.
    """

    name: str
    turns: tuple[tuple[Turn, ...], ...]
    optimizers: Optimizers
    until_kimg: float | None = None
    batch_size: int | None = None
    resolution: int | None = None
    system: "System | None" = None

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"{self.name}: a stage needs turns")
        streams = [turn.stream for group in self.turns for turn in group]
        if len(set(streams)) < len(streams) or min(streams) < 1:
            raise ValueError(f"{self.name}: turns need different streams, from 1")
        for group in self.turns:
            if len({turn.every for turn in group}) > 1:
                raise ValueError(f"{self.name}: turns of a group need the same `every`")
            trained = [
                n for turn in group for n in turn.trained_networks(self.optimizers)
            ]
            if len(set(trained)) < len(trained):
                raise ValueError(f"{self.name}: two turns of a group train one network")

    @property
    def lazy(self) -> tuple[int, ...]:
        """The different intervals of its lazy turns, in steps."""
        intervals = {group[0].every for group in self.turns}
        return tuple(sorted(intervals - {1}))


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A network that is used, but neither trained nor saved."""

    network: nn.Module
    variables: Any
    digest: str  # of its weights; a resumed run compares it

    @classmethod
    def of(cls, network: nn.Module, variables: Any) -> "Frozen":
        """Make it and compute its digest."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(variables):
            digest.update(np.asarray(leaf).tobytes())
        return cls(network, variables, digest.hexdigest())


def init_networks(
    networks: Mapping[str, nn.Module], key: jax.Array
) -> tuple[Params, Stats]:
    """Initialise networks that state their `inputs`, each with its own key."""
    keys = jax.random.split(key, len(networks))
    variables = {
        name: network.init(key, *(jnp.zeros(x.shape) for x in network.inputs()))
        for key, (name, network) in zip(keys, networks.items(), strict=True)
    }
    params = {name: v["params"] for name, v in variables.items()}
    return params, {name: v.get("stats", {}) for name, v in variables.items()}


class System(Protocol):
    """Networks with their losses and stages."""

    networks: Mapping[str, nn.Module]  # trained ones
    exported: tuple[str, ...]  # networks with an EMA, which a user runs
    batch_multiple: int  # larger batches must be a multiple of this

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        """Initialise parameters and statistics of all trained networks."""

    def stages(self) -> Sequence[Stage]:
        """Return the stages of a run, in order."""

    def prepare(self, batch: Batch, key: jax.Array, progress: jax.Array) -> Batch:
        """Flip and normalise images and draw masks, once per step for all turns."""

    def inpaint(
        self,
        params: Params,
        stats: Stats,
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        """Complete the hole: [N, R, R, 3] in [-1, 1], known pixels unchanged.

        Systems with keypoints also take `points`, [N, K, 2] in [0, 1].
        """

    def references(
        self,
        frozen: Mapping[str, Any],
        image: jax.Array,
        mask: jax.Array,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """Return the completions of frozen networks, by name, for comparison."""
