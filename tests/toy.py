"""A small family, added as in `docs/add_a_family.md`, that uses all features at once.

There are two exported painters, and the second refines the first one's output. A critic
with spectral norm trains beside them, at the same parameters. A weigher weights the
painters' loss, and learns from their progress after two more steps. Training starts
with small images, from blurred to sharp ones. The keypoints of faces are only measured.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from migan_jax.config import base_config
from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.data.transforms import sample_keys
from migan_jax.errors import UserError
from migan_jax.families import FAMILIES, Family, Panel
from migan_jax.losses import gan
from migan_jax.losses.reconstruction import l1_in_hole
from migan_jax.models.costs import Cost, num_elements
from migan_jax.systems import images
from migan_jax.systems.base import Frozen, Optimizer, Stage, Turn, apply_gradient
from migan_jax.systems.optimizers import adam
from migan_jax.weights.kinds import Kind

UNROLLED = 2  # steps of the painters that the weigher looks ahead
SMALL_KIMG = 0.048  # the first stage: four steps of twelve images


# models/toy.py


class Painter(nn.Module):
    """A convolutional network for images of any size."""

    resolution: int
    sizes: tuple[int, ...] = (3, 3)  # of the kernels

    @nn.nowrap
    def inputs(self):
        shape = 1, self.resolution, self.resolution, 4
        return [jax.ShapeDtypeStruct(shape, jnp.float32)]

    @nn.compact
    def __call__(self, x):
        first, last = ((size, size) for size in self.sizes)
        x = nn.tanh(nn.Conv(4, first, param_dtype=x.dtype, name="first")(x))
        return nn.Conv(3, last, param_dtype=x.dtype, name="last")(x)


class Coarse(Painter):
    pass


class Fine(Painter):
    pass


class Critic(nn.Module):
    """A score per pixel, from a matrix divided by its largest singular value."""

    features: int = 5

    @nn.nowrap
    def inputs(self):
        return [jax.ShapeDtypeStruct((1, 16, 16, 4), jnp.float32)]

    @nn.nowrap
    def cost(self, args, out):
        return Cost(args[0].shape[-1] * num_elements(out))

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(1.0)
        weight = self.param("weight", init, (x.shape[-1], self.features), x.dtype)
        key = jax.random.key(0)
        vector = self.variable(
            "stats", "vector", jax.random.normal, key, (self.features,), x.dtype
        )
        u, v = power_iteration(weight, vector.value)
        if self.is_mutable_collection("stats") and not self.is_initializing():
            vector.value = u
        return x @ (weight / (v @ weight @ u))


def power_iteration(weight, vector):
    """Return the right and left singular vectors after one iteration, as constants."""
    left = jax.lax.stop_gradient(weight @ vector)
    left /= jnp.linalg.norm(left)
    right = jax.lax.stop_gradient(left @ weight)
    return right / jnp.linalg.norm(right), left


class Weigher(nn.Module):
    """The loss weights of the hole and of its surroundings."""

    @nn.nowrap
    def inputs(self):
        return []

    @nn.nowrap
    def cost(self, args, out):
        return Cost()

    @nn.compact
    def __call__(self):
        return nn.softplus(self.param("weights", nn.initializers.ones, (2,)))


# A frozen network.
GUIDE = nn.Dense(2, use_bias=False)


def load_guide(name):
    """Make the network that a file of this name would hold."""
    rng = np.random.default_rng(int(name))
    kernel = jnp.asarray(rng.standard_normal((3, 2)) / 9, jnp.float32)
    return Frozen.of(GUIDE, {"params": {"kernel": kernel}})


# systems/toy.py


@dataclasses.dataclass(frozen=True)
class Toy:
    coarse: Coarse
    fine: Fine
    critic: Critic
    weigher: Weigher
    guide: nn.Dense  # frozen
    painter_adam: optax.GradientTransformation
    critic_sgd: optax.GradientTransformation
    weigher_sgd: optax.GradientTransformation

    exported: ClassVar = ("coarse", "fine")
    batch_multiple: ClassVar = 1

    @classmethod
    def from_config(cls, config, frozen, dtype):
        rate = config.optimizer.learning_rate
        return cls(
            Coarse(config.resolution),
            Fine(config.resolution),
            Critic(),
            Weigher(),
            GUIDE,
            painter_adam=adam(rate, 0.5, 0.9),
            critic_sgd=optax.sgd(rate),
            weigher_sgd=optax.sgd(100 * rate),
        )

    @property
    def networks(self):
        names = "coarse", "fine", "critic", "weigher"
        return {name: getattr(self, name) for name in names}

    def init(self, key):
        variables = {
            name: network.init(key, *(jnp.zeros(x.shape) for x in network.inputs()))
            for name, network in self.networks.items()
        }
        params = {name: v["params"] for name, v in variables.items()}
        return params, {name: v.get("stats", {}) for name, v in variables.items()}

    def stages(self):
        optimizers = {
            "painters": Optimizer(("coarse", "fine"), self.painter_adam),
            "critic": Optimizer(("critic",), self.critic_sgd),
            "weigher": Optimizer(("weigher",), self.weigher_sgd),
        }
        paint = Turn("paint", self.painter_loss, ("painters",), stream=1)
        critic = Turn("critic", self.critic_loss, ("critic",), stream=2)
        penalty = Turn("penalty", self.penalty_loss, ("critic",), stream=3, every=3)
        weigh = Turn(
            "weigh",
            self.outer_loss,
            ("painters", "weigher"),
            stream=4,
            update=functools.partial(bilevel_update, inner_loss=self.inner_loss),
        )
        small = Stage(
            "small", ((paint,),), optimizers, SMALL_KIMG, batch_size=12, resolution=8
        )
        main = Stage("main", ((paint, critic), (weigh,), (penalty,)), optimizers)
        return [small, main]

    def prepare(self, batch, key, progress):
        return images.prepare(batch, key, SAMPLERS["box"])

    def painter_loss(self, params, stats, inputs):
        """The painters' loss; the target changes from a blurred to the sharp image."""
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        blurred = nn.avg_pool(image, (3, 3), padding="SAME")
        target = image + (1 - inputs.progress) * (blurred - image)
        output = paint(self, params, image, mask)
        guide = self.guide.apply(inputs.frozen["guide"], target - output)
        distance = jnp.mean(l1_in_hole(output, target, mask)) + jnp.mean(guide**2)
        score, stats = self.score(params, stats, output, mask)
        adversarial = jnp.mean(gan.hinge_generator_loss(score))
        metrics = {"paint/l1": distance, "paint/progress": inputs.progress}
        metrics["paint/points"] = jnp.mean(inputs.batch["points"])
        metrics["paint/vector"] = jnp.sum(stats["critic"]["vector"])
        return distance + 1e-3 * adversarial, (stats, metrics)

    def critic_loss(self, params, stats, inputs):
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        output = paint(self, params, image, mask)
        fake, stats = self.score(params, stats, output, mask)
        real, stats = self.score(params, stats, image, mask)
        loss = jnp.mean(gan.hinge_discriminator_loss(real, fake))
        return loss, (stats, {"critic/loss": loss})

    def penalty_loss(self, params, stats, inputs):
        """A gradient penalty at random points, with fixed singular vectors."""
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        output = paint(self, params, image, mask)
        keys = sample_keys(inputs.key, 0, inputs.batch["sample"])
        fraction = jax.vmap(jax.random.uniform)(keys)
        norm = gan.gradient_norm(
            lambda x: self.score(params, stats, x, mask)[0],
            gan.interpolate(image, output, fraction),
            1 - mask,
        )
        loss = jnp.mean(gan.one_sided_penalty(norm))
        return loss, (stats, {"penalty/fraction": jnp.mean(fraction)})

    def inner_loss(self, params, inputs):
        """The painters' loss with the weigher's weights."""
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        output = paint(self, params, image, mask)
        hole, around = self.weigher.apply({"params": params["weigher"]})
        squares = (output - image) ** 2
        return jnp.mean(squares * (hole * (1 - mask) + around * mask))

    def outer_loss(self, params, stats, inputs):
        """The weigher's loss, which depends on it only through the painters' steps."""
        image, mask = inputs.batch["image"], inputs.batch["mask"]
        output = paint(self, params, image, mask)
        loss = jnp.mean((output - image) ** 2 * (1 - mask))
        return loss, (stats, {"weigh/loss": loss})

    def score(self, params, stats, image, mask):
        variables = {"params": params["critic"], "stats": stats["critic"]}
        x = images.discriminator_input(image, mask)
        score, changed = self.critic.apply(variables, x, mutable=["stats"])
        return score, {**stats, "critic": changed["stats"]}

    def inpaint(self, params, stats, image, mask, key, points):
        assert points.shape == (len(image), 7, 2)
        output = paint(self, params, image, mask)
        return images.composite(image, jnp.clip(output, -1, 1), mask)

    def references(self, frozen, image, mask, key):
        return {}


def paint(networks, params, image, mask):
    """Return the second painter's output."""
    rgb, _ = predict(
        {"coarse": networks.coarse, "fine": networks.fine},
        {name: {"params": params[name]} for name in ("coarse", "fine")},
        image,
        mask,
        {},
    )
    return rgb


def bilevel_update(turn, optimizers, state, inputs, inner_loss):
    """Unroll steps of the painters, and update the weigher with their gradient."""
    inner, outer = turn.optimizers
    whole = inputs._replace(batch=jax.tree.map(lambda x: x[0], inputs.batch))

    def unrolled(weigher):
        after = dataclasses.replace(state, params={**state.params, "weigher": weigher})
        for _ in range(UNROLLED):
            gradient = jax.grad(inner_loss)(after.params, whole)
            after = apply_gradient(
                inner, optimizers[inner], gradient, after, inputs.kimg
            )
        value, (stats, metrics) = turn.loss(after.params, after.stats, whole)
        return value, (dataclasses.replace(after, stats=stats), metrics)

    hypergradient, (after, metrics) = jax.grad(unrolled, has_aux=True)(
        state.params["weigher"]
    )
    gradient = {"weigher": hypergradient}
    return apply_gradient(
        outer, optimizers[outer], gradient, after, inputs.kimg
    ), metrics


def check_settings(config):
    if config.microbatches > 1:
        raise UserError("microbatches must be 1: the weigher needs the whole batch.")


# configs/toy.py


def get_config():
    config = base_config()
    config.system = "toy"
    config.resolution = 16
    config.teacher = "3"
    config.batch_size = 6
    config.total_kimg = 0.084  # four steps of the first stage, six of the second
    config.optimizer.learning_rate = 1e-2
    config.optimizer.ema_halflife_kimg = 0.02
    config.data.source, config.data.points = "scenes:faces", "scenes"
    config.data.held_out = 2
    config.networks.dtype = "float32"
    config.log_every_steps = 1
    config.save_every_steps = 3
    config.keep_last = 2
    return config


# The record in the table.


def predict(networks, variables, image, mask, latents):
    x = images.generator_input(image, mask)
    first = networks["coarse"].apply(variables["coarse"], x)
    second = images.generator_input(images.composite(image, first, mask), mask * 0 + 1)
    return networks["fine"].apply(variables["fine"], second), {"coarse": first}


def make_kind(network):
    role = network.__name__.lower()
    return Kind(
        name=f"toy_{role}",
        role=role,
        module=network,
        signature=rf"toy\.{role}\..*",
        infer=lambda tensors: network(16),
        rules=lambda network: [("^/", f"/toy/{role}/")],
        constants=lambda network: {},
    )


TOY = Family(
    name="toy",
    title="Toy",
    kinds=tuple(make_kind(network) for network in (Coarse, Fine)),
    exported=Toy.exported,
    system=Toy.from_config,
    check_settings=check_settings,
    check_init=lambda config, roles: None,
    predict=predict,
    draw=lambda networks, seed, count: {},
    frozen={"guide": "teacher"},
    load_frozen=lambda config: {"guide": load_guide(config.teacher)},
    architecture=("resolution",),
    labels={"paint/l1": "L1"},
    panels=(Panel("painters", (("paint/l1", "L1", "-"),)),),
    points=lambda config: 7,
)


def register():
    FAMILIES["toy"] = TOY
