"""MI-GAN with a guided encoder: networks, files, stages, and what guidance trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import random_variables

from migan_jax.config import load_config
from migan_jax.errors import UserError
from migan_jax.families import family_named, load_checkpoint, save_checkpoint
from migan_jax.models.migan import MIGANGenerator
from migan_jax.systems.base import Inputs
from migan_jax.training.programs import build_system, initial_state, make_timeline
from migan_jax.training.step import make_step
from migan_jax.weights.checkpoint import Checkpoint
from migan_jax.weights.names import abstract_variables


def shapes(network):
    return jax.tree.map(lambda x: x.shape, abstract_variables(network))


def make(*settings, recipe="migan_distilled_scenes64"):
    config = load_config(recipe, settings, tiny=True)
    return config, build_system(config, {})


def draw_inputs(system, samples=4):
    rng = np.random.default_rng(0)
    side = system.generator.resolution
    image = jnp.asarray(rng.uniform(-1, 1, (samples, side, side, 3)), jnp.float32)
    mask = jnp.asarray(rng.random((samples, side, side, 1)) < 0.6, jnp.float32)
    batch = {"image": image, "mask": mask, "sample": jnp.arange(samples)}
    return Inputs({}, batch, jax.random.key(0), jnp.zeros(()), jnp.zeros(()))


@pytest.mark.parametrize("recipe", ["migan_distilled256", "migan_distilled_scenes64"])
def test_guidance_does_not_change_the_exported_network(recipe):
    plain = "places256" if "256" in recipe else "scenes64"
    guided, unguided = (
        build_system(load_config(name, (), tiny=False), {}) for name in (recipe, plain)
    )
    assert shapes(guided.generator) == shapes(unguided.generator)
    assert guided.exported == unguided.exported == ("generator",)
    assert guided.networks.keys() - unguided.networks.keys() == {
        *("auxiliary", "meta", "projections"),
    }


def test_completion_blocks_are_in_files_and_not_in_twins(tmp_path):
    plain = MIGANGenerator(32, 128, 16)
    network = plain.clone(completes=True)
    names = {"/".join(path) for path in flat(abstract_variables(network)["params"])}
    before = {"/".join(path) for path in flat(abstract_variables(plain)["params"])}
    assert all(name.startswith("encoder/completion/") for name in names - before)
    assert len(names - before) == 2 * 3 + 2 * 2 and before <= names
    variables = random_variables(network)
    checkpoint = Checkpoint(network, variables["params"], variables["stats"])
    save_checkpoint(checkpoint, path := tmp_path / "a.safetensors", "training")
    loaded = load_checkpoint(path)
    assert loaded.network.completes
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, loaded.params, checkpoint.params)


@pytest.mark.torch
def test_completion_blocks_are_not_exported():
    from migan_jax.twins.build import build_twin

    with pytest.raises(UserError, match="completion blocks"):
        build_twin(MIGANGenerator(32, 128, 16, completes=True))


def flat(tree, path=()):
    if not isinstance(tree, dict):
        return [path]
    return [leaf for key in tree for leaf in flat(tree[key], (*path, key))]


def test_completion_changes_holes_of_features_only():
    network = MIGANGenerator(16, 64, 8, completes=True)
    variables = random_variables(network)
    image = np.random.default_rng(0).random((1, 16, 16, 3)).astype(np.float32)
    mask = np.ones((1, 16, 16, 1), np.float32)
    mask[:, :4, :4] = 0

    @jax.jit
    def first_features(mask, variables):
        x = jnp.concatenate([mask - 0.5, image * mask], axis=-1)
        clone = network.clone(completes="completion" in variables["params"]["encoder"])
        _, sown = clone.apply(variables, x, "none", mutable=["intermediates"])
        return sown["intermediates"]["guided"][0][0]

    encoder = dict(variables["params"]["encoder"])
    del encoder["completion"]
    plain = {**variables, "params": {**variables["params"], "encoder": encoder}}
    changed = first_features(mask, variables) != first_features(mask, plain)
    assert changed[:, :2, :2].any() and not changed[:, 2:].any()
    assert not changed[:, :, 2:].any()


@pytest.mark.slow
def test_only_the_student_learns_from_guidance():
    """No gradient of the auxiliary network; the meta networks have one."""
    _, system = make()
    params, stats = jax.jit(system.init)(jax.random.key(0))
    inputs = draw_inputs(system)

    def guided(params):
        terms = system.guided_terms(params, stats, inputs)(params, stats)
        assert terms.guided.keys() == {"cross", "deeper"}
        return sum(terms.guided.values())

    gradient = jax.jit(jax.grad(guided))(params)
    has_gradient = {
        name: any(leaf.any() for leaf in jax.tree.leaves(tree))
        for name, tree in gradient.items()
    }
    assert has_gradient == {
        **{"generator": True, "projections": True, "meta": True},
        **{"discriminator": False, "auxiliary": False},
    }


def test_stages_of_guidance():
    config, system = make("distillation.meta_delay_kimg=0.008", "total_kimg=0.1")
    spans = make_timeline(config, system).spans
    names = [span.stage.name for span in spans]
    assert names == ["pre-training", "constant meta networks", "main"]
    config, system = make("distillation.cross_distillation=false")
    assert "auxiliary" not in system.networks
    assert [stage.name for stage in system.stages()] == ["main"]
    _, system = make(recipe="scenes64")
    assert system.networks.keys() == {"generator", "discriminator"}


@pytest.mark.full
@pytest.mark.parametrize("every", [1, 2])
def test_meta_networks_learn_with_the_generator_or_alone(every):
    """The auxiliary network does not. Alone, their steps are taken back."""
    config, system = make(f"distillation.meta_every={every}", "networks.channel_max=4")
    state = jax.jit(lambda: initial_state(config, system))()
    span = make_timeline(config, system).spans[-1]
    assert span.stage.lazy == tuple(sorted({16, every} - {1}))
    image = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)

    def changed(state, every):
        step = jax.jit(make_step(system, span, every=every))
        new, metrics = step(state, {}, {"image": image}, jax.random.key(0))
        assert ("meta/hypergradient" in metrics) == ("meta" in learning[every])
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, new.params)
        return new, {n for n, tree in same.items() if not all(jax.tree.leaves(tree))}

    players = {"generator", "projections", "discriminator"}
    learning = {1: players | {"meta"}} if every == 1 else {1: players, 2: {"meta"}}
    for interval, names in learning.items():
        state, found = changed(state, interval)
        assert found == names


@pytest.mark.parametrize(
    ("recipe", "setting", "named"),
    [
        ("migan_distilled_scenes64", "distillation.attention=true", "attention"),
        ("migan_distilled_scenes64", "distillation.hyper_mode=x", "hyper_mode"),
        ("migan_distilled_scenes64", "microbatches=2", "microbatches"),
        ("migan_distilled_scenes64", "optimizer.warmup_kimg=1", "warmup_kimg"),
        ("scenes64:teacher", "distillation.completion=true", "completion"),
        ("deepgin_scenes64", "distillation.self_distillation=true", "self_dist"),
        ("imputation_scenes64", "distillation.fusion=true", "fusion"),
    ],
)
def test_unsupported_settings(recipe, setting, named):
    config = load_config(recipe, (setting,), tiny=False)
    with pytest.raises(UserError, match=named):
        family_named(config.system).check_settings(config)
