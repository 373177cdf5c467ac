"""DeepGIN's turns against PyTorch's; its batches, stages and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models_deepgin import enlarge, leaf_of, make
from variables import entries, relative_l2

from migan_jax.config import load_config
from migan_jax.data.mask_samplers import SAMPLERS
from migan_jax.errors import UserError
from migan_jax.families import FAMILIES, from_tensors
from migan_jax.models.vgg import NETWORKS, narrow
from migan_jax.systems.base import Inputs
from migan_jax.systems.deepgin import (
    VGG,
    DeepGIN,
    check_settings,
    constant_then_linear,
    rotate,
    take_phase,
)
from migan_jax.training.programs import build_system, make_timeline
from migan_jax.weights import feature_networks

SIZE, VGG_SIZE, DIVISOR = 32, 32, 16
TERMS = {"total_variation": "tv"}  # other names in PyTorch


def make_inputs(batch, frozen=None):
    return Inputs(frozen or {}, batch, jax.random.key(0), jnp.zeros(()), jnp.zeros(()))


@pytest.mark.torch
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("variant", "form"),
    [
        ("full", "code"),
        pytest.param("full", "paper", marks=pytest.mark.full),
        pytest.param("std", "paper", marks=pytest.mark.full),
        pytest.param("coarse_only", "code", marks=pytest.mark.full),
    ],
)
def test_turn_of_both_players_equals_pytorchs(variant, form):
    """Losses, gradients of both, and singular vectors after three passes."""
    import deepgin_torch
    import torch
    from parity import by_name, to_arrays

    torch.manual_seed(3)
    theirs = [
        deepgin_torch.Generator(variant, ngf=8).double(),
        deepgin_torch.Discriminator(ndf=4).double(),
    ]
    vgg = deepgin_torch.Vgg(DIVISOR).double()
    vgg.size = VGG_SIZE
    enlarge(theirs[0])
    with torch.no_grad():
        for name, bias in theirs[1].named_parameters():
            if name.endswith("6.module.bias"):  # so that some scores saturate
                bias.normal_()
    generator, discriminator = (from_tensors(to_arrays(one)) for one in theirs)
    system = DeepGIN(
        generator.network,
        discriminator.network,
        SAMPLERS["box"],
        {},
        None,
        loss_form=form,
        vgg=narrow(NETWORKS["vgg19"], DIVISOR),
        vgg_resolution=VGG_SIZE,
    )
    rng = np.random.default_rng(0)
    truth = rng.random((2, SIZE, SIZE, 3))
    hole = (rng.random((2, SIZE, SIZE, 1)) < 0.4).astype(float)
    nchw = [torch.from_numpy(np.moveaxis(x, -1, 1).copy()) for x in (truth, hole)]
    expected = deepgin_torch.players_step(*theirs, vgg, *nchw, form=form)

    params = {"generator": generator.params, "discriminator": discriminator.params}
    stats = {"generator": {}, "discriminator": discriminator.stats}
    inputs = make_inputs(
        {"image": 2 * truth - 1, "mask": 1 - hole, "sample": jnp.arange(2)},
        {VGG: vgg_variables(vgg)},
    )
    turn = jax.jit(jax.grad(system.players_loss, has_aux=True))
    gradients, (stats, metrics) = turn(params, stats, inputs)
    for name in ("l1", "adversarial", "perceptual", "style", "total_variation"):
        theirs_value = float(expected[TERMS.get(name, name)])
        assert float(metrics[f"g/{name}"]) == pytest.approx(theirs_value, rel=1e-9)
    assert float(metrics["d/adversarial"]) == pytest.approx(
        float(expected["discriminator_loss"]), rel=1e-9
    )
    for checkpoint, role in (
        (generator, "generator"),
        (discriminator, "discriminator"),
    ):
        ours = by_name(checkpoint.network, gradients[role])
        for name, gradient in expected[f"{role}_gradients"].items():
            if name.endswith("phi.bias"):  # 0, since softmax ignores shifts
                np.testing.assert_allclose(ours[name], 0, atol=1e-9)
            elif gradient.any():
                assert relative_l2(ours[name], gradient.numpy()) < 1e-9, name
            else:  # behind a ReLU that is off everywhere
                assert not ours[name].any()
    for entry in entries(discriminator.network):
        if entry.collection == "stats":
            (name,) = entry.names
            leaf = leaf_of({"stats": stats["discriminator"]}, entry)
            assert relative_l2(leaf, expected["buffers"][name].numpy()) < 1e-9


def vgg_variables(vgg):
    """PyTorch's weights for our network."""
    params = {}
    for name, tensor in vgg.state_dict().items():
        layer, _, kind = name.rpartition(".")
        array = tensor.numpy()
        if kind == "weight":
            params.setdefault(layer, {})["kernel"] = array.transpose(2, 3, 1, 0)
        elif kind == "bias":
            params.setdefault(layer, {})["bias"] = array
    return {"params": params}


def make_system(*settings):
    config = load_config("deepgin_celebahq256", settings, True)
    return config, build_system(config, {})


def prepare(system, batch, seed=0):
    return jax.jit(system.prepare)(batch, jax.random.key(seed), jnp.zeros(()))


def test_a_picture_becomes_three_samples_of_one_sub_image():
    _, system = make_system("resolution=32")
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    batch = prepare(system, {"image": image})
    assert batch["image"].shape == (6, 32, 32, 3)
    assert batch["mask"].shape == (6, 32, 32, 1)
    for first in (0, 3):
        same = batch["image"][first : first + 3]
        np.testing.assert_array_equal(same, same[:1].repeat(3, axis=0))
    # Turned back, it is one of the four sub-images of one of eight orientations.
    pixels = np.rint((np.asarray(batch["image"][0]) + 1) * 127.5).astype(np.uint8)
    source = image[0]
    candidates = [
        orientation[a::2, b::2]
        for turn in range(4)
        for orientation in [np.rot90(source, turn)]
        for a in range(2)
        for b in range(2)
    ]
    flipped = [candidate[:, ::-1] for candidate in candidates]
    assert sum(np.array_equal(pixels, c) for c in candidates + flipped) == 1


def test_holes_are_a_box_an_automaton_and_strokes():
    _, system = make_system("resolution=64")
    image = np.zeros((4, 128, 128, 3), np.uint8)
    holes = 1 - np.asarray(prepare(system, {"image": image})["mask"])[..., 0]
    for first in range(0, 12, 3):
        rows, columns = (np.flatnonzero(holes[first].any(axis)) for axis in (1, 0))
        box = holes[first][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        assert not np.array_equal(holes[first + 1], holes[first + 2])
    means = holes.reshape(4, 3, -1).mean((0, 2))
    assert means[0] < means[1]  # of the table of area fractions


def test_own_masks_follow_their_picture():
    _, system = make_system("resolution=32")
    rng = np.random.default_rng(1)
    mask = rng.integers(0, 2, (3, 64, 64, 1), np.uint8)
    batch = prepare(system, {"image": 255 * mask.repeat(3, axis=-1), "mask": mask})
    assert batch["image"].shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(batch["image"][..., :1] > 0, batch["mask"] > 0)


def test_rotations_and_phases_are_uniform():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(400))
    image = jnp.arange(4).reshape(1, 2, 2, 1).repeat(400, axis=0)
    for transformed in (rotate(keys, image), take_phase(keys, 2, image)):
        counts = np.bincount(np.asarray(transformed[0][:, 0, 0, 0]), minlength=4)
        assert counts.min() > 60


def test_hole_pixels_change_no_output():
    _, system = make_system("resolution=16", "deepgin.channels=8")
    _, variables = make("full", np.float32)
    params, stats = {"generator": variables["params"]}, {}
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    mask = (rng.random((1, 16, 16, 1)) < 0.5).astype(np.float32)
    inpaint = jax.jit(system.inpaint)
    key = jax.random.key(0)
    first, second = (
        np.asarray(inpaint(params, stats, image * mask + value * (1 - mask), mask, key))
        for value in (0.0, 0.7)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first * mask, image * mask)
    whole = np.ones_like(mask)
    np.testing.assert_array_equal(inpaint(params, stats, image, whole, key), image)


def test_stages_rates_and_lengths():
    config = load_config("deepgin_celebahq256", (), False)
    system = build_system(config, {})
    timeline = make_timeline(config, system)
    warm_up, main = timeline.spans
    assert (warm_up.end_step, main.end_step) == (67_500, 742_500)
    assert warm_up.resolution == main.resolution == 512
    (turn,) = (turn for group in main.stage.turns for turn in group)
    assert turn.trained_networks(main.stage.optimizers) == (
        "generator",
        "discriminator",
    )
    rate = constant_then_linear(4e-4, 270, 2430)
    kimg = jnp.array([0, 270, 270 + 1215, 2700, 3000.0])
    np.testing.assert_allclose(rate(kimg), [4e-4, 4e-4, 2e-4, 0, 0], atol=1e-10)


def test_gradients_of_the_generators_are_clipped():
    """A gradient and a hundred times the gradient give the same update."""
    _, system = make_system()
    rule = system.optimizers["generator"]
    large = {"w": jnp.full((4,), 100.0)}
    state = rule.init(large)
    _, after = rule.update(large, state, large, kimg=jnp.zeros(()))
    _, same = rule.update({"w": 100 * large["w"]}, state, large, kimg=jnp.zeros(()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, same)
    norms = [
        np.linalg.norm(leaf) for leaf in jax.tree.leaves(after) if leaf.shape == (4,)
    ]
    np.testing.assert_allclose(max(norms), (1 - 0.5) * 3.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("deepgin.variant=spd", "deepgin.variant"),
        ("deepgin.loss_form=both", "deepgin.loss_form"),
        ("deepgin.vgg=own", "deepgin.vgg"),
        ("deepgin.channels=7", "deepgin.channels"),
        ("resolution=40", "resolution"),
        ("data.draw_masks_on=host", "data.draw_masks_on"),
        ("optimizer.frozen_levels=2", "optimizer.frozen_levels"),
        ("teacher=x.pt", "teacher"),
    ],
)
def test_unsupported_settings(setting, word):
    with pytest.raises(UserError, match=word) as caught:
        check_settings(load_config("deepgin_celebahq256", [setting], True))
    assert "\n" not in str(caught.value)


def test_missing_vgg_is_one_sentence_with_its_name_and_place():
    config = load_config("deepgin_celebahq256", (), False)
    with pytest.raises(UserError) as caught:
        FAMILIES["deepgin"].load_frozen(config)
    message = str(caught.value)
    for part in (feature_networks.FILES["vgg19"].name, "https://", "deepgin.style=0"):
        assert part in message
    assert "\n" not in message
    config.deepgin.update({"perceptual": 0.0, "style": 0.0})
    assert not FAMILIES["deepgin"].load_frozen(config)


def test_plans_need_no_vgg_file():
    config = load_config("deepgin_celebahq256", (), False)
    (outline,) = FAMILIES["deepgin"].outline_frozen(config).values()
    shapes = [leaf.shape for leaf in jax.tree.leaves(outline.variables)]
    assert (3, 3, 512, 512) in shapes
