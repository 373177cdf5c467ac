"""Guidance of an encoder by an auxiliary network (Suin et al., ICCV 2021, section 3).

The auxiliary network sees the whole image. In holes, the encoder's features become like
its features (cross-distillation) and like the encoder's own deeper ones
(self-distillation), and attention like its attention. Meta networks choose how much, by
the hypergradient of the unguided loss through the steps that they influenced (Algorithm
1). All of it is only used in training. It guides any network that returns features.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from migan_jax.config import check_choices
from migan_jax.errors import UserError
from migan_jax.losses.distillation import (
    Reduction,
    attention_transfer,
    feature_distance,
)
from migan_jax.models.distillation import (
    GuidedFeatures,
    LevelHole,
    MetaNetworks,
    Projections,
    pool_hole,
)
from migan_jax.ops.attention import attention_distance
from migan_jax.systems.base import (
    Inputs,
    Metrics,
    Optimizer,
    Optimizers,
    Params,
    Stage,
    Stats,
    System,
    TrainState,
    Turn,
    apply_gradient,
)
from migan_jax.systems.hypergradient import (
    HYPER_MODES,
    Bilevel,
    hypergradient,
    unroll,
)
from migan_jax.systems.optimizers import adam

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PROJECTIONS, META = "projections", "meta"
META_STREAM = 5  # of the lazy turn's random numbers


class Terms(NamedTuple):
    """Weighted terms of a guided network's loss, and what else to log."""

    own: Mapping[str, jax.Array]  # the unguided loss
    guided: Mapping[str, jax.Array]
    metrics: Metrics


# Of parameters of all networks, statistics, and what no parameter changes.
TermsFunction = Callable[[Params, Stats], Terms]


@dataclasses.dataclass(frozen=True)
class Guide:
    """The guidance of one network by another."""

    meta: MetaNetworks
    projections: Projections | None  # for self-distillation
    weight: float = 20.0
    attention_weight: float = 20.0
    level_hole: LevelHole = "any"
    reduction: Reduction = "pixels"
    attention_reduction: Reduction = "holes"
    mode: str = "exact"  # in HYPER_MODES
    steps: int = 2
    every: int = 1
    rate: float = 1e-4  # of the hypergradient's own steps, in modes other than exact

    @classmethod
    def from_config(
        cls,
        config: "ConfigDict",
        encoder: tuple[int, ...],
        decoder: tuple[int, ...] = (),
    ) -> "Guide | None":
        """Make the guidance of networks with these channels, or None without any."""
        settings = config.distillation
        meta = MetaNetworks(
            cross=encoder if settings.cross_distillation else (),
            deeper=encoder[1:] if settings.self_distillation else (),
            decoder=decoder if settings.attention_transfer else (),
        )
        if not (meta.cross or meta.deeper or meta.decoder):
            return None
        return cls(
            meta,
            Projections(encoder) if meta.deeper else None,
            weight=settings.guidance_weight,
            attention_weight=settings.attention_weight,
            level_hole=settings.level_hole,
            reduction=settings.reduction,
            attention_reduction=settings.attention_reduction,
            mode=settings.hyper_mode,
            steps=settings.unrolled_steps,
            every=settings.meta_every,
            rate=config.optimizer.learning_rate,
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        networks = {META: self.meta}
        return networks | (
            {} if self.projections is None else {PROJECTIONS: self.projections}
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether there is anything to learn from the auxiliary network."""
        return bool(self.meta.cross or self.meta.decoder)

    def meta_optimizer(self, settings: Any) -> optax.GradientTransformation:
        """Make the meta networks' Adam, which does not depend on gradients' scale."""
        return optax.chain(
            optax.add_decayed_weights(settings.meta_weight_decay),
            adam(settings.meta_learning_rate, b1=0.9, b2=0.999),
        )

    def optimizers(
        self,
        generator: optax.GradientTransformation,
        meta: optax.GradientTransformation,
    ) -> dict[str, Optimizer]:
        """Return the optimizers of the guided generator and of the meta networks.

        Adam must have an `eps_root` to be differentiated: see systems/hypergradient.py.
        """
        projections = () if self.projections is None else (PROJECTIONS,)
        return {
            "generator": Optimizer(("generator", *projections), generator),
            META: Optimizer((META,), meta),
        }

    def stages(
        self,
        *,
        generator: Turn,
        others: tuple[tuple[Turn, ...], ...],
        pretraining: Turn,
        optimizers: Optimizers,
        pretraining_kimg: float,
        meta_delay_kimg: float,
        system: System,
    ) -> list[Stage]:
        """Return pre-training, steps with constant meta networks, and the main stage.

        Args:
          generator: the guided turn, whose update is `update`.
          others: turns after it.
          pretraining: the turn of the auxiliary network.
        """

        def make(name: str, *turns: tuple[Turn, ...], **kwargs: Any) -> Stage:
            used = {
                name for group in turns for turn in group for name in turn.optimizers
            }
            rules = {name: optimizers[name] for name in sorted(used)}
            return Stage(name, turns, rules, **kwargs)

        stages, end = [], 0.0
        if self.needs_teacher and pretraining_kimg:
            end = pretraining_kimg
            # With a system of its own, so that scores do not count: the network that
            # inpaints does not learn yet.
            options = {"until_kimg": end, "system": system}
            stages.append(make("pre-training", (pretraining,), **options))
        if meta_delay_kimg:
            end += meta_delay_kimg
            name = "constant meta networks"
            stages.append(make(name, (generator,), *others, until_kimg=end))
        both = dataclasses.replace(generator, optimizers=("generator", META))
        if self.every == 1:
            return [*stages, make("main", (both,), *others)]
        # Meta networks learn from steps that are taken back, in a program of its own:
        # a conditional would make convolutions on CPUs slow.
        meta = dataclasses.replace(
            generator,
            name="meta",
            optimizers=(META,),
            stream=META_STREAM,
            every=self.every,
        )
        return [*stages, make("main", (generator,), *others, (meta,))]

    @jax.named_scope("guidance")
    def terms(
        self,
        params: Params,
        hole: jax.Array,
        student: GuidedFeatures,
        teacher: GuidedFeatures | None,
    ) -> dict[str, jax.Array]:
        """Return the weighted terms: equations 2, 3 and 9, summed over levels.

        The teacher's features, and the deeper ones of self-distillation, are constants.
        """
        deeper = jax.lax.stop_gradient(student.encoder[1:]) if self.meta.deeper else ()
        features, decoder = (), ()
        if teacher is not None:
            teacher = jax.lax.stop_gradient(teacher)
            features = teacher.encoder if self.meta.cross else ()
            decoder = teacher.attention if self.meta.decoder else ()
        choice = self.meta.apply(
            {"params": params[META]},
            *features,
            *deeper,
            *(level.features for level in decoder),
        )

        def compare(learning: Any, targets: Any, weights: list[jax.Array]) -> jax.Array:
            total = jnp.zeros((), jnp.float32)
            for x, target, weight in zip(learning, targets, weights, strict=True):
                level = pool_hole(hole, x.shape[1], self.level_hole)
                total += feature_distance(x, target, weight, level, self.reduction)
            return self.weight * total

        terms = {}
        if self.meta.cross:
            terms["cross"] = compare(
                student.encoder, choice.targets, choice.cross_weights
            )
        if self.projections is not None:
            variables = {"params": params[PROJECTIONS]}
            projected = self.projections.apply(variables, *student.encoder[:-1])
            terms["deeper"] = compare(projected, deeper, choice.self_weights)
        if self.meta.decoder:
            total = jnp.zeros((), jnp.float32)
            for ours, theirs, importance in zip(
                student.attention, decoder, choice.importance, strict=True
            ):
                distance = attention_distance(
                    ours.queries, ours.keys, theirs.queries, theirs.keys
                )
                level = pool_hole(hole, distance.shape[1], self.level_hole)
                total += attention_transfer(
                    distance, importance, level, self.attention_reduction
                )
            terms["attention"] = self.attention_weight * total
        return terms

    # Updates of a turn.

    def update(
        self,
        turn: Turn,
        optimizers: Optimizers,
        state: TrainState,
        inputs: Inputs,
        terms: Callable[[Params, Stats, Inputs], TermsFunction],
    ) -> tuple[TrainState, Metrics]:
        """Take the unrolled steps, train the meta networks by them, or both.

        `terms` computes what the parameters do not change, once for all steps.
        """
        batch = jax.tree.map(lambda x: x[0], inputs.batch)
        compute = terms(state.params, state.stats, inputs._replace(batch=batch))
        inner = optimizers["generator"]
        theta = {name: state.params[name] for name in inner.networks}
        psi = state.params[META]

        def terms_at(theta: Params, psi: Any) -> Terms:
            return compute({**state.params, **theta, META: psi}, state.stats)

        def total(theta: Params, psi: Any) -> tuple[jax.Array, Metrics]:
            own, guided, metrics = terms_at(theta, psi)
            terms = {**own, **guided}
            metrics |= {f"g/{name}": term for name, term in terms.items()}
            return sum(terms.values()), metrics

        def guided(theta: Params, psi: Any) -> tuple[jax.Array, None]:
            return sum(terms_at(theta, psi).guided.values()), None

        def own(theta: Params) -> tuple[jax.Array, None]:
            return sum(terms_at(theta, psi).own.values()), None

        def step(gradient: Params, opt_state: Any, theta: Params) -> tuple[Any, Any]:
            update = optax.with_extra_args_support(inner.transformation).update
            updates, opt_state = update(gradient, opt_state, theta, kimg=inputs.kimg)
            return optax.apply_updates(theta, updates), opt_state

        problem = Bilevel(total, guided, own, step, self.steps, self.rate)
        start = theta, state.opt_state["generator"], psi

        if turn.optimizers == ("generator",):
            after, metrics = unroll(problem, *start), {}
        else:
            gradient, after, *_ = hypergradient(self.mode, problem, *start)
            metrics = {"meta/hypergradient": optax.tree.norm(gradient)}
            state = apply_gradient(
                META, optimizers[META], {META: gradient}, state, inputs.kimg
            )
        if "generator" not in turn.optimizers:
            return state, metrics  # the steps are taken back
        state = dataclasses.replace(
            state,
            params={**state.params, **after.theta},
            opt_state={**state.opt_state, "generator": after.opt_state},
        )
        return state, {**after.metrics, **metrics}


# Configuration.


def check_guidance(config: "ConfigDict") -> None:
    """Raise UserError for settings of guidance that no family supports."""
    check_choices(
        config,
        {
            "distillation.hyper_mode": HYPER_MODES,
            "distillation.level_hole": get_args(LevelHole),
            "distillation.reduction": get_args(Reduction),
            "distillation.attention_reduction": get_args(Reduction),
        },
    )
    if not config.distillation.kernel_size % 2:
        raise UserError(
            f"distillation.kernel_size is {config.distillation.kernel_size}, but must "
            f"be odd."
        )
